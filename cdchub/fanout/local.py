"""Subscribers in this process: the same streams as over the wire, as lines of JSON.

A framer that writes one line a change, and nothing for what only a connection needs. A slow reader is
treated like any other: it leaves the live path and catches up from the log.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from cdchub.errors import CdchubError
from cdchub.fanout.feed import Item
from cdchub.fanout.sink import BufferSink
from cdchub.position import Epoch, Position


class StreamBroken(CdchubError):
    """The hub could not go on with this stream; subscribe again from the last change's position."""

    retryable = True


# A line that is no JSON: the reader raises what follows the mark.
_FAULT = b"!"


class LocalFramer:
    """One line a change. Whoever subscribes here sees changes, and no notices."""

    def changes(self, epoch: Epoch, items: Iterable[Item]) -> list[bytes]:
        return [data + b"\n" for _, data in items]

    def changes_without_position(self, changes: Iterable[bytes]) -> bytes:
        return b"".join([data + b"\n" for data in changes])

    def opening(self, position: Position | None, *, retry_ms: int) -> bytes:
        return b""

    def heartbeat(self, position: Position | None) -> bytes:
        return b""

    def transaction_end(self, position: Position) -> bytes:
        return b""

    def caught_up(self, position: Position) -> bytes:
        return b""

    def reset(
        self,
        *,
        reason: str,
        tables: Iterable[str],
        position: Position,
        oldest: Position,
        resumable: bool,
    ) -> bytes:
        return b""

    def snapshot_begin(self, position: Position, tables: Iterable[str]) -> bytes:
        return b""

    def snapshot_rows(self, lines: bytes) -> bytes:
        return lines

    def snapshot_end(self, position: Position) -> bytes:
        return b""

    def closing(self, position: Position | None, *, retry_ms: int) -> bytes:
        return b""

    def fault(self, *, code: str, message: str, retry_ms: int) -> bytes:
        return _FAULT + message.encode() + b"\n"


async def lines_of(sink: BufferSink) -> AsyncGenerator[bytes, None]:
    """The changes in a local subscriber's sink, until it is closed. Raises `StreamBroken`."""
    async with aclosing(sink.chunks()) as chunks:
        async for chunk in chunks:
            for line in chunk.splitlines():
                if line.startswith(_FAULT):
                    raise StreamBroken(line[len(_FAULT) :].decode())
                yield line
