"""The floor under every Python hub: a uvloop protocol that writes the same bytes to everyone.

A peer of `loadtest.compare`, and no server: it reads just enough HTTP to tell GET from POST, keeps
nothing, resumes nothing and writes once a subscriber and event. What a hub takes beyond this is what
its promises cost; a hub that joins events into one write can come out below it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-store\r\n\r\n: connected\n\n"
)
_DONE = b"HTTP/1.1 204 No Content\r\n\r\n"

_subscribers: set[asyncio.Transport] = set()


class Connection(asyncio.Protocol):
    """A subscriber after its GET, a publisher for as long as it POSTs."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._transport is not None:
            _subscribers.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None, "it is connected before it receives"
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            if not head.startswith(b"post"):
                self._buffer = b""
                self._transport.write(_HEAD)
                _subscribers.add(self._transport)
                return
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            event = b"data: " + body + b"\n\n"
            for subscriber in _subscribers:
                subscriber.write(event)
            self._transport.write(_DONE)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
