"""A WebSocket on a server that is not ours: it frames the messages (ASGI 3.0, "WebSocket")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Send

from cdchub.ws.session import Session

_UNSUPPORTED_DATA, _TOO_BIG, _ABNORMAL = 1003, 1009, 1006


class Carried:
    """One peer. It is the `Wire` of its session; messages are lines of JSON."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        buffer_bytes_max: int,
        message_bytes_max: int,
        stall_s: float,
    ) -> None:
        """Beyond `buffer_bytes_max` it is full; a peer that takes nothing for `stall_s` is given up."""
        self._receive = receive
        self._send = send
        self._buffer_bytes_max = buffer_bytes_max
        self._message_bytes_max = message_bytes_max
        self._stall_s = stall_s
        self._lines: list[bytes] = []
        self._bytes = 0
        self._filled = asyncio.Event()
        self._closing: tuple[int, str] | None = None
        self._session: Session | None = None
        self.write: Callable[[bytes], None] = self._write

    async def run(self, session: Session) -> None:
        """Returns when the connection has ended."""
        self._session = session
        session.begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(session))
                await self._carry()
                reading.cancel()
        finally:
            session.is_lost("client_closed")

    # Wire

    def _write(self, data: bytes) -> None:
        if self._closing is not None:
            return
        self._lines.append(data)
        self._bytes += len(data)
        self._filled.set()
        if self.is_full and self._session is not None:
            self._session.is_full()

    @property
    def is_full(self) -> bool:
        return self._bytes > self._buffer_bytes_max

    @property
    def buffered_bytes(self) -> int:
        return self._bytes

    def close(self, code: int, reason: str) -> None:
        if self._closing is None:
            self._closing = code, reason
            self._filled.set()

    def abort(self) -> None:
        self._lines.clear()
        self.close(_ABNORMAL, "")

    def ping(self) -> None:
        """The server does."""

    # Inside.

    async def _carry(self) -> None:
        """Hands on what was written, until the connection is to be closed."""
        try:
            while self._lines or self._closing is None:
                await self._filled.wait()
                self._filled.clear()
                lines, self._lines = self._lines, []
                for line in b"".join(lines).splitlines():
                    async with asyncio.timeout(self._stall_s):
                        await self._send({"type": "websocket.send", "text": line.decode()})
                self._bytes = sum(map(len, self._lines))
                if self._session is not None and not self.is_full:
                    self._session.has_drained()
                if self._lines or self._closing is not None:
                    self._filled.set()
            code, reason = self._closing
            if code != _ABNORMAL:
                async with asyncio.timeout(self._stall_s):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except TimeoutError:
            if self._session is not None:
                self._session.is_lost("stalled")
        except OSError:
            # The server's way to say that the peer is gone (ASGI, "Disconnected Client").
            self._closing = self._closing or (_ABNORMAL, "")

    async def _read(self, session: Session) -> None:
        while True:
            # Whoever does not take the answers shall not go on asking.
            await session.drained()
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self.abort()
                return
            text = message.get("text")
            if text is None:
                session.close(_UNSUPPORTED_DATA, "messages are text: JSON")
            elif len(text) > self._message_bytes_max:
                session.close(_TOO_BIG, f"a message has at most {self._message_bytes_max} bytes")
            else:
                session.receive(text.encode("utf-8", "surrogatepass"))
