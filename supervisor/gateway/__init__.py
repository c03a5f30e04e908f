"""The team over HTTP, in a process of its own: a client of the specialists' sockets and of the control socket."""
