"""The team: what keeps the specialists running, asks them together, and is driven from the command line."""
