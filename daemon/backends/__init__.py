"""Where answers come from: one seam for every kind of model server, and for none."""

from daemon.backends.backend import Backend, Finish, Piece, Prompt, Step, Waiting

__all__ = ["Backend", "Finish", "Piece", "Prompt", "Step", "Waiting"]
