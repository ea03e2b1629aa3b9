"""A subscriber as a state machine, and the seam between replay and live. Pure: no I/O, no clock.

A subscriber is a cursor into the log, never a queue. Its cursor says up to where every matching
change was written into its stream. A LIVE one stands at the head by definition, and each round of
changes is written to it; the others read the ring or the log in pages until they stand at the head.

The seam is safe because of one rule: `next_step` says `GoLive` only when the cursor equals the head,
and the core enters the subscriber into the live set in the same step of the loop in which it asked.
Nothing can be appended in between, so nothing is missed and nothing is sent twice.

    CATCHING_UP ──caught up──▶ LIVE ──fell behind──▶ LAGGING ──caught up──▶ LIVE
        ▲                       │
        └──── met a break ──────┘            any of them ──closed──▶ CLOSED
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from cdchub.log.protocol import Cursor, LogState
from cdchub.position import AtLsn, Beginning, Now, Position, Since


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


@dataclass(frozen=True, slots=True)
class ReadRing:
    """The ring has everything after the cursor."""


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read the log from the cursor up to `upto`, in the cursor's epoch."""

    upto: int


@dataclass(frozen=True, slots=True)
class GoLive:
    """The cursor is the head."""


@dataclass(frozen=True, slots=True)
class AwaitLog:
    """The cursor is ahead of the log, which is about to get there."""


@dataclass(frozen=True, slots=True)
class Gone:
    """What follows the cursor can't be served: `expired`, `epoch` or `ahead`."""

    reason: str


@dataclass(frozen=True, slots=True)
class FromBase:
    """Begin with the log's base snapshot, where it has one."""


Step = ReadRing | ReadLog | GoLive | AwaitLog | Gone


@dataclass(frozen=True, slots=True)
class View:
    """What the log and the ring hold at one moment. `head_lsn` is the ring's, of the present epoch.

    `knows_source`: `source_head_lsn` is how far the source has got; otherwise it may be further.
    """

    log: LogState
    ring_floor_lsn: int
    head_lsn: int
    source_head_lsn: int
    knows_source: bool = True


def next_step(cursor: Cursor, view: View) -> Step:
    """What a subscriber that is not live does next."""
    present = view.log.present
    if cursor.epoch != present.number:
        # An older epoch is sent to its end, as far as it is retained; then the break is told.
        info = view.log.by_number(cursor.epoch)
        if info is None or not info.floor_lsn <= cursor.lsn < info.head_lsn:
            return Gone("epoch")
        return ReadLog(info.head_lsn)
    if cursor.lsn == view.head_lsn:
        return GoLive()
    if cursor.lsn > view.head_lsn:
        return AwaitLog()
    if cursor.lsn >= view.ring_floor_lsn:
        return ReadRing()
    if cursor.lsn < present.floor_lsn:
        return Gone("expired")
    return ReadLog(view.head_lsn)


def resolve(since: Since, view: View) -> Cursor | Gone:
    """Where a request's position is in the log, or why it can't be served.

    `ahead` is judged by the source's own head: a position that only this log has not reached yet
    is a cursor, which waits.
    """
    present = view.log.present
    match since:
        case Now():
            return Cursor(present.number, view.head_lsn)
        case Beginning():
            return Cursor(present.number, present.floor_lsn)
        case AtLsn(lsn):
            info = present
        case Position(epoch, lsn):
            known = view.log.by_name(epoch)
            if known is None:
                return Gone("epoch")
            info = known
    if info.number != present.number:
        return Cursor(info.number, lsn) if info.floor_lsn <= lsn <= info.head_lsn else Gone("epoch")
    if lsn < present.floor_lsn:
        return Gone("expired")
    if lsn > max(view.head_lsn, view.source_head_lsn) and view.knows_source:
        return Gone("ahead")
    return Cursor(present.number, lsn)
