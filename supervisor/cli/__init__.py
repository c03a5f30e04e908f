"""The command line."""

from supervisor.cli.main import main

__all__ = ["main"]
