"""The gateway alone, without a supervisor above it.   usage: relay_chorus.py CONFIG.json"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import msgspec

from protocol.settings import BACKLOG, GatewayConfig
from supervisor.gateway.process import run


def main() -> None:
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=GatewayConfig)
    run(config, [socket.create_server(config.places[0], backlog=BACKLOG)])


if __name__ == "__main__":
    main()
