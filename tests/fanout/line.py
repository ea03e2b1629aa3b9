"""The line between the fan-out and a simulated reader: bytes wait in it until the reader takes them."""

from __future__ import annotations

import asyncio

from cdchub.fanout.ports import SinkListener


class SimSink:
    """A line with a reader at its end, which takes bytes when it is pumped."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()
        self._drained = asyncio.Event()
        self._listener: SinkListener | None = None
        self.most_bytes = 0
        self.closed = False

    def listen(self, listener: SinkListener) -> None:
        self._listener = listener

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after close"
        self._buffer += data
        self.most_bytes = max(self.most_bytes, len(self._buffer))
        if self.is_full:
            self._drained.clear()
            if self._listener is not None:
                self._listener.sink_is_full()

    @property
    def is_full(self) -> bool:
        return len(self._buffer) > self._bytes_max

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    async def drained(self) -> None:
        if self.is_full:
            await self._drained.wait()

    def close(self) -> None:
        self.closed = True
        self._drained.set()

    def abort(self) -> None:
        self._buffer.clear()
        self.close()

    def take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        if not self.is_full:
            self._drained.set()
        return data
