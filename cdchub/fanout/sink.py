"""A subscriber's bytes on their way to one reader that asks for them at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from cdchub.fanout.ports import SinkListener


class BufferSink:
    """Holds what its reader has not taken yet, of which `bytes_max` is too much. Behind an ASGI
    server, that server's own buffer holds 64 KiB at the most."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._bytes = 0
        self._closed = False
        self._listener: SinkListener | None = None
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def listen(self, listener: SinkListener) -> None:
        self._listener = listener

    def write(self, data: bytes) -> None:
        if self._closed:
            return
        self._parts.append(data)
        self._bytes += len(data)
        self._filled.set()
        self._emptied.clear()
        if self.is_full and self._listener is not None:
            self._listener.sink_is_full()

    @property
    def is_full(self) -> bool:
        return self._bytes > self._bytes_max

    @property
    def buffered_bytes(self) -> int:
        return self._bytes

    async def drained(self) -> None:
        await self._emptied.wait()

    def close(self) -> None:
        self._closed = True
        self._filled.set()
        self._emptied.set()

    def abort(self) -> None:
        self._parts.clear()
        self._bytes = 0
        self.close()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """What was written, joined, as the server asks for more; ends after `close`."""
        while self._parts or not self._closed:
            await self._filled.wait()
            self._filled.clear()
            chunk = b"".join(self._parts)
            self._parts.clear()
            if chunk:
                yield chunk
            # Only now has the server taken the chunk: until then its bytes count as buffered.
            self._bytes = max(0, self._bytes - len(chunk))
            if not self._bytes:
                self._emptied.set()
            if self._parts or self._closed:
                self._filled.set()
