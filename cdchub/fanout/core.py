"""Fan-out: the one module of it that meets the event loop.

Deliveries from capture come in, rounds of bytes go out to the live subscribers of each feed. Every
subscriber that is not live has one task, which brings it to the head and then ends; live ones have
none. A subscriber whose transport is full leaves the live set and has a task again, so a slow reader
costs a bounded number of bytes and never holds anybody up.

Everything here runs on one loop, so state changes only between awaits; see `subscriber` for the
seam. What it does *not* do: read the source, or know a wire format.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

from cdchub.catalog import Catalog, Selection
from cdchub.change import ChangeType, Entry
from cdchub.config import StreamConfig
from cdchub.errors import CdchubError, Overloaded
from cdchub.fanout.feed import Feed, FrameOnce, Framer
from cdchub.fanout.subscriber import (
    AwaitLog,
    GoLive,
    Gone,
    ReadLog,
    ReadRing,
    SubscriberEvent,
    SubscriberState,
    View,
    next_state,
    next_step,
)
from cdchub.log.protocol import (
    Appended,
    Cursor,
    Delivery,
    Expired,
    HistoryChanged,
    LogState,
    Narrowing,
    Page,
    SchemaChanged,
)
from cdchub.log.ring import Ring
from cdchub.position import Position

logger = logging.getLogger("cdchub.fanout")


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
    def open(self, selection: Selection) -> contextlib.AbstractAsyncContextManager[SnapshotStream]:
        """A snapshot of the present epoch, as SNAPSHOT changes. Raises `CdchubError`, OSError."""
        ...


class LogPages(Protocol):
    """The log, read off the loop."""

    def read(
        self, after: Cursor, *, upto: int, narrowing: Narrowing, rows_max: int, bytes_max: int
    ) -> Awaitable[Page]: ...


class Subscriber:
    """One stream. `cursor` is its place unless it is live; then its place is the head."""

    def __init__(self, feed: Feed, sink: Sink, *, snapshot: bool, transport: str) -> None:
        self.feed = feed
        self.sink = sink
        self.snapshot = snapshot
        self.transport = transport
        self.state = SubscriberState.CATCHING_UP
        self.cursor = Cursor(0, 0)
        # Between a snapshot's (or its reset's) first event and its last row there is no position.
        self.has_position = False
        self.told_caught_up = False
        self.epoch_breaks = 0
        self.task: asyncio.Task[None] | None = None

    def on(self, event: SubscriberEvent) -> None:
        self.state = next_state(self.state, event)


class _Ended(Exception):
    """The stream is over; `outcome` names why, for the counters."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Core:
    def __init__(
        self,
        config: StreamConfig,
        *,
        history: HistoryChanged,
        catalog: Catalog,
        ring: Ring,
        log: LogPages,
        snapshots: Snapshots,
        taken: Callable[[], None],
    ) -> None:
        """`taken` is called once for each `Appended` delivery that has been worked off."""
        self._config = config
        self._log = log
        self._snapshots = snapshots
        self._taken = taken
        self._ring = ring
        self._state = history.state
        self._head_nonce = history.head_nonce
        self._source_head_lsn = ring.head_lsn
        self.catalog = catalog
        self._feeds: dict[tuple[int, Selection], Feed] = {}
        self._live: dict[Feed, set[Subscriber]] = {}
        self._others: set[Subscriber] = set()
        self._moved = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: asyncio.TaskGroup | None = None
        self._random = random.Random()
        self.draining = False
        self.outcomes: Counter[str] = Counter()

    # The present, for everyone who asks.

    @property
    def view(self) -> View:
        ring = self._ring
        return View(self._state, ring.floor_lsn, ring.head_lsn, self._source_head_lsn)

    @property
    def head(self) -> Position:
        return self._state.present.position(self._ring.head_lsn)

    @property
    def anchor(self) -> tuple[Cursor, int | None]:
        """The head, and the nonce of its row: what a snapshot must find in the source."""
        return self._cursor_at_head(), self._head_nonce

    @property
    def ring_bytes(self) -> int:
        return self._ring.bytes

    def position(self, cursor: Cursor) -> Position | None:
        """The name of a cursor, or None where retention has dropped its epoch."""
        info = self._state.by_number(cursor.epoch)
        return None if info is None else info.position(cursor.lsn)

    @property
    def oldest(self) -> Position:
        return self._state.present.position(self._state.present.floor_lsn)

    def retry_ms(self) -> int:
        """A reconnection time around the configured one, so that a crowd comes back spread out."""
        spread = self._config.retry_spread
        return int(self._config.retry_ms * self._random.uniform(1 - spread, 1 + spread))

    @property
    def subscriber_count(self) -> int:
        return len(self._others) + sum(map(len, self._live.values()))

    def subscribers(self) -> list[Subscriber]:
        return [sub for live in self._live.values() for sub in live] + list(self._others)

    async def wait_beyond(self, head: Position, timeout_s: float) -> None:
        """Returns when the head has moved past `head`, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.head == head:
                    await self._moved.wait()

    async def page(
        self, after: Cursor, narrowing: Narrowing, *, rows_max: int, bytes_max: int
    ) -> Page | Gone:
        """What the log has after a cursor, for those who page through it themselves."""
        match next_step(after, self.view):
            case ReadLog(upto):
                try:
                    return await self._log.read(
                        after,
                        upto=upto,
                        narrowing=narrowing,
                        rows_max=rows_max,
                        bytes_max=bytes_max,
                    )
                except Expired:
                    return Gone("expired" if after.epoch == self._state.present.number else "epoch")
            case ReadRing():
                entries = self._ring.after(after.lsn, rows_max=rows_max)
                return Page(entries, entries[-1].lsn)
            case GoLive() | AwaitLog():
                return Page((), after.lsn)
            case Gone() as gone:
                return gone

    # Deliveries from capture.

    def accept(self, delivery: Delivery) -> None:
        """Takes in what capture delivers, in order. Called on the loop."""
        match delivery:
            case Appended(entries, source_head_lsn):
                self._source_head_lsn = source_head_lsn
                self._round(entries)
                self._taken()
            case HistoryChanged(state, head_nonce):
                self._new_state(state, head_nonce)
            case SchemaChanged(catalog):
                self.catalog = catalog
                for feed in self._feeds.values():
                    feed.recatalog(catalog)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _round(self, entries: Sequence[Entry]) -> None:
        before = self._cursor_at_head()
        self._ring.extend(entries)
        self._head_nonce = entries[-1].nonce
        broken = {entry.table for entry in entries if entry.type is ChangeType.BREAK}
        touched = {entry.table for entry in entries}
        frame = FrameOnce(self._state.present.position)
        for feed, live in self._live.items():
            if not live or not any(feed.matcher.covers(table) for table in touched):
                continue
            if any(feed.matcher.covers(table) for table in broken):
                # Breaks are rare, and told in one place only: where readers catch up.
                for subscriber in list(live):
                    self._leave_live(subscriber, SubscriberEvent.MET_BREAK, before)
                continue
            data = feed.frames(entries, frame)
            if data:
                self._write_round(live, data)

    def _write_round(self, live: set[Subscriber], data: bytes) -> None:
        full = []
        for subscriber in live:
            subscriber.sink.write(data)
            if subscriber.sink.buffered_bytes > self._config.buffer_bytes_max:
                full.append(subscriber)
        for subscriber in full:
            self.outcomes["fell_behind"] += 1
            self._leave_live(subscriber, SubscriberEvent.FELL_BEHIND, self._cursor_at_head())

    def _new_state(self, state: LogState, head_nonce: int | None) -> None:
        before = self._cursor_at_head()
        if state.present.number != self._state.present.number:
            self._state = state
            self._head_nonce = head_nonce
            self._ring.restart(head_lsn=state.present.head_lsn)
            self._source_head_lsn = state.present.head_lsn
            for live in self._live.values():
                for subscriber in list(live):
                    self._leave_live(subscriber, SubscriberEvent.MET_BREAK, before)
        else:
            self._state = state

    def _cursor_at_head(self) -> Cursor:
        return Cursor(self._state.present.number, self._ring.head_lsn)

    # Subscribing.

    async def run(self) -> None:
        """Owns every task of the fan-out until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                await asyncio.sleep(self._config.heartbeat_s)
                self._heartbeat()

    def subscribe(
        self,
        selection: Selection,
        framer: Framer,
        sink: Sink,
        start: Cursor | Gone | None,
        *,
        snapshot: bool,
        transport: str,
    ) -> Subscriber:
        """Begins a stream at a cursor; after a reset (`Gone`); or with a snapshot (None).

        Raises `Overloaded` while the hub drains or has as many subscribers as it takes.
        """
        self.admit()
        assert self._tasks is not None, "the core runs before anybody subscribes"
        feed = self._join(selection, framer)
        subscriber = Subscriber(feed, sink, snapshot=snapshot, transport=transport)
        self._others.add(subscriber)
        self.outcomes["opened"] += 1
        subscriber.task = self._tasks.create_task(self._bring_up(subscriber, start))
        return subscriber

    def admit(self) -> None:
        """Raises `Overloaded` where one more stream is too many."""
        if self.draining:
            self.outcomes["refused_draining"] += 1
            raise Overloaded("the hub is shutting down; come back in a moment")
        if self.subscriber_count >= self._config.subscribers_max:
            self.outcomes["refused_full"] += 1
            raise Overloaded("the hub has as many subscribers as it takes; try again later")

    def unsubscribe(self, subscriber: Subscriber, outcome: str = "client_closed") -> None:
        """Forgets a subscriber. Harmless for one that is closed already."""
        if subscriber.state is SubscriberState.CLOSED:
            return
        subscriber.on(SubscriberEvent.CLOSED)
        self.outcomes[outcome] += 1
        self._part(subscriber)
        subscriber.sink.close()
        task, subscriber.task = subscriber.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def drain(self) -> None:
        """Refuses new streams and ends the open ones, spread over the drain window."""
        self.draining = True
        window_s = self._config.drain_s
        loop = asyncio.get_running_loop()
        for subscriber in self.subscribers():
            loop.call_later(self._random.uniform(0, window_s), self._end_politely, subscriber)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(window_s):
                await self._empty.wait()
        for subscriber in self.subscribers():
            self._end_politely(subscriber)

    def _end_politely(self, subscriber: Subscriber) -> None:
        if subscriber.state is not SubscriberState.CLOSED:
            position = self._position_of(subscriber)
            subscriber.sink.write(subscriber.feed.framer.closing(position, retry_ms=self.retry_ms()))
            self.unsubscribe(subscriber, "drained")

    def _join(self, selection: Selection, framer: Framer) -> Feed:
        key = (id(framer), selection)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(selection, self.catalog, framer)
            self._live[feed] = set()
        feed.members += 1
        self._empty.clear()
        return feed

    def _part(self, subscriber: Subscriber) -> None:
        feed = subscriber.feed
        self._others.discard(subscriber)
        self._live[feed].discard(subscriber)
        feed.members -= 1
        if not feed.members:
            del self._feeds[id(feed.framer), feed.selection]
            del self._live[feed]
        if not self._feeds:
            self._empty.set()

    def _leave_live(self, subscriber: Subscriber, event: SubscriberEvent, cursor: Cursor) -> None:
        subscriber.on(event)
        subscriber.cursor = cursor
        self._live[subscriber.feed].discard(subscriber)
        self._others.add(subscriber)
        assert self._tasks is not None
        subscriber.task = self._tasks.create_task(self._bring_up(subscriber, cursor))

    def _position_of(self, subscriber: Subscriber) -> Position | None:
        if subscriber.state is SubscriberState.LIVE:
            return self.head
        return self.position(subscriber.cursor) if subscriber.has_position else None

    def _heartbeat(self) -> None:
        head = self.head
        for feed, live in self._live.items():
            if live:
                self._write_round(set(live), feed.framer.heartbeat(head))
        for subscriber in self._others:
            # A transport that is full shows life when it drains; more bytes would not help it.
            if subscriber.sink.buffered_bytes <= self._config.buffer_bytes_max:
                beat = subscriber.feed.framer.heartbeat(self._position_of(subscriber))
                subscriber.sink.write(beat)

    # Bringing one subscriber to the head.

    async def _bring_up(self, subscriber: Subscriber, start: Cursor | Gone | None) -> None:
        """The life of a subscriber that is not live, with every way it can end."""
        try:
            await self._catch_up(subscriber, start)
        except _Ended as ended:
            self.unsubscribe(subscriber, ended.outcome)
        except asyncio.CancelledError:
            self.unsubscribe(subscriber, "cancelled")
            raise
        except Exception as error:
            self._fault(subscriber, error)

    def _fault(self, subscriber: Subscriber, error: Exception) -> None:
        error_id = secrets.token_hex(4)
        if isinstance(error, CdchubError | OSError):
            logger.error("a stream ends with error %s: %s", error_id, error)
        else:
            logger.error("a stream ends with error %s", error_id, exc_info=error)
        subscriber.sink.write(
            subscriber.feed.framer.fault(
                code="internal",
                message=f"the hub could not go on with this stream (error {error_id})",
                retry_ms=self.retry_ms(),
            )
        )
        self.unsubscribe(subscriber, "fault")

    async def _catch_up(self, subscriber: Subscriber, start: Cursor | Gone | None) -> None:
        match start:
            case Cursor():
                subscriber.cursor = start
                subscriber.has_position = True
            case Gone(reason):
                await self._reset(subscriber, reason)
            case None:
                await self._send_snapshot(subscriber, subscriber.feed.selection)
        waited_until_s: float | None = None
        while True:
            await self._room_to_write(subscriber)
            match next_step(subscriber.cursor, self.view):
                case GoLive():
                    self._go_live(subscriber)
                    return
                case ReadRing():
                    await self._send(
                        subscriber,
                        self._ring.after(subscriber.cursor.lsn, rows_max=self._config.page_rows),
                    )
                case ReadLog(upto):
                    await self._send_page(subscriber, upto)
                case AwaitLog():
                    waited_until_s = await self._await_log(subscriber, waited_until_s)
                case Gone(reason):
                    await self._reset(subscriber, reason)

    def _go_live(self, subscriber: Subscriber) -> None:
        if not subscriber.told_caught_up:
            subscriber.told_caught_up = True
            subscriber.sink.write(subscriber.feed.framer.caught_up(self.head))
        subscriber.on(SubscriberEvent.CAUGHT_UP)
        subscriber.task = None
        self._others.discard(subscriber)
        self._live[subscriber.feed].add(subscriber)

    async def _room_to_write(self, subscriber: Subscriber) -> None:
        """Waits until the transport has taken most of what it holds. Raises `_Ended` at a stall."""
        if subscriber.sink.buffered_bytes == 0:
            return
        try:
            async with asyncio.timeout(self._config.stall_s):
                await subscriber.sink.drained()
        except TimeoutError:
            logger.info("a reader took nothing for %g s and is closed", self._config.stall_s)
            raise _Ended("stalled") from None

    async def _await_log(self, subscriber: Subscriber, until_s: float | None) -> float:
        loop = asyncio.get_running_loop()
        until_s = until_s if until_s is not None else loop.time() + self._config.ahead_wait_s
        if loop.time() >= until_s:
            await self._reset(subscriber, "ahead")
            return until_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                await self._moved.wait()
        return until_s

    async def _send_page(self, subscriber: Subscriber, upto: int) -> None:
        try:
            page = await self._log.read(
                subscriber.cursor,
                upto=upto,
                narrowing=subscriber.feed.matcher.narrowing(),
                rows_max=self._config.page_rows,
                bytes_max=self._config.page_bytes,
            )
        except Expired:
            present = self._state.present.number
            await self._reset(subscriber, "expired" if subscriber.cursor.epoch == present else "epoch")
            return
        await self._send(subscriber, page.entries)
        if page.scanned_to > subscriber.cursor.lsn and not self._met_break(subscriber, page.entries):
            subscriber.cursor = Cursor(subscriber.cursor.epoch, page.scanned_to)

    def _met_break(self, subscriber: Subscriber, entries: Sequence[Entry]) -> bool:
        covers = subscriber.feed.matcher.covers
        return any(e.type is ChangeType.BREAK and covers(e.table) for e in entries)

    async def _send(self, subscriber: Subscriber, entries: Sequence[Entry]) -> None:
        """Writes the matching entries, up to the first break of a table of this subscriber."""
        feed = subscriber.feed
        for place, entry in enumerate(entries):
            if entry.type is ChangeType.BREAK and feed.matcher.covers(entry.table):
                self._write_entries(subscriber, entries[: place + 1])
                await self._reset(subscriber, "schema", table=entry.table)
                return
        self._write_entries(subscriber, entries)

    def _write_entries(self, subscriber: Subscriber, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        info = self._state.by_number(subscriber.cursor.epoch)
        if info is None:
            raise _Ended("epoch_expired")
        data = subscriber.feed.frames(entries, FrameOnce(info.position))
        if data:
            subscriber.sink.write(data)
        # Written and noted in one step: a heartbeat in between must not run ahead or behind.
        subscriber.cursor = Cursor(subscriber.cursor.epoch, entries[-1].lsn)

    async def _reset(self, subscriber: Subscriber, reason: str, table: str | None = None) -> None:
        """Tells of a break, once, and goes on behind it: from the present, or with a snapshot."""
        if reason == "epoch":
            subscriber.epoch_breaks += 1
            if subscriber.epoch_breaks > 1:
                subscriber.sink.write(subscriber.feed.framer.closing(None, retry_ms=self.retry_ms()))
                raise _Ended("second_epoch_break")
        selection = subscriber.feed.selection
        if table is None:
            subscriber.cursor = self._cursor_at_head()
            self._tell_reset(subscriber, reason, [info.name for info in self.catalog.chosen(selection)])
        else:
            self._tell_reset(subscriber, reason, [table])
            selection = Selection((table,), selection.room)
        subscriber.has_position = True
        if subscriber.snapshot:
            await self._send_snapshot(subscriber, selection)

    def _tell_reset(self, subscriber: Subscriber, reason: str, tables: Sequence[str]) -> None:
        self.outcomes[f"reset_{reason}"] += 1
        subscriber.told_caught_up = False
        position = self.position(subscriber.cursor)
        if position is None:
            raise _Ended("epoch_expired")
        subscriber.sink.write(
            subscriber.feed.framer.reset(
                reason=reason,
                tables=tables,
                position=position,
                oldest=self.oldest,
                resumable=not subscriber.snapshot,
            )
        )

    async def _send_snapshot(self, subscriber: Subscriber, selection: Selection) -> None:
        """Sends the present rows of `selection`, which may be some of the subscription's tables."""
        subscriber.has_position = False
        sent = False
        while not sent:
            async with self._snapshots.open(selection) as snapshot:
                broken = None
                if selection != subscriber.feed.selection:
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
                    tables = {*(selection.tables or ()), broken}
                    selection = Selection(tuple(sorted(tables)), selection.room)
        subscriber.has_position = True

    async def _send_rows(
        self, subscriber: Subscriber, selection: Selection, snapshot: SnapshotStream
    ) -> None:
        framer = subscriber.feed.framer
        position = self.position(snapshot.cursor)
        if position is None:
            raise _Ended("epoch_expired")
        tables = selection.tables or snapshot.tables
        subscriber.sink.write(framer.snapshot_begin(position, tables))
        async for lines in snapshot.lines():
            subscriber.sink.write(framer.snapshot_rows(lines))
            await self._room_to_write(subscriber)
        subscriber.sink.write(framer.snapshot_end(position))
        subscriber.cursor = snapshot.cursor

    async def _send_others(self, subscriber: Subscriber, but: Selection, upto: int) -> str | None:
        """The changes up to a snapshot of the tables that it does not cover, without positions.

        Stops at the break of such a table, and returns its name.
        """
        matcher, framer = subscriber.feed.matcher, subscriber.feed.framer
        without = set(but.tables or ())
        while subscriber.cursor.lsn < upto:
            page = await self.page(
                subscriber.cursor,
                Narrowing(),
                rows_max=self._config.page_rows,
                bytes_max=self._config.page_bytes,
            )
            if isinstance(page, Gone):
                raise _Ended("expired_in_snapshot")
            if page.scanned_to == subscriber.cursor.lsn:
                await asyncio.wait_for(self._moved.wait(), self._config.ahead_wait_s)
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
            await self._room_to_write(subscriber)
        return None
