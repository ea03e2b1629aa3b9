"""The state machine and the seam, by tables."""

from __future__ import annotations

import pytest

from cdchub.fanout.seam import (
    AwaitLog,
    GoLive,
    Gone,
    ReadLog,
    ReadRing,
    Step,
    View,
    next_step,
    resolve,
)
from cdchub.fanout.subscriber import SubscriberEvent, SubscriberState, next_state
from cdchub.log.protocol import Cursor, EpochInfo, LogState
from cdchub.position import AtLsn, Beginning, Epoch, Lsn, Now, Position, Since

OLD = EpochInfo(1, Epoch("epoch1"), 10, 50)
PRESENT = EpochInfo(2, Epoch("epoch2"), 40, 90)
# The log was read at 90; since then ten more came through the ring, and the source is at 110.
VIEW = View(LogState((OLD, PRESENT)), ring_floor_lsn=80, head_lsn=100, source_head_lsn=110)

ACCEPTED = {
    (SubscriberState.CATCHING_UP, SubscriberEvent.CAUGHT_UP): SubscriberState.LIVE,
    (SubscriberState.CATCHING_UP, SubscriberEvent.CLOSED): SubscriberState.CLOSED,
    (SubscriberState.LIVE, SubscriberEvent.FELL_BEHIND): SubscriberState.LAGGING,
    (SubscriberState.LIVE, SubscriberEvent.MET_BREAK): SubscriberState.CATCHING_UP,
    (SubscriberState.LIVE, SubscriberEvent.CLOSED): SubscriberState.CLOSED,
    (SubscriberState.LAGGING, SubscriberEvent.CAUGHT_UP): SubscriberState.LIVE,
    (SubscriberState.LAGGING, SubscriberEvent.CLOSED): SubscriberState.CLOSED,
}


@pytest.mark.parametrize("state", SubscriberState)
@pytest.mark.parametrize("event", SubscriberEvent)
def test_a_state_takes_only_its_events(state: SubscriberState, event: SubscriberEvent) -> None:
    if (state, event) in ACCEPTED:
        assert next_state(state, event) is ACCEPTED[state, event]
    else:
        with pytest.raises(ValueError, match=state.name):
            next_state(state, event)


@pytest.mark.parametrize(
    ("cursor", "step"),
    [
        (Cursor(2, 100), GoLive()),
        (Cursor(2, 101), AwaitLog()),
        (Cursor(2, 99), ReadRing()),
        (Cursor(2, 80), ReadRing()),
        (Cursor(2, 79), ReadLog(100)),
        (Cursor(2, 40), ReadLog(100)),
        (Cursor(2, 39), Gone("expired")),
        (Cursor(1, 10), ReadLog(50)),
        (Cursor(1, 49), ReadLog(50)),
        (Cursor(1, 50), Gone("epoch")),
        (Cursor(1, 9), Gone("epoch")),
        (Cursor(0, 0), Gone("epoch")),
    ],
)
def test_the_next_step_depends_on_cursor_and_view_only(cursor: Cursor, step: Step) -> None:
    assert next_step(cursor, VIEW) == step


def test_the_ring_serves_what_the_log_has_let_go() -> None:
    view = View(LogState((EpochInfo(2, Epoch("epoch2"), 95, 100),)), 80, 100, 100)
    assert next_step(Cursor(2, 85), view) == ReadRing()


@pytest.mark.parametrize(
    ("since", "start"),
    [
        (Now(), Cursor(2, 100)),
        (Beginning(), Cursor(2, 40)),
        (AtLsn(Lsn(70)), Cursor(2, 70)),
        (AtLsn(Lsn(39)), Gone("expired")),
        (Position(Epoch("epoch2"), Lsn(40)), Cursor(2, 40)),
        (Position(Epoch("epoch2"), Lsn(0)), Gone("expired")),
        (Position(Epoch("epoch2"), Lsn(110)), Cursor(2, 110)),
        (Position(Epoch("epoch2"), Lsn(111)), Gone("ahead")),
        (Position(Epoch("epoch1"), Lsn(50)), Cursor(1, 50)),
        (Position(Epoch("epoch1"), Lsn(51)), Gone("epoch")),
        (Position(Epoch("epoch1"), Lsn(9)), Gone("epoch")),
        (Position(Epoch("elsewhere"), Lsn(50)), Gone("epoch")),
    ],
)
def test_a_position_is_served_or_gone(since: Since, start: Cursor | Gone) -> None:
    assert resolve(since, VIEW) == start
