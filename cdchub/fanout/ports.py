"""What the fan-out needs of the world: a sink per stream, pages of the log, snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from cdchub.catalog import Selection
from cdchub.log.protocol import Cursor, Narrowing, Page


class SinkListener(Protocol):
    """Whom a sink tells what becomes of it: its subscriber."""

    def sink_is_full(self) -> None: ...

    def sink_is_lost(self, outcome: str) -> None: ...


class Sink(Protocol):
    """Where a subscriber's bytes go. A transport makes one; the core never waits in `write`."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """A callable rather than a method: a round calls the transport's own, with nothing between."""
        ...

    def listen(self, listener: SinkListener) -> None:
        """`listener` is told, during a `write` or at any time, that the sink holds too much; and that
        its peer is gone."""
        ...

    @property
    def is_full(self) -> bool: ...

    @property
    def buffered_bytes(self) -> int: ...

    async def drained(self) -> None:
        """Returns when the sink is full no longer, or the peer is gone."""
        ...

    def close(self) -> None:
        """Ends the stream after what is buffered; nothing is written afterwards."""
        ...

    def abort(self) -> None:
        """Ends the stream now."""
        ...


class SnapshotStream(Protocol):
    """A spooled snapshot. `lines` yields whole lines, at the pace of whoever asks."""

    @property
    def cursor(self) -> Cursor:
        """The epoch and the LSN that it shows."""
        ...

    @property
    def tables(self) -> Sequence[str]: ...

    def lines(self) -> AsyncIterator[bytes]: ...


class Snapshots(Protocol):
    def open(
        self, selection: Selection, *, at_least_lsn: int = 0
    ) -> contextlib.AbstractAsyncContextManager[SnapshotStream]:
        """A snapshot of the present epoch, as SNAPSHOT changes. Raises `CdchubError`, OSError.

        It may be shared and a moment old, but shows LSN `at_least_lsn` or a later one.
        """
        ...

    def open_base(self, selection: Selection) -> contextlib.AbstractAsyncContextManager[SnapshotStream]:
        """The oldest base snapshot of the present epoch, which must have one."""
        ...


class LogPages(Protocol):
    """The log, read off the loop."""

    def read(
        self, after: Cursor, *, upto: int, narrowing: Narrowing, rows_max: int, bytes_max: int
    ) -> Awaitable[Page]: ...
