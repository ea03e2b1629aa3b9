"""What the fan-out needs of the world: a sink per stream, pages of the log, snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Protocol

from cdchub.catalog import Selection
from cdchub.log.protocol import Cursor, Narrowing, Page


class Sink(Protocol):
    """Where a subscriber's bytes go. A transport makes one; the core never waits in `write`."""

    def write(self, data: bytes) -> None: ...

    @property
    def buffered_bytes(self) -> int: ...

    async def drained(self) -> None:
        """Returns when little is buffered any more, or the peer is gone."""
        ...

    def close(self) -> None:
        """Ends the stream after what is buffered; nothing is written afterwards."""
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
