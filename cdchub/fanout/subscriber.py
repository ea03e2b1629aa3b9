"""A subscriber: one stream as a state machine over a cursor. It does nothing by itself.

It is a cursor into the log, never a queue. The cursor says up to where every matching change was
written into its stream. A LIVE one stands at the head by definition, and each round of changes is
written to it; the others read the ring or the log in pages until they stand at the head (see `seam`).

    CATCHING_UP ──caught up──▶ LIVE ──fell behind──▶ LAGGING ──caught up──▶ LIVE
        ▲                       │
        └──── met a break ──────┘            any of them ──closed──▶ CLOSED
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from cdchub.fanout.ports import Sink
from cdchub.log.protocol import Cursor

if TYPE_CHECKING:
    from cdchub.fanout.feed import Feed


class SubscriberState(Enum):
    CATCHING_UP = auto()  # replaying from its start position, or past a break
    LIVE = auto()  # stands at the head; rounds are written to it directly
    LAGGING = auto()  # its transport was full; replays from its cursor as that drains
    CLOSED = auto()


class SubscriberEvent(Enum):
    CAUGHT_UP = auto()
    FELL_BEHIND = auto()
    MET_BREAK = auto()
    CLOSED = auto()


_TRANSITIONS = {
    (SubscriberState.CATCHING_UP, SubscriberEvent.CAUGHT_UP): SubscriberState.LIVE,
    (SubscriberState.LIVE, SubscriberEvent.FELL_BEHIND): SubscriberState.LAGGING,
    (SubscriberState.LIVE, SubscriberEvent.MET_BREAK): SubscriberState.CATCHING_UP,
    (SubscriberState.LAGGING, SubscriberEvent.CAUGHT_UP): SubscriberState.LIVE,
    (SubscriberState.CATCHING_UP, SubscriberEvent.CLOSED): SubscriberState.CLOSED,
    (SubscriberState.LIVE, SubscriberEvent.CLOSED): SubscriberState.CLOSED,
    (SubscriberState.LAGGING, SubscriberEvent.CLOSED): SubscriberState.CLOSED,
}


def next_state(state: SubscriberState, event: SubscriberEvent) -> SubscriberState:
    """The state after `event`. Raises ValueError where the state does not accept it."""
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"a subscriber that is {state.name} can't take {event.name}") from None


class Owner(Protocol):
    """Who is told what a subscriber's sink meets: the core."""

    def is_full(self, subscriber: Subscriber) -> None: ...

    def is_lost(self, subscriber: Subscriber, outcome: str) -> None: ...


class Subscriber:
    """One stream. `cursor` is its place unless it is live; then its place is the head."""

    # There may be tens of thousands.
    __slots__ = (
        "_owner",
        "conflate",
        "cursor",
        "epoch_breaks",
        "feed",
        "has_position",
        "is_open",
        "sink",
        "slot",
        "snapshot",
        "state",
        "task",
        "told_caught_up",
        "transport",
    )

    def __init__(
        self,
        owner: Owner,
        feed: Feed,
        sink: Sink,
        *,
        slot: int,
        snapshot: bool,
        conflate: bool,
        transport: str,
    ) -> None:
        """`slot` is its place on the heartbeat wheel."""
        self._owner = owner
        self.feed = feed
        self.sink = sink
        self.slot = slot
        self.snapshot = snapshot
        self.conflate = conflate
        self.transport = transport
        self.state = SubscriberState.CATCHING_UP
        self.cursor = _NOWHERE
        # False between a snapshot's (or its reset's) first event and its last row.
        self.has_position = False
        self.told_caught_up = False
        # Whether it has a part of a transaction and has not been told of its end. Until then it is told
        # no position: one says that every transaction before it is whole (INTERFACE §2, `commit`).
        self.is_open = False
        self.epoch_breaks = 0
        self.task: asyncio.Task[None] | None = None

    def on(self, event: SubscriberEvent) -> None:
        self.state = next_state(self.state, event)

    # What its sink tells.

    def sink_is_full(self) -> None:
        self._owner.is_full(self)

    def sink_is_lost(self, outcome: str) -> None:
        """The peer is gone; `outcome` names how, for the counters."""
        self._owner.is_lost(self, outcome)


_NOWHERE = Cursor(0, 0)
