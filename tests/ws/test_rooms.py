"""Presence, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cdchub.ws.rooms import Rooms

GRACE_S = 10.0


class Timer:
    def __init__(self, at_s: float, action: Callable[[], None]) -> None:
        self.at_s = at_s
        self.action = action
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, action: Callable[[], None]) -> Timer:
        timer = Timer(self.now_s + delay_s, action)
        self.timers.append(timer)
        return timer

    def advance(self, by_s: float) -> None:
        self.now_s += by_s
        for timer in sorted(self.timers, key=lambda t: t.at_s):
            if timer.at_s <= self.now_s and not timer.cancelled:
                timer.cancelled = True
                timer.action()
        self.timers = [timer for timer in self.timers if not timer.cancelled]


class Tab:
    """A connection of a user, which remembers what it was told."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.told: list[tuple[str, str, object]] = []

    def tell(self, room: str, type: str, **members: object) -> None:
        self.told.append((room, type, members["userId"]))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rooms(clock: Clock) -> Rooms:
    return Rooms(clock.call_later, grace_s=GRACE_S)


def test_the_others_are_told_of_a_join_once(rooms: Rooms) -> None:
    ann, bob, bob_again = Tab("ann"), Tab("bob"), Tab("bob")
    rooms.join("r", ann)
    rooms.join("r", bob)
    rooms.join("r", bob_again)
    rooms.join("r", bob)
    assert rooms.members("r") == ["ann", "bob"]
    assert ann.told == [("r", "user-joined", "bob")]
    assert bob.told == bob_again.told == []


def test_who_says_so_leaves_at_once(rooms: Rooms, clock: Clock) -> None:
    ann, bob = Tab("ann"), Tab("bob")
    rooms.join("r", ann)
    rooms.join("r", bob)
    rooms.leave("r", bob, at_once=True)
    assert rooms.members("r") == ["ann"]
    assert ann.told[1:] == [("r", "user-left", "bob")]
    clock.advance(60)
    rooms.leave("r", bob, at_once=True)
    assert len(ann.told) == 2


def test_a_lost_connection_counts_after_the_grace(rooms: Rooms, clock: Clock) -> None:
    ann, bob = Tab("ann"), Tab("bob")
    rooms.join("r", ann)
    rooms.join("r", bob)
    rooms.leave("r", bob, at_once=False)
    clock.advance(GRACE_S - 0.1)
    assert rooms.members("r") == ["ann", "bob"]
    assert len(ann.told) == 1
    clock.advance(0.2)
    assert rooms.members("r") == ["ann"]
    assert ann.told[1:] == [("r", "user-left", "bob")]
    clock.advance(60)
    assert len(ann.told) == 2


def test_a_return_within_the_grace_tells_nobody(rooms: Rooms, clock: Clock) -> None:
    ann, bob, bob_again = Tab("ann"), Tab("bob"), Tab("bob")
    rooms.join("r", ann)
    rooms.join("r", bob)
    for _ in range(3):
        rooms.leave("r", bob, at_once=False)
        clock.advance(GRACE_S - 1)
        rooms.join("r", bob_again)
        bob, bob_again = bob_again, Tab("bob")
    clock.advance(60)
    assert ann.told == [("r", "user-joined", "bob")]
    assert rooms.members("r") == ["ann", "bob"]
    rooms.leave("r", bob, at_once=False)
    clock.advance(GRACE_S)
    assert ann.told[1:] == [("r", "user-left", "bob")]


def test_a_return_that_leaves_again_ends_the_grace(rooms: Rooms, clock: Clock) -> None:
    ann, bob, bob_again = Tab("ann"), Tab("bob"), Tab("bob")
    rooms.join("r", ann)
    rooms.join("r", bob)
    rooms.leave("r", bob, at_once=False)
    rooms.join("r", bob_again)
    rooms.leave("r", bob_again, at_once=True)
    clock.advance(60)
    assert ann.told[1:] == [("r", "user-left", "bob")]


def test_the_last_of_three_tabs_counts(rooms: Rooms, clock: Clock) -> None:
    ann, tabs = Tab("ann"), [Tab("bob") for _ in range(3)]
    rooms.join("r", ann)
    for tab in tabs:
        rooms.join("r", tab)
    rooms.leave("r", tabs[0], at_once=False)
    rooms.leave("r", tabs[1], at_once=True)
    clock.advance(60)
    assert rooms.members("r") == ["ann", "bob"]
    rooms.leave("r", tabs[2], at_once=True)
    assert ann.told == [("r", "user-joined", "bob"), ("r", "user-left", "bob")]


def test_rooms_are_apart_and_empty_ones_are_forgotten(rooms: Rooms, clock: Clock) -> None:
    ann, bob = Tab("ann"), Tab("bob")
    rooms.join("a", ann)
    rooms.join("b", bob)
    assert (ann.told, bob.told) == ([], [])
    assert rooms.counts(most=10) == {"a": 1, "b": 1}
    rooms.leave("b", ann, at_once=True)
    assert rooms.members("b") == ["bob"]
    rooms.leave("a", ann, at_once=False)
    rooms.leave("b", bob, at_once=True)
    assert rooms.counts(most=10) == {"a": 1}
    clock.advance(GRACE_S)
    assert rooms.counts(most=10) == {}
    rooms.tell_others("nowhere", "ann", "broadcast", userId="ann")


def test_the_others_are_all_but_the_user(rooms: Rooms) -> None:
    tabs = [Tab("ann"), Tab("ann"), Tab("bob"), Tab("cy")]
    for tab in tabs:
        rooms.join("r", tab)
        tab.told.clear()
    for tab in tabs:
        tab.told.clear()
    rooms.tell_others("r", "ann", "broadcast", userId="ann")
    assert [len(tab.told) for tab in tabs] == [0, 0, 1, 1]


class PresenceModel(RuleBasedStateMachine):
    """Each watcher that never leaves is told exactly how the room's members change."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.rooms = Rooms(self.clock.call_later, grace_s=GRACE_S)
        self.watcher = Tab("watcher")
        self.rooms.join("r", self.watcher)
        self.here: list[Tab] = []
        self.until_s: dict[str, float] = {}

    @rule(user=st.sampled_from("abc"))
    def join(self, user: str) -> None:
        tab = Tab(user)
        self.rooms.join("r", tab)
        self.here.append(tab)
        self.until_s.pop(user, None)

    @rule(which=st.integers(0, 20), at_once=st.booleans())
    def leave(self, which: int, *, at_once: bool) -> None:
        if not self.here:
            return
        tab = self.here.pop(which % len(self.here))
        self.rooms.leave("r", tab, at_once=at_once)
        if not at_once and tab.user_id not in self.present():
            self.until_s[tab.user_id] = self.clock.now_s + GRACE_S

    @rule(by_s=st.sampled_from([0.5, 4.0, 11.0]))
    def wait(self, by_s: float) -> None:
        self.clock.advance(by_s)
        self.until_s = {u: at for u, at in self.until_s.items() if at > self.clock.now_s}

    def present(self) -> set[str]:
        return {tab.user_id for tab in self.here}

    @invariant()
    def members_are_right(self) -> None:
        present = {"watcher", *self.present(), *self.until_s}
        assert self.rooms.members("r") == sorted(present)

    @invariant()
    def the_watcher_knows_them(self) -> None:
        known = {"watcher"}
        for _, type, user in self.watcher.told:
            assert (user in known) is (type == "user-left"), "told twice, or not of the first"
            known ^= {str(user)}
        assert sorted(known) == self.rooms.members("r")


TestPresence = PresenceModel.TestCase
TestPresence.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
