"""What goes over the wire between clients, specialists and the supervisor. Only `client` does I/O."""

__version__ = "0.1.0"
