"""Fan-out: deliveries from capture come in, rounds of bytes go out to the live subscribers.

Live subscribers have no task, queue or timer: one wheel beats for all. Every other one has a task,
which brings it to the head and then ends. A subscriber whose transport is full leaves the live set
and has a task again, so a slow reader costs a bounded number of bytes and never holds anybody up.

Everything here runs on one loop, so state changes only between awaits; see `seam`. What it does
*not* do: read the source, or know a wire format.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial

from cdchub.catalog import Selection
from cdchub.config import StreamConfig
from cdchub.errors import CdchubError, Overloaded
from cdchub.fanout.catchup import CatchUp, Start, StreamEnded
from cdchub.fanout.encoding import Format
from cdchub.fanout.feed import Feed, Framer
from cdchub.fanout.feeds import Feeds
from cdchub.fanout.heartbeats import SLOTS, Heartbeats
from cdchub.fanout.ports import Sink, Snapshots
from cdchub.fanout.present import Present
from cdchub.fanout.rounds import Rounds
from cdchub.fanout.subscriber import Subscriber, SubscriberEvent, SubscriberState
from cdchub.fanout.turnstile import Turnstile
from cdchub.log.protocol import Cursor, Delivery

logger = logging.getLogger("cdchub.fanout")

# Subscribers of this transport have a connection each.
OWN_CONNECTION = "sse"
# At shutdown, the round that is under way has so long to end, and what was written last to leave.
_LAST_ROUND_S = 1.0
_LAST_BYTES_S = 0.2


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
        self._feeds = feeds = Feeds(present, config)
        self._rounds = Rounds(
            present,
            feeds,
            config,
            taken=taken,
            met_break=self._meet_break,
            became_whole=self._sign_all,
            failed=self._cut_live_off,
        )
        self._heartbeats = Heartbeats(present)
        self.subscriber_count = 0
        # Connections that streams have: of one subscriber each, or of a session with several.
        self.connection_count = 0
        # A server that can carry fewer connections lowers it.
        self.connections_max = config.subscribers_max
        # Live ones that came in the middle of a transaction, and are told when they have it whole.
        self._unsigned: list[Subscriber] = []
        self._when_draining: list[Callable[[], None]] = []
        # Streams that have ended, while their last bytes are on their way.
        self._ending: list[Sink] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: asyncio.TaskGroup | None = None
        self._random = random.Random()
        self._catch_up = CatchUp(
            present,
            snapshots,
            config,
            framed=feeds.framed,
            turnstile=Turnstile(config.turns_per_iteration),
        )
        self.draining = False

    @property
    def outcomes(self) -> Counter[str]:
        return self._catch_up.outcomes

    def subscribers(self) -> list[Subscriber]:
        return list(self._heartbeats)

    def lag_lsn(self, subscriber: Subscriber) -> int:
        """How many LSNs a subscriber is behind the head, as far as they are of one epoch."""
        head, place = self.present.cursor, subscriber.cursor
        if subscriber.state is SubscriberState.LIVE or place.epoch != head.epoch:
            return 0
        return max(0, head.lsn - place.lsn)

    def retry_ms(self) -> int:
        """A reconnection time around the configured one, so that a crowd comes back spread out."""
        spread = self._config.retry_spread
        return int(self._config.retry_ms * self._random.uniform(1 - spread, 1 + spread))

    def accept(self, delivery: Delivery) -> None:
        """Takes in what capture delivers, in order. Called on the loop."""
        self._rounds.accept(delivery)

    @property
    def fault(self) -> str | None:
        """What went wrong with a delivery, if anything ever did."""
        return self._rounds.fault

    def _meet_break(self, feed: Feed, before: Cursor) -> None:
        """Breaks are rare, and told in one place only: where readers catch up."""
        for subscriber in list(feed.live):
            self._leave_live(subscriber, SubscriberEvent.MET_BREAK, before)

    def _cut_live_off(self) -> None:
        """Who may have missed something comes back with the position that it has."""
        for feed in list(self._feeds):
            for subscriber in list(feed.live):
                subscriber.sink.abort()
                self.unsubscribe(subscriber, "fault")

    # What sinks tell.

    def is_full(self, subscriber: Subscriber) -> None:
        """Others than live ones look by themselves."""
        if subscriber.state is SubscriberState.LIVE:
            self._rounds.when_between(partial(self._fall_behind, subscriber))

    def _fall_behind(self, subscriber: Subscriber) -> None:
        if subscriber.state is SubscriberState.LIVE:
            self.outcomes["fell_behind"] += 1
            self._leave_live(subscriber, SubscriberEvent.FELL_BEHIND, self.present.cursor)

    def is_lost(self, subscriber: Subscriber, outcome: str) -> None:
        self.unsubscribe(subscriber, outcome)

    # Subscribing.

    async def run(self) -> None:
        """Owns every task of the fan-out until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                while True:
                    await asyncio.sleep(self._config.heartbeat_s / SLOTS)
                    if due := self._heartbeats.tick():
                        self._rounds.when_between(partial(self._heartbeats.beat, due))
                    self._forget_ended()
        finally:
            self._tasks = None
            self._rounds.stop()
            for subscriber in self.subscribers():
                self.unsubscribe(subscriber, "ended")
            for sink in self._ending:
                sink.abort()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Runs work for a connection that ends with the fan-out, if not before. It must not raise."""
        assert self._tasks is not None, "the core runs before anybody connects"
        return self._tasks.create_task(work)

    def when_draining(self, action: Callable[[], None]) -> None:
        """Calls `action` when the hub begins to drain."""
        self._when_draining.append(action)

    def heartbeat(self) -> None:
        """Sends every subscriber its own cursor: the live ones share the head."""
        self._rounds.when_between(partial(self._heartbeats.beat, self.subscribers()))

    def subscribe(
        self,
        selection: Selection,
        framer: Framer,
        sink: Sink,
        start: Start,
        *,
        snapshot: bool,
        transport: str,
        conflate: bool = False,
        format: Format = Format.CDCHUB,
    ) -> Subscriber:
        """Begins a stream at a cursor or the base; after a reset (`Gone`); or with a snapshot (None).

        Raises `Overloaded` while the hub drains or has as many subscribers as it takes.
        """
        self.admit()
        feed = self._feeds.join(selection, framer, format)
        subscriber = Subscriber(
            self,
            feed,
            sink,
            slot=self._heartbeats.next_slot(),
            snapshot=snapshot,
            conflate=conflate,
            transport=transport,
        )
        self._heartbeats.add(subscriber)
        self.subscriber_count += 1
        if transport == OWN_CONNECTION:
            self.connection_count += 1
        self._empty.clear()
        self.outcomes["opened"] += 1
        sink.listen(subscriber)
        if start == self.present.cursor:
            subscriber.cursor = start
            subscriber.has_position = True
            self._go_live(subscriber)
        else:
            self._begin_catch_up(subscriber, start)
        return subscriber

    def admit(self) -> None:
        """Raises `Overloaded` where one more stream is too many."""
        self._admit(has_room=self.subscriber_count < self._config.subscribers_max)

    def admit_connection(self) -> None:
        """Raises `Overloaded` where one more connection is too many."""
        self._admit(has_room=self.connection_count < self.connections_max)

    def _admit(self, *, has_room: bool) -> None:
        if self.draining:
            self.outcomes["refused_draining"] += 1
            raise Overloaded("the hub is shutting down; come back in a moment")
        if not has_room:
            self.outcomes["refused_full"] += 1
            raise Overloaded("the hub has as many subscribers as it takes; try again later")

    def unsubscribe(self, subscriber: Subscriber, outcome: str = "client_closed") -> None:
        """Forgets a subscriber. Harmless for one that is closed already."""
        if subscriber.state is SubscriberState.CLOSED:
            return
        subscriber.on(SubscriberEvent.CLOSED)
        self.outcomes[outcome] += 1
        if subscriber.feed.live.pop(subscriber, None) is not None:
            self._rounds.somebody_closed()
        self._feeds.part(subscriber.feed)
        self._heartbeats.discard(subscriber)
        self.subscriber_count -= 1
        if subscriber.transport == OWN_CONNECTION:
            self.connection_count -= 1
        self._look_if_empty()
        if outcome == "stalled":
            subscriber.sink.abort()
        else:
            subscriber.sink.close()
            if subscriber.sink.buffered_bytes:
                self._ending.append(subscriber.sink)
        task, subscriber.task = subscriber.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def connection_opened(self) -> None:
        """A connection is there that has any number of subscribers, none among them."""
        self.connection_count += 1
        self._empty.clear()

    def connection_closed(self) -> None:
        self.connection_count -= 1
        self._look_if_empty()

    def _look_if_empty(self) -> None:
        if not (self.subscriber_count or self.connection_count):
            self._empty.set()

    async def drain(self) -> None:
        """Refuses new streams and ends the open ones, spread over the drain window."""
        self.draining = True
        for action in self._when_draining:
            action()
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
        # A round that is being written comes first.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ROUND_S):
                await self._empty.wait()
        self._forget_ended()
        if self._ending:
            await asyncio.sleep(_LAST_BYTES_S)
        for sink in self._ending:
            sink.abort()

    def _end_politely(self, subscriber: Subscriber) -> None:
        def end() -> None:
            if subscriber.state is not SubscriberState.CLOSED:
                position = self._heartbeats.position_of(subscriber)
                farewell = subscriber.feed.framer.closing(position, retry_ms=self.retry_ms())
                subscriber.sink.write(farewell)
                self.unsubscribe(subscriber, "drained")

        self._rounds.when_between(end)

    def _forget_ended(self) -> None:
        self._ending = [sink for sink in self._ending if sink.buffered_bytes]

    # Sets.

    def _leave_live(self, subscriber: Subscriber, event: SubscriberEvent, cursor: Cursor) -> None:
        subscriber.on(event)
        del subscriber.feed.live[subscriber]
        subscriber.cursor = cursor
        # Before a break: nobody knows any more whether a transaction ended there.
        subscriber.is_open = not self.present.is_whole or cursor != self.present.cursor
        self._begin_catch_up(subscriber, cursor)

    def _go_live(self, subscriber: Subscriber) -> None:
        """In the same step in which the cursor was seen to be the head: see `seam`."""
        subscriber.on(SubscriberEvent.CAUGHT_UP)
        subscriber.feed.live[subscriber] = subscriber.sink.write
        if self.present.is_whole:
            self._sign(subscriber)
        else:
            self._unsigned.append(subscriber)
        if subscriber.sink.is_full:
            self.is_full(subscriber)

    def _sign(self, subscriber: Subscriber) -> None:
        """Tells one that has become live that it has all there is. The head is whole."""
        framer = subscriber.feed.framer
        if not subscriber.told_caught_up:
            subscriber.told_caught_up = True
            subscriber.sink.write(framer.caught_up(self.present.head))
        elif subscriber.is_open:
            subscriber.sink.write(framer.transaction_end(self.present.head))
        subscriber.is_open = False

    def _sign_all(self) -> None:
        unsigned, self._unsigned = self._unsigned, []
        for subscriber in unsigned:
            if subscriber.state is SubscriberState.LIVE:
                self._sign(subscriber)

    def _begin_catch_up(self, subscriber: Subscriber, start: Start) -> None:
        assert self._tasks is not None, "the core runs before anybody subscribes"
        subscriber.task = self._tasks.create_task(self._bring_up(subscriber, start))

    async def _bring_up(self, subscriber: Subscriber, start: Start) -> None:
        """The life of a subscriber that is not live, with every way it can end."""
        try:
            await self._catch_up.run(subscriber, start)
        except StreamEnded as ended:
            if ended.outcome != "stalled":
                # Where several share a connection, nothing else would tell.
                closing = subscriber.feed.framer.closing(None, retry_ms=self.retry_ms())
                subscriber.sink.write(closing)
            self.unsubscribe(subscriber, ended.outcome)
        except asyncio.CancelledError:
            self.unsubscribe(subscriber, "cancelled")
            raise
        except Exception as error:
            self._fault(subscriber, error)
        else:
            subscriber.task = None
            self._go_live(subscriber)

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
