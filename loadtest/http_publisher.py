"""The publisher for servers that take events over HTTP: POSTs at a rate, or as fast as they answer.

At a rate the load is open: each event goes out when it is due, whatever the server does, and carries
that moment. Without one it is closed: every connection posts again as soon as it has its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import cast

import uvloop

from loadtest.row_writer import be_preferred, stamp

# A server that answers nothing for so long has failed.
_ANSWER_S_MAX = 30.0


class Connection(asyncio.Protocol):
    """One connection: a POST at a time."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def post(self, moment_ns: int) -> None:
        assert self._transport is not None, "it is connected before it posts"
        self._transport.write(self._publisher.request(moment_ns))

    def data_received(self, data: bytes) -> None:
        # Answers are small and come in one piece; whatever comes ends the one POST on its way.
        if not data.startswith((b"HTTP/1.1 20", b"HTTP/1.0 20")):
            self._publisher.failed(f"the server answered {data[:200]!r}")
            return
        self._publisher.answered(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._publisher.failed(f"the server closed a publisher's connection: {error}")


class Publisher:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._body_bytes: int = options.bytes
        self._head = (
            f"POST {options.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {options.bytes}\r\n\r\n"
        )
        self._free: asyncio.Queue[Connection] = asyncio.Queue()
        self._error: str | None = None
        self._ending = False

    def request(self, moment_ns: int) -> bytes:
        body = f'{{"stamp":"{stamp(moment_ns)}","pad":"'
        body += "x" * (self._body_bytes - len(body) - 2) + '"}'
        return (self._head + body).encode()

    def answered(self, connection: Connection) -> None:
        self._free.put_nowait(connection)

    def failed(self, reason: str) -> None:
        if not self._ending:
            self._error = self._error or reason

    async def run(self) -> dict[str, float]:
        options, loop = self._options, asyncio.get_running_loop()
        for _ in range(options.connections):
            _, made = await loop.create_connection(lambda: Connection(self), "127.0.0.1", options.port)
            self._free.put_nowait(made)
        began_ns, number = time.monotonic_ns(), 0
        while self._goes_on(number, time.monotonic_ns() - began_ns):
            due_ns = began_ns + int(number * 1e9 / options.rate) if options.rate else 0
            ahead_s = (due_ns - time.monotonic_ns()) / 1e9
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            async with asyncio.timeout(_ANSWER_S_MAX):
                connection = await self._free.get()
            connection.post(due_ns or time.monotonic_ns())
            number += 1
        took_s = (time.monotonic_ns() - began_ns) / 1e9
        async with asyncio.timeout(_ANSWER_S_MAX):
            for _ in range(options.connections):
                await self._free.get()
        self._ending = True
        if self._error is not None:
            raise SystemExit(self._error)
        return {"published": number, "seconds": took_s}

    def _goes_on(self, number: int, passed_ns: int) -> bool:
        options = self._options
        if self._error is not None or (options.rows and number >= options.rows):
            return False
        if options.rate:
            return bool(number < options.rate * options.seconds)
        return bool(passed_ns < options.seconds * 1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--rate", type=float, default=0.0, help="events a second; 0: as it goes")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=0, help="end after so many; 0: never")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--bytes", type=int, default=280, help="bytes of an event")
    options = parser.parse_args()
    be_preferred()
    print(json.dumps(uvloop.run(Publisher(options).run())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
