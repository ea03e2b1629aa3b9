"""Fan-out: deliveries from capture come in, rounds of bytes go out to the live subscribers.

Every subscriber that is not live has one task, which brings it to the head and then ends; live ones
have none. A subscriber whose transport is full leaves the live set and has a task again, so a slow
reader costs a bounded number of bytes and never holds anybody up.

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
from collections.abc import Callable, Sequence

from cdchub.catalog import Selection
from cdchub.change import ChangeType, Entry
from cdchub.config import StreamConfig
from cdchub.errors import CdchubError, Overloaded
from cdchub.fanout.catchup import CatchUp, Start, StreamEnded, Subscriber
from cdchub.fanout.feed import Feed, FrameOnce, Framer
from cdchub.fanout.ports import Sink, Snapshots
from cdchub.fanout.present import Present
from cdchub.fanout.subscriber import SubscriberEvent, SubscriberState
from cdchub.log.protocol import Appended, Cursor, Delivery, HistoryChanged, SchemaChanged
from cdchub.position import Position

logger = logging.getLogger("cdchub.fanout")


class Core:
    def __init__(
        self,
        config: StreamConfig,
        present: Present,
        *,
        snapshots: Snapshots,
        taken: Callable[[], None],
    ) -> None:
        """`taken` is called once for each `Appended` delivery that has been worked off."""
        self._config = config
        self.present = present
        self._snapshots = snapshots
        self._taken = taken
        self._feeds: dict[tuple[int, Selection], Feed] = {}
        self._live: dict[Feed, set[Subscriber]] = {}
        self._others: set[Subscriber] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: asyncio.TaskGroup | None = None
        self._random = random.Random()
        self.draining = False
        self.outcomes: Counter[str] = Counter()

    @property
    def subscriber_count(self) -> int:
        return len(self._others) + sum(map(len, self._live.values()))

    def subscribers(self) -> list[Subscriber]:
        return [sub for live in self._live.values() for sub in live] + list(self._others)

    def retry_ms(self) -> int:
        """A reconnection time around the configured one, so that a crowd comes back spread out."""
        spread = self._config.retry_spread
        return int(self._config.retry_ms * self._random.uniform(1 - spread, 1 + spread))

    # Deliveries from capture.

    def accept(self, delivery: Delivery) -> None:
        """Takes in what capture delivers, in order. Called on the loop."""
        match delivery:
            case Appended(entries, source_head_lsn, nonce):
                try:
                    self._round(entries, source_head_lsn, nonce)
                finally:
                    # Whatever went wrong with a round, capture must not wait for it for ever.
                    self._taken()
            case HistoryChanged():
                before = self.present.cursor
                if self.present.take_history(delivery):
                    for feed in self._live:
                        self._meet_break(feed, before)
            case SchemaChanged(catalog):
                self.present.catalog = catalog
                for feed in self._feeds.values():
                    feed.recatalog(catalog)
        self.present.tell()

    def _round(self, entries: Sequence[Entry], source_head_lsn: int, nonce: int | None) -> None:
        before = self.present.cursor
        self.present.append(entries, source_head_lsn=source_head_lsn, nonce=nonce)
        if not any(self._live.values()):
            return
        touched = {entry.table for entry in entries}
        broken = {entry.table for entry in entries if entry.type is ChangeType.BREAK}
        epoch = self.present.view.log.present
        frame = FrameOnce(epoch.position)
        for feed, live in self._live.items():
            covers = feed.matcher.covers
            if not live or not any(covers(table) for table in touched):
                continue
            if any(covers(table) for table in broken):
                self._meet_break(feed, before)
            elif data := feed.frames(entries, frame):
                self._write_to(live, data)

    def _meet_break(self, feed: Feed, before: Cursor) -> None:
        """Breaks are rare, and told in one place only: where readers catch up."""
        for subscriber in list(self._live[feed]):
            self._leave_live(subscriber, SubscriberEvent.MET_BREAK, before)

    def _write_to(self, live: set[Subscriber], data: bytes) -> None:
        full = []
        for subscriber in live:
            subscriber.sink.write(data)
            if subscriber.sink.buffered_bytes > self._config.buffer_bytes_max:
                full.append(subscriber)
        for subscriber in full:
            self.outcomes["fell_behind"] += 1
            self._leave_live(subscriber, SubscriberEvent.FELL_BEHIND, self.present.cursor)

    # Subscribing.

    async def run(self) -> None:
        """Owns every task of the fan-out until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            while True:
                await asyncio.sleep(self._config.heartbeat_s)
                self.heartbeat()

    def heartbeat(self) -> None:
        """Sends every subscriber its own cursor: the live ones share the head."""
        head = self.present.head
        for feed, live in self._live.items():
            if live:
                self._write_to(live, feed.framer.heartbeat(head))
        for subscriber in self._others:
            # A transport that is full shows life when it drains; more bytes would not help it.
            if subscriber.sink.buffered_bytes <= self._config.buffer_bytes_max:
                beat = subscriber.feed.framer.heartbeat(self._position_of(subscriber))
                subscriber.sink.write(beat)

    def subscribe(
        self,
        selection: Selection,
        framer: Framer,
        sink: Sink,
        start: Start,
        *,
        snapshot: bool,
        transport: str,
    ) -> Subscriber:
        """Begins a stream at a cursor or the base; after a reset (`Gone`); or with a snapshot (None).

        Raises `Overloaded` while the hub drains or has as many subscribers as it takes.
        """
        self.admit()
        feed = self._join(selection, framer)
        subscriber = Subscriber(feed, sink, snapshot=snapshot, transport=transport)
        self.outcomes["opened"] += 1
        self._begin_catch_up(subscriber, start)
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
        # Long polls end at once, with what they have.
        self.present.tell()
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
            farewell = subscriber.feed.framer.closing(position, retry_ms=self.retry_ms())
            subscriber.sink.write(farewell)
            self.unsubscribe(subscriber, "drained")

    def _position_of(self, subscriber: Subscriber) -> Position | None:
        if subscriber.state is SubscriberState.LIVE:
            return self.present.head
        return self.present.position(subscriber.cursor) if subscriber.has_position else None

    # Feeds and sets.

    def _join(self, selection: Selection, framer: Framer) -> Feed:
        key = (id(framer), selection)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(selection, self.present.catalog, framer)
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
        self._live[subscriber.feed].discard(subscriber)
        subscriber.cursor = cursor
        self._begin_catch_up(subscriber, cursor)

    def _begin_catch_up(self, subscriber: Subscriber, start: Start) -> None:
        assert self._tasks is not None, "the core runs before anybody subscribes"
        self._others.add(subscriber)
        subscriber.task = self._tasks.create_task(self._bring_up(subscriber, start))

    async def _bring_up(self, subscriber: Subscriber, start: Start) -> None:
        """The life of a subscriber that is not live, with every way it can end."""
        catch_up = CatchUp(
            subscriber,
            self.present,
            self._snapshots,
            self._config,
            outcomes=self.outcomes,
            retry_ms=self.retry_ms,
        )
        try:
            await catch_up.run(start)
        except StreamEnded as ended:
            self.unsubscribe(subscriber, ended.outcome)
        except asyncio.CancelledError:
            self.unsubscribe(subscriber, "cancelled")
            raise
        except Exception as error:
            self._fault(subscriber, error)
        else:
            # In the same step in which the cursor was seen to be the head: see `subscriber`.
            subscriber.on(SubscriberEvent.CAUGHT_UP)
            subscriber.task = None
            self._others.discard(subscriber)
            self._live[subscriber.feed].add(subscriber)

    def _fault(self, subscriber: Subscriber, error: Exception) -> None:
        error_id = secrets.token_hex(4)
        expected = isinstance(error, CdchubError | OSError)
        logger.error(
            "a stream ends with error %s: %s", error_id, error, exc_info=None if expected else error
        )
        subscriber.sink.write(
            subscriber.feed.framer.fault(
                code="internal",
                message=f"the hub could not go on with this stream (error {error_id})",
                retry_ms=self.retry_ms(),
            )
        )
        self.unsubscribe(subscriber, "fault")
