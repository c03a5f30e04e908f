"""What goes over the wire between clients, specialists and the supervisor. Only `client` does I/O."""
