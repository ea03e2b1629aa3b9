"""Which position a subscriber may be told, and when it is told without a change.

A heartbeat carries the subscriber's own cursor, so that a quiet one never expires and a lagging one
never skips. The live ones share the head. In the middle of a transaction no position is told: one says
that every transaction before it is whole (INTERFACE §2, `commit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cdchub.fanout.feed import Framer
from cdchub.fanout.present import Present
from cdchub.fanout.subscriber import Subscriber, SubscriberState
from cdchub.position import Position

# Heartbeats are spread over so many ticks: ten thousand at once would take 50 ms, and each tick wakes
# an idle hub.
SLOTS = 5


class Heartbeats:
    """All subscribers, by the tick at which their hearts beat."""

    def __init__(self, present: Present) -> None:
        self._present = present
        self._wheel: list[set[Subscriber]] = [set() for _ in range(SLOTS)]
        self._next_slot = 0
        self._slot = 0

    def __iter__(self) -> Iterator[Subscriber]:
        return (subscriber for slot in self._wheel for subscriber in slot)

    def next_slot(self) -> int:
        """The slot for one more subscriber."""
        self._next_slot = (self._next_slot + 1) % SLOTS
        return self._next_slot

    def add(self, subscriber: Subscriber) -> None:
        self._wheel[subscriber.slot].add(subscriber)

    def discard(self, subscriber: Subscriber) -> None:
        self._wheel[subscriber.slot].discard(subscriber)

    def tick(self) -> set[Subscriber]:
        """Whose hearts beat now."""
        self._slot = (self._slot + 1) % SLOTS
        return self._wheel[self._slot]

    def beat(self, subscribers: Iterable[Subscriber]) -> None:
        """To be called between rounds."""
        head = self._whole_head
        shared: dict[Framer, bytes] = {}
        for subscriber in list(subscribers):
            framer = subscriber.feed.framer
            if subscriber.state is SubscriberState.LIVE:
                beat = shared.get(framer)
                if beat is None:
                    beat = shared[framer] = framer.heartbeat(head)
                subscriber.sink.write(beat)
            elif subscriber.state is not SubscriberState.CLOSED and not subscriber.sink.is_full:
                # A transport that is full shows life when it drains; more bytes would not help it.
                subscriber.sink.write(framer.heartbeat(self.position_of(subscriber)))

    def position_of(self, subscriber: Subscriber) -> Position | None:
        """What it may be told; None: no more than the ids that it has had already."""
        if subscriber.state is SubscriberState.LIVE:
            return self._whole_head
        if subscriber.is_open or not subscriber.has_position:
            return None
        return self._present.position(subscriber.cursor)

    @property
    def _whole_head(self) -> Position | None:
        """The head, unless the transaction there goes on."""
        return self._present.head if self._present.is_whole else None
