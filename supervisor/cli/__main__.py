"""`python -m supervisor.cli`: the same as `chorus`."""

from supervisor.cli.main import main

main()
