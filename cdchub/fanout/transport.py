"""A subscriber's bytes straight into a transport: no task, queue or timer stands between.

The transport tells when it holds too much (`pause_writing`) and when the peer is gone. What the peer
sends is of no interest to a stream that only the hub writes; a peer that half-closes has left, as
for any server whose response has no end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from cdchub.fanout.ports import SinkListener

# The name of `HandOver` in a request's `scope["extensions"]`.
EXTENSION = "cdchub.handover"

# A stream's client has nothing to say. Some more than a pipelined request, and it is cut off.
_INPUT_BYTES_MAX = 64 * 2**10


class HandOver(Protocol):
    """A server that lets a stream take its connection over."""

    def begin_stream(self) -> None:
        """To be called before the response's head is sent."""
        ...

    @property
    def behind_request(self) -> bytes:
        """What the peer has sent already for another protocol, if it asked for one."""
        ...

    async def take_transport(self) -> asyncio.Transport | None:
        """The connection, once little waits in it; None where the peer is gone. The response's head is
        sent before, or, for a protocol of its own, by whoever takes it."""
        ...


class TransportSink(asyncio.Protocol):
    __slots__ = ("_input_bytes", "_is_full", "_listener", "_transport", "_waiter", "write")

    def __init__(self, transport: asyncio.Transport, *, bytes_max: int) -> None:
        """Takes the transport over. Beyond `bytes_max` in its buffer the sink is full."""
        self._transport = transport
        self._listener: SinkListener | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_full = False
        self._input_bytes = 0
        self.write: Callable[[bytes], None] = transport.write
        transport.set_write_buffer_limits(high=bytes_max)
        transport.set_protocol(self)
        # A server may have paused it, at the end of the request or for a pipelined one; a peer that
        # leaves is noticed by reading.
        transport.resume_reading()

    def listen(self, listener: SinkListener) -> None:
        self._listener = listener

    @property
    def is_full(self) -> bool:
        return self._is_full

    @property
    def buffered_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    async def drained(self) -> None:
        if self._is_full:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        # asyncio's own transports can't be aborted once the connection is lost.
        if self.write is not _discard:
            self._transport.abort()

    # asyncio.Protocol

    def pause_writing(self) -> None:
        self._is_full = True
        if self._listener is not None:
            self._listener.sink_is_full()

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._input_bytes += len(data)
        if self._input_bytes > _INPUT_BYTES_MAX:
            self._transport.abort()

    def eof_received(self) -> bool:
        # A close would wait until the peer has taken what it will never read.
        self._transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # What is written by then is for nobody.
        self.write = _discard
        self._is_full = False
        self._wake()
        if self._listener is not None:
            self._listener.sink_is_lost("stalled" if isinstance(exc, TimeoutError) else "client_closed")
            self._listener = None

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _discard(data: bytes) -> None:
    pass
