"""What the log, the ring and the catalog hold at this moment: one object for all who ask.

It changes only when capture delivers something, on the loop; `wait_beyond` and `moved` tell when.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from cdchub.catalog import Catalog
from cdchub.change import Entry, ends_transaction
from cdchub.fanout.ports import LogPages
from cdchub.fanout.seam import AwaitLog, GoLive, Gone, ReadLog, ReadRing, View, next_step
from cdchub.log.protocol import Cursor, Expired, HistoryChanged, Narrowing, Page
from cdchub.log.ring import Ring
from cdchub.position import Position


class Present:
    def __init__(
        self,
        *,
        history: HistoryChanged,
        catalog: Catalog,
        ring: Ring,
        log: LogPages,
        with_bases: bool = True,
        is_whole: bool = True,
    ) -> None:
        """`with_bases`: a history without a base snapshot is about to get one. `is_whole`: a
        transaction ends at the head."""
        self.catalog = catalog
        self._with_bases = with_bases
        # False where somebody else reads the source: then its head may be ahead of all we know.
        self.knows_source = True
        self._state = history.state
        self._head_nonce = history.head_nonce
        self._ring = ring
        self._log = log
        self._source_head_lsn = ring.head_lsn
        # False while a transaction that is larger than one delivery has come in part.
        self.is_whole = is_whole
        self._moved = asyncio.Event()

    @property
    def view(self) -> View:
        ring = self._ring
        return View(
            self._state, ring.floor_lsn, ring.head_lsn, self._source_head_lsn, self.knows_source
        )

    @property
    def cursor(self) -> Cursor:
        """The head, as a cursor."""
        return Cursor(self._state.present.number, self._ring.head_lsn)

    @property
    def head(self) -> Position:
        return self._state.present.position(self._ring.head_lsn)

    @property
    def oldest(self) -> Position:
        """The lowest position of the present epoch that can be served."""
        return self._state.present.position(self._state.present.floor_lsn)

    @property
    def beginning(self) -> Cursor:
        """`oldest`, as a cursor."""
        return Cursor(self._state.present.number, self._state.present.floor_lsn)

    @property
    def base_is_coming(self) -> bool:
        return self._with_bases and self._state.present.base_lsn is None

    @property
    def anchor(self) -> tuple[Cursor, int | None]:
        """The head, and the nonce of its row: what a snapshot must find in the source."""
        return self.cursor, self._head_nonce

    @property
    def ring_bytes(self) -> int:
        return self._ring.bytes

    def end_of(self, cursor: Cursor) -> int:
        """The last LSN of a cursor's epoch, which for the present one is the head."""
        info = self._state.by_number(cursor.epoch)
        if info is None or info.number == self._state.present.number:
            return self._ring.head_lsn
        return info.head_lsn

    def position(self, cursor: Cursor) -> Position | None:
        """The name of a cursor, or None where retention has dropped its epoch."""
        info = self._state.by_number(cursor.epoch)
        return None if info is None else info.position(cursor.lsn)

    # Moving on.

    def append(self, entries: Sequence[Entry], *, source_head_lsn: int, nonce: int | None) -> None:
        self._ring.extend(entries)
        if entries:
            self.is_whole = ends_transaction(entries[-1])
        self._head_nonce = nonce
        self._source_head_lsn = max(self._source_head_lsn, source_head_lsn)

    def take_history(self, history: HistoryChanged) -> bool:
        """Other epochs, or other floors. True if deliveries go on elsewhere: in a new epoch, or
        behind a gap."""
        new = history.state.present.number != self._state.present.number
        begun = new or history.skipped
        self._state = history.state
        if begun:
            self._head_nonce = history.head_nonce
            self._ring.restart(head_lsn=history.state.present.head_lsn)
            self.is_whole = True
            self._source_head_lsn = history.state.present.head_lsn
        return begun

    def saw(self, cursor: Cursor) -> None:
        """The source itself has got to `cursor`, whatever the log has taken over yet."""
        if cursor.epoch == self.cursor.epoch:
            self._source_head_lsn = max(self._source_head_lsn, cursor.lsn)

    def tell(self) -> None:
        """Wakes those who wait for something to move."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def moved(self) -> None:
        """Returns at the next delivery."""
        await self._moved.wait()

    async def wait_beyond(self, head: Position, timeout_s: float) -> None:
        """Returns at the next delivery if the head is still `head`, or when the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self.head == head:
                    await self._moved.wait()

    # Reading.

    def recent(self, after_lsn: int, upto_lsn: int) -> Sequence[Entry]:
        """Entries of the ring, which must hold them. `upto_lsn` may lie beyond the head."""
        return self._ring.after(after_lsn, rows_max=upto_lsn - after_lsn)

    async def page(
        self, after: Cursor, narrowing: Narrowing, *, rows_max: int, bytes_max: int
    ) -> Page | Gone:
        """What follows a cursor, from the ring or else the log; an empty page at the head."""
        match next_step(after, self.view):
            case ReadLog(upto):
                try:
                    return await self._log.read(
                        after, upto=upto, narrowing=narrowing, rows_max=rows_max, bytes_max=bytes_max
                    )
                except Expired:
                    return Gone("expired" if after.epoch == self.cursor.epoch else "epoch")
            case ReadRing():
                entries = self._ring.after(after.lsn, rows_max=rows_max, bytes_max=bytes_max)
                return Page(entries, entries[-1].lsn)
            case GoLive() | AwaitLog():
                return Page((), after.lsn)
            case Gone() as gone:
                return gone
