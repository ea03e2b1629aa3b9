"""The seam between replay and live: what a subscriber that is not live does next. Pure.

It is safe because of one rule: `next_step` says `GoLive` only when the cursor equals the head, and
the core enters the subscriber into the live set in the same step of the loop in which it asked. The
head moves only at the start of a round, and a round goes to those who were live when it started; so
nothing is missed and nothing is sent twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdchub.log.protocol import Cursor, LogState
from cdchub.position import AtLsn, Beginning, Now, Position, Since


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
