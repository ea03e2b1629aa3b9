"""Bringing one subscriber to the head: its replay, its snapshots, and the breaks it meets.

It is the only place where a break is told. Between a reset that a snapshot follows and that
snapshot's last row there is no position, so that whoever is cut in between starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence

from cdchub.catalog import Selection
from cdchub.change import ChangeType, Entry, ends_transaction, is_commit
from cdchub.config import StreamConfig
from cdchub.fanout.conflation import Conflation, batched
from cdchub.fanout.framed import FramedRing
from cdchub.fanout.ports import Snapshots, SnapshotStream
from cdchub.fanout.present import Present
from cdchub.fanout.seam import AwaitLog, FromBase, GoLive, Gone, ReadLog, ReadRing, next_step
from cdchub.fanout.subscriber import Subscriber
from cdchub.fanout.turnstile import Turnstile
from cdchub.log.protocol import Cursor, Narrowing, Page
from cdchub.position import Epoch

logger = logging.getLogger("cdchub.fanout")


Start = Cursor | Gone | FromBase | None


class StreamEnded(Exception):
    """The stream is over; `outcome` names why, for the counters."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class CatchUp:
    """Shared by all who catch up; each run is one subscriber's. `run` returns at the head, without
    having awaited since it saw that."""

    def __init__(
        self,
        present: Present,
        snapshots: Snapshots,
        config: StreamConfig,
        *,
        framed: FramedRing,
        turnstile: Turnstile,
    ) -> None:
        self._present = present
        self._snapshots = snapshots
        self._config = config
        self._framed = framed
        self._turnstile = turnstile
        self.outcomes: Counter[str] = Counter()

    async def run(self, subscriber: Subscriber, start: Start) -> None:
        """From a cursor or the base; after a reset; or (None) with a snapshot.

        Raises `StreamEnded`.
        """
        match start:
            case Cursor():
                subscriber.cursor = start
                subscriber.has_position = True
            case Gone(reason):
                await self._reset(subscriber, reason)
            case FromBase():
                await self._send_base(subscriber)
            case None:
                await self._send_snapshot(subscriber, subscriber.feed.selection)
        while True:
            await self._room_to_write(subscriber)
            match next_step(subscriber.cursor, self._present.view):
                case GoLive():
                    return
                case AwaitLog():
                    await self._await_log(subscriber)
                case Gone(reason):
                    await self._reset(subscriber, reason)
                case ReadRing() | ReadLog() if subscriber.conflate:
                    await self._send_conflated(subscriber)
                case ReadRing():
                    await self._send_recent(subscriber)
                case ReadLog():
                    await self._send_page(subscriber)

    async def _room_to_write(self, subscriber: Subscriber) -> None:
        """Waits for the subscriber's turn, and until its transport has taken most of what it holds.

        Raises `StreamEnded` where it takes nothing for too long.
        """
        sink = subscriber.sink
        while sink.is_full:
            held_bytes = sink.buffered_bytes
            try:
                async with asyncio.timeout(self._config.stall_s):
                    await sink.drained()
            except TimeoutError:
                if sink.buffered_bytes < held_bytes:
                    continue
                position = self._present.position(subscriber.cursor)
                logger.info(
                    "a reader took nothing for %g s and is cut off at %s",
                    self._config.stall_s,
                    position,
                )
                raise StreamEnded("stalled") from None
        await self._turnstile.turn()

    async def _await_log(self, subscriber: Subscriber) -> None:
        """Waits for a log that is about to reach the cursor. Where the source itself has not got so
        far, the position counts as ahead in the end."""
        until_s = asyncio.get_running_loop().time() + self._config.ahead_wait_s
        try:
            async with asyncio.timeout_at(until_s):
                while isinstance(next_step(subscriber.cursor, self._present.view), AwaitLog):
                    await self._present.moved()
        except TimeoutError:
            if subscriber.cursor.lsn > self._present.view.source_head_lsn:
                await self._reset(subscriber, "ahead")

    # Replay.

    async def _send_recent(self, subscriber: Subscriber) -> None:
        found = self._framed.after(subscriber.feed, subscriber.cursor.lsn)
        if found is None:
            # A break is near: entry by entry.
            await self._send_page(subscriber)
            return
        if found.is_open is not None:
            subscriber.sink.write(found.data)
            subscriber.is_open = found.is_open
        subscriber.cursor = Cursor(subscriber.cursor.epoch, found.upto)
        self._tell_end(subscriber, self._present.recent(found.upto - 1, found.upto))

    async def _send_page(self, subscriber: Subscriber) -> None:
        page = await self._page(subscriber)
        if page is None:
            return
        entries, broken = self._upto_break(subscriber, page.entries)
        epoch = self._epoch(subscriber)
        # Written, and noted in the same step, so that no heartbeat runs ahead.
        items = subscriber.feed.matcher.items(entries)
        if items:
            subscriber.sink.write(b"".join(subscriber.feed.frames(epoch, items)))
            subscriber.is_open = not is_commit(items[-1][1])
        if broken is None:
            subscriber.cursor = Cursor(subscriber.cursor.epoch, page.scanned_to)
            self._tell_end(subscriber, entries[-1:])
        else:
            subscriber.cursor = Cursor(subscriber.cursor.epoch, broken.lsn)
            await self._reset(subscriber, "schema", table=broken.table)

    def _tell_end(self, subscriber: Subscriber, last: Sequence[Entry]) -> None:
        """Tells of a transaction that ends with the last entry read, one that the reader doesn't see.

        What the log left out of a page may have been that end: then a later one tells.
        """
        for entry in last if subscriber.is_open else ():
            position = self._present.position(Cursor(subscriber.cursor.epoch, entry.lsn))
            if position is not None and ends_transaction(entry):
                subscriber.sink.write(subscriber.feed.framer.transaction_end(position))
                subscriber.is_open = False

    async def _send_conflated(self, subscriber: Subscriber) -> None:
        """The last state of each key up to the head or a break, as far as memory allows."""
        held = Conflation(bytes_max=self._config.conflate_bytes_max)
        place, broken = subscriber.cursor, None
        while not (held.is_full or broken) and place.lsn < self._present.end_of(place):
            await self._turnstile.turn()
            page = await self._page(subscriber, place)
            if page is None:
                return
            entries, broken = self._upto_break(subscriber, page.entries)
            held.add(subscriber.feed.matcher.items(entries))
            place = Cursor(place.epoch, page.scanned_to if broken is None else broken.lsn)
        epoch = self._epoch(subscriber)
        # The states of different moments, until all are there.
        subscriber.is_open = True
        rows_max, bytes_max = self._config.page_rows, self._config.page_bytes
        for part in batched(held.take(), rows_max=rows_max, bytes_max=bytes_max):
            subscriber.sink.write(b"".join(subscriber.feed.frames(epoch, part)))
            subscriber.cursor = Cursor(place.epoch, part[-1][0])
            await self._room_to_write(subscriber)
        subscriber.cursor = place
        if broken is not None:
            await self._reset(subscriber, "schema", table=broken.table)

    async def _page(self, subscriber: Subscriber, after: Cursor | None = None) -> Page | None:
        """What follows a cursor, by default the subscriber's own; None after a reset instead."""
        page = await self._present.page(
            after or subscriber.cursor,
            subscriber.feed.matcher.narrowing(),
            rows_max=self._config.page_rows,
            bytes_max=self._config.page_bytes,
        )
        if isinstance(page, Gone):
            await self._reset(subscriber, page.reason)
            return None
        return page

    def _upto_break(
        self, subscriber: Subscriber, entries: Sequence[Entry]
    ) -> tuple[Sequence[Entry], Entry | None]:
        """The entries before the first break of a covered table, and that break."""
        covers = subscriber.feed.matcher.covers
        for place, entry in enumerate(entries):
            if entry.type is ChangeType.BREAK and covers(entry.table):
                return entries[:place], entry
        return entries, None

    def _epoch(self, subscriber: Subscriber) -> Epoch:
        """The epoch that the subscriber's cursor is in. Raises `StreamEnded` where it is forgotten."""
        info = self._present.view.log.by_number(subscriber.cursor.epoch)
        if info is None:
            raise StreamEnded("epoch_expired")
        return info.epoch

    # Breaks.

    async def _reset(self, subscriber: Subscriber, reason: str, table: str | None = None) -> None:
        """Tells of a break, once, and goes on behind it: from the present, or with a snapshot."""
        if reason == "epoch":
            subscriber.epoch_breaks += 1
            if subscriber.epoch_breaks > 1:
                raise StreamEnded("second_epoch_break")
        selection = subscriber.feed.selection
        if table is None:
            subscriber.cursor = self._present.cursor
            self._tell_reset(
                subscriber, reason, [t.name for t in self._present.catalog.chosen(selection)]
            )
        else:
            self._tell_reset(subscriber, reason, [table])
            selection = selection.only([table])
        subscriber.has_position = True
        if subscriber.snapshot:
            await self._send_snapshot(subscriber, selection, after_break=table is not None)

    def _tell_reset(self, subscriber: Subscriber, reason: str, tables: Sequence[str]) -> None:
        self.outcomes[f"reset_{reason}"] += 1
        subscriber.told_caught_up = False
        position = self._present.position(subscriber.cursor)
        if position is None:
            raise StreamEnded("epoch_expired")
        subscriber.sink.write(
            subscriber.feed.framer.reset(
                reason=reason,
                tables=tables,
                position=position,
                oldest=self._present.oldest,
                resumable=not subscriber.snapshot,
            )
        )

    # Snapshots.

    async def _send_base(self, subscriber: Subscriber) -> None:
        """Sends the log's base snapshot; without one, its changes from the oldest on."""
        with contextlib.suppress(TimeoutError):
            # A new history's base is still being read.
            async with asyncio.timeout(self._config.base_wait_s):
                while self._present.base_is_coming:
                    await self._present.moved()
        if self._present.view.log.present.base_lsn is None:
            subscriber.cursor = self._present.beginning
        else:
            async with self._snapshots.open_base(subscriber.feed.selection) as base:
                await self._send_rows(subscriber, subscriber.feed.selection, base)
        subscriber.has_position = True

    async def _send_snapshot(
        self, subscriber: Subscriber, selection: Selection, *, after_break: bool = False
    ) -> None:
        """Sends the present rows of `selection`, which may be some of the subscription's tables."""
        subscriber.has_position = False
        partial, sent = selection != subscriber.feed.selection, False
        while not sent:
            # A snapshot from before the break would lead to the break again.
            at_least_lsn = subscriber.cursor.lsn if after_break else 0
            async with self._snapshots.open(selection, at_least_lsn=at_least_lsn) as snapshot:
                broken = None
                if partial:
                    if snapshot.cursor.epoch != subscriber.cursor.epoch:
                        # Another history began meanwhile: some tables alone won't do any more.
                        await self._reset(subscriber, "epoch")
                        return
                    broken = await self._send_others(subscriber, selection, snapshot.cursor.lsn)
                if broken is None:
                    await self._send_rows(subscriber, selection, snapshot)
                    sent = True
                else:
                    # Another table broke before this snapshot: it joins in a newer one.
                    self._tell_reset(subscriber, "schema", [broken])
                    selection = selection.only([*(selection.tables or ()), broken])
        subscriber.has_position = True

    async def _send_rows(
        self, subscriber: Subscriber, selection: Selection, snapshot: SnapshotStream
    ) -> None:
        feed, framer = subscriber.feed, subscriber.feed.framer
        position = self._present.position(snapshot.cursor)
        if position is None:
            raise StreamEnded("epoch_expired")
        tables = selection.tables or snapshot.tables
        subscriber.sink.write(framer.snapshot_begin(position, tables))
        async for lines in snapshot.lines():
            await self._room_to_write(subscriber)
            subscriber.sink.write(feed.snapshot_rows(position.epoch, lines))
        subscriber.sink.write(framer.snapshot_end(position))
        subscriber.is_open = False
        subscriber.cursor = snapshot.cursor
        self._present.saw(snapshot.cursor)

    async def _send_others(self, subscriber: Subscriber, but: Selection, upto: int) -> str | None:
        """The changes up to a snapshot of the tables that it does not cover, without positions.

        Stops at the break of such a table, and returns its name.
        """
        feed, without = subscriber.feed, set(but.tables or ())
        while subscriber.cursor.lsn < upto:
            page = await self._present.page(
                subscriber.cursor,
                Narrowing(),
                rows_max=self._config.page_rows,
                bytes_max=self._config.page_bytes,
            )
            if isinstance(page, Gone):
                raise StreamEnded("expired_in_snapshot")
            if page.scanned_to == subscriber.cursor.lsn:
                async with asyncio.timeout(self._config.ahead_wait_s):
                    await self._present.moved()
                continue
            wanted = [e for e in page.entries if e.lsn <= upto and e.table not in without]
            others, broken = self._upto_break(subscriber, wanted)
            changes = [data for _, data in feed.matcher.items(others)]
            if changes:
                epoch = self._epoch(subscriber)
                subscriber.sink.write(feed.changes_without_position(epoch, changes))
            reached = min(page.scanned_to, upto) if broken is None else broken.lsn
            subscriber.cursor = Cursor(subscriber.cursor.epoch, reached)
            if broken is not None:
                return broken.table
            await self._room_to_write(subscriber)
        return None
