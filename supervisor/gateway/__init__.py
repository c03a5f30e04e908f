"""The team over HTTP: routes, server-sent events, the OpenAI protocol. A client of the sockets, in a process of its own."""
