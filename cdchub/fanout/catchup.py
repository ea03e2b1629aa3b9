"""Bringing one subscriber to the head: its replay, its snapshots, and the breaks it meets.

It is the only place where a break is told. Between a reset that a snapshot follows and that
snapshot's last row there is no position, so that whoever is cut in between starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from cdchub.catalog import Selection
from cdchub.change import ChangeType, Entry
from cdchub.config import StreamConfig
from cdchub.fanout.feed import Feed, FrameOnce
from cdchub.fanout.ports import Sink, Snapshots, SnapshotStream
from cdchub.fanout.present import Present
from cdchub.fanout.subscriber import (
    AwaitLog,
    FromBase,
    GoLive,
    Gone,
    SubscriberEvent,
    SubscriberState,
    next_state,
    next_step,
)
from cdchub.log.protocol import Cursor, Narrowing

logger = logging.getLogger("cdchub.fanout")


Start = Cursor | Gone | FromBase | None


class Subscriber:
    """One stream. `cursor` is its place unless it is live; then its place is the head."""

    def __init__(self, feed: Feed, sink: Sink, *, snapshot: bool, transport: str) -> None:
        self.feed = feed
        self.sink = sink
        self.snapshot = snapshot
        self.transport = transport
        self.state = SubscriberState.CATCHING_UP
        self.cursor = Cursor(0, 0)
        # False between a snapshot's (or its reset's) first event and its last row.
        self.has_position = False
        self.told_caught_up = False
        self.epoch_breaks = 0
        self.task: asyncio.Task[None] | None = None

    def on(self, event: SubscriberEvent) -> None:
        self.state = next_state(self.state, event)


class StreamEnded(Exception):
    """The stream is over; `outcome` names why, for the counters."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class CatchUp:
    """One run from where a subscriber is to the head. `run` returns there, without awaiting since."""

    def __init__(
        self,
        subscriber: Subscriber,
        present: Present,
        snapshots: Snapshots,
        config: StreamConfig,
        *,
        outcomes: Counter[str],
        retry_ms: Callable[[], int],
    ) -> None:
        self._subscriber = subscriber
        self._present = present
        self._snapshots = snapshots
        self._config = config
        self._outcomes = outcomes
        self._retry_ms = retry_ms
        self._await_until_s: float | None = None

    async def run(self, start: Start) -> None:
        """From a cursor or the base; after a reset; or (None) with a snapshot.

        Raises `StreamEnded`.
        """
        subscriber = self._subscriber
        match start:
            case Cursor():
                subscriber.cursor = start
                subscriber.has_position = True
            case Gone(reason):
                await self._reset(reason)
            case FromBase():
                await self._send_base()
            case None:
                await self._send_snapshot(subscriber.feed.selection)
        while True:
            await self._room_to_write()
            match next_step(subscriber.cursor, self._present.view):
                case GoLive():
                    self._tell_caught_up()
                    return
                case AwaitLog():
                    await self._await_log()
                case Gone(reason):
                    await self._reset(reason)
                case _:
                    await self._send_page()

    def _tell_caught_up(self) -> None:
        subscriber = self._subscriber
        if not subscriber.told_caught_up:
            subscriber.told_caught_up = True
            subscriber.sink.write(subscriber.feed.framer.caught_up(self._present.head))

    async def _room_to_write(self) -> None:
        """Waits until the transport has taken what it holds. Raises `StreamEnded` at a stall."""
        if self._subscriber.sink.buffered_bytes == 0:
            return
        try:
            async with asyncio.timeout(self._config.stall_s):
                await self._subscriber.sink.drained()
        except TimeoutError:
            logger.info("a reader took nothing for %g s and is closed", self._config.stall_s)
            raise StreamEnded("stalled") from None

    async def _await_log(self) -> None:
        """Waits for a log that is about to reach the cursor. Where the source itself has not got so
        far, the position counts as ahead in the end."""
        view = self._present.view
        if self._subscriber.cursor.lsn <= view.source_head_lsn:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.ahead_wait_s):
                    await self._present.moved()
            return
        loop = asyncio.get_running_loop()
        if self._await_until_s is None:
            self._await_until_s = loop.time() + self._config.ahead_wait_s
        if loop.time() >= self._await_until_s:
            self._await_until_s = None
            await self._reset("ahead")
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._await_until_s):
                await self._present.moved()

    # Replay.

    async def _send_page(self) -> None:
        subscriber = self._subscriber
        epoch = subscriber.cursor.epoch
        page = await self._present.page(
            subscriber.cursor,
            subscriber.feed.matcher.narrowing(),
            rows_max=self._config.page_rows,
            bytes_max=self._config.page_bytes,
        )
        if isinstance(page, Gone):
            await self._reset(page.reason)
            return
        covers = subscriber.feed.matcher.covers
        for place, entry in enumerate(page.entries):
            if entry.type is ChangeType.BREAK and covers(entry.table):
                self._write_entries(page.entries[: place + 1])
                await self._reset("schema", table=entry.table)
                return
        self._write_entries(page.entries)
        subscriber.cursor = Cursor(epoch, page.scanned_to)

    def _write_entries(self, entries: Sequence[Entry]) -> None:
        """Writes what matches, and notes it in the same step, so that no heartbeat runs ahead."""
        subscriber = self._subscriber
        info = self._present.view.log.by_number(subscriber.cursor.epoch)
        if info is None:
            raise StreamEnded("epoch_expired")
        data = subscriber.feed.frames(entries, FrameOnce(info.position))
        if data:
            subscriber.sink.write(data)
        if entries:
            subscriber.cursor = Cursor(subscriber.cursor.epoch, entries[-1].lsn)

    # Breaks.

    async def _reset(self, reason: str, table: str | None = None) -> None:
        """Tells of a break, once, and goes on behind it: from the present, or with a snapshot."""
        subscriber = self._subscriber
        if reason == "epoch":
            subscriber.epoch_breaks += 1
            if subscriber.epoch_breaks > 1:
                framer = subscriber.feed.framer
                subscriber.sink.write(framer.closing(None, retry_ms=self._retry_ms()))
                raise StreamEnded("second_epoch_break")
        selection = subscriber.feed.selection
        if table is None:
            subscriber.cursor = self._present.cursor
            self._tell_reset(reason, [t.name for t in self._present.catalog.chosen(selection)])
        else:
            self._tell_reset(reason, [table])
            selection = Selection((table,), selection.room)
        subscriber.has_position = True
        if subscriber.snapshot:
            await self._send_snapshot(selection, after_break=table is not None)

    def _tell_reset(self, reason: str, tables: Sequence[str]) -> None:
        subscriber = self._subscriber
        self._outcomes[f"reset_{reason}"] += 1
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

    async def _send_base(self) -> None:
        """Sends the log's base snapshot; without one, its changes from the oldest on."""
        subscriber = self._subscriber
        with contextlib.suppress(TimeoutError):
            # A new history's base is still being read.
            async with asyncio.timeout(self._config.base_wait_s):
                while self._present.base_is_coming:
                    await self._present.moved()
        if self._present.view.log.present.base_lsn is None:
            subscriber.cursor = self._present.beginning
        else:
            async with self._snapshots.open_base(subscriber.feed.selection) as base:
                await self._send_rows(subscriber.feed.selection, base)
        subscriber.has_position = True

    async def _send_snapshot(self, selection: Selection, *, after_break: bool = False) -> None:
        """Sends the present rows of `selection`, which may be some of the subscription's tables."""
        subscriber = self._subscriber
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
                        await self._reset("epoch")
                        return
                    broken = await self._send_others(selection, snapshot.cursor.lsn)
                if broken is None:
                    await self._send_rows(selection, snapshot)
                    sent = True
                else:
                    # Another table broke before this snapshot: it joins in a newer one.
                    self._tell_reset("schema", [broken])
                    tables = {*(selection.tables or ()), broken}
                    selection = Selection(tuple(sorted(tables)), selection.room)
        subscriber.has_position = True

    async def _send_rows(self, selection: Selection, snapshot: SnapshotStream) -> None:
        subscriber, framer = self._subscriber, self._subscriber.feed.framer
        position = self._present.position(snapshot.cursor)
        if position is None:
            raise StreamEnded("epoch_expired")
        tables = selection.tables or snapshot.tables
        subscriber.sink.write(framer.snapshot_begin(position, tables))
        async for lines in snapshot.lines():
            subscriber.sink.write(framer.snapshot_rows(lines))
            await self._room_to_write()
        subscriber.sink.write(framer.snapshot_end(position))
        subscriber.cursor = snapshot.cursor
        self._present.saw(snapshot.cursor)

    async def _send_others(self, but: Selection, upto: int) -> str | None:
        """The changes up to a snapshot of the tables that it does not cover, without positions.

        Stops at the break of such a table, and returns its name.
        """
        subscriber = self._subscriber
        matcher, framer = subscriber.feed.matcher, subscriber.feed.framer
        without = set(but.tables or ())
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
            for entry in page.entries:
                if entry.lsn > upto:
                    break
                subscriber.cursor = Cursor(subscriber.cursor.epoch, entry.lsn)
                if entry.table in without or not matcher.covers(entry.table):
                    continue
                if entry.type is ChangeType.BREAK:
                    return entry.table
                data = matcher.data(entry)
                if data is not None:
                    subscriber.sink.write(framer.change_without_position(data))
            subscriber.cursor = Cursor(subscriber.cursor.epoch, min(page.scanned_to, upto))
            await self._room_to_write()
        return None
