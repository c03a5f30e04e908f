"""One specialist: a process that listens on its own port and streams answers from a model server."""
