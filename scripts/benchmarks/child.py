"""The smallest honest child for a supervisor to keep: an asyncio server that answers every line with its pid.

usage: child.py PORT | child.py --fd DESCRIPTOR     (a listening socket that was bound by whoever started it)
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readline():
        writer.write(b'{"pid":%d}\n' % os.getpid())
    writer.close()


async def main() -> None:
    if sys.argv[1] == "--fd":
        server = await asyncio.start_server(answer, sock=socket.socket(fileno=int(sys.argv[2])))
    else:
        server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
