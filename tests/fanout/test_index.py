"""The index of feeds finds exactly those that a change concerns, and asks few others."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cdchub.catalog import Affinity, Catalog, ColumnInfo, Selection, TableInfo
from cdchub.change import (
    ChangeType,
    Entry,
    InvalidText,
    SqliteValue,
    WireNote,
    encode_change,
    encode_note,
    wire_row,
)
from cdchub.fanout import EntryRows, Feed, Matcher
from cdchub.fanout.feed import Item
from cdchub.fanout.index import FeedIndex
from cdchub.position import Epoch
from cdchub.sse import EventParser, SseFramer

SEEDS = range(60)
FRAMER = SseFramer()
NAMES = ("a", "b", "c")


def table(name: str, *, room: bool, columns: Sequence[str] = ("id", "room", "v", "w")) -> TableInfo:
    return TableInfo(name, ("id",), _columns(*columns), "room" if room and "room" in columns else None)


def _columns(*names: str) -> tuple[ColumnInfo, ...]:
    texts = {"room": Affinity.TEXT, "w": Affinity.TEXT}
    return tuple(ColumnInfo(name, "", texts.get(name, Affinity.NUMERIC)) for name in names)


CATALOG = Catalog([table("a", room=True), table("b", room=False), table("c", room=True)])
# The room column of `a` and filters' columns of `b` have gone, `c` is captured no longer.
LATER = Catalog(
    [table("a", room=False, columns=("id", "v", "w")), table("b", room=False, columns=("id", "room"))],
    gone=[table("c", room=True)],
    former=[
        table("a", room=True),
        TableInfo("b", ("id",), (*_columns("id", "room"), ColumnInfo("V", "", Affinity.TEXT)), None),
    ],
)

VALUES: list[SqliteValue] = [
    None, 0, -0.0, 1, 1.0, 2, 2**53 + 1, "1", "x", "xy", "", b"x", InvalidText(b"x\xff"),
]  # fmt: skip
FILTERS = [
    "id=eq.1", "v=eq.1", "v=eq.1.0", "v=eq.x", "v=in.(1,1.0,x)", "v=in.(2)", "v=neq.1", "v=gt.0",
    "v=lte.x", "v=is.null", "v=is.not_null", "v=eq.-0.0", "v=eq.9007199254740993", "w=eq.1",
    "w=in.(x,xy)", "w=like.x*", "w=eq.", "room=eq.x",
]  # fmt: skip


class _World:
    """Feeds that join and part, and entries of random rows."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.catalog = CATALOG
        self.index = FeedIndex()
        self.feeds: list[Feed] = []
        self._lsn = 0

    def selection(self) -> Selection:
        rng = self.rng
        names = rng.choice([["*"], *([name] for name in NAMES), ["a", "b"], ["b", "c"]])
        tables = [t.name for t in CATALOG.chosen(CATALOG.select(names, None))]
        filters = [
            f"{rng.choice(tables)}.{text}"
            for text in rng.sample(FILTERS, rng.choice((0, 0, 1, 1, 2, 3)))
        ]
        columns = [f"{rng.choice(tables)}.v"] if rng.random() < 0.3 else []
        room = rng.choice(("x", "1", None)) if names != ["b"] else None
        return CATALOG.select(names, room, filters=filters, columns=columns)

    def join(self) -> None:
        feed = Feed(self.selection(), self.catalog, FRAMER)
        self.feeds.append(feed)
        self.index.add(feed)

    def part(self) -> None:
        self.index.discard(self.feeds.pop(self.rng.randrange(len(self.feeds))))

    def recatalog(self) -> None:
        self.catalog = LATER if self.catalog is CATALOG else CATALOG
        for feed in self.feeds:
            feed.recatalog(self.catalog)
        self.index.rebuild()

    def entry(self) -> Entry:
        self._lsn += 1
        rng, lsn = self.rng, self._lsn
        # One table that no catalog knows (yet).
        name = rng.choice((*NAMES, "later"))
        if rng.random() < 0.1:
            kind = rng.choice((ChangeType.BREAK, ChangeType.SCHEMA))
            note = WireNote(lsn, kind.name, name, 0, lsn, commit=True)
            return Entry(lsn, kind, name, None, None, encode_note(note))
        kind = rng.choice((ChangeType.INSERT, ChangeType.UPDATE, ChangeType.DELETE))
        old, new = self._row(), self._row()
        data = encode_change(
            lsn=lsn,
            type=kind,
            table=name,
            key={"id": 1},
            old=None if kind is ChangeType.INSERT else wire_row(list(old), list(old.values())),
            new=None if kind is ChangeType.DELETE else wire_row(list(new), list(new.values())),
            timestamp_ms=0,
            txid=lsn,
            commit=True,
        )
        has_room = name in "ac"
        room_old = old.get("room") if has_room and kind is not ChangeType.INSERT else None
        room_new = new.get("room") if has_room and kind is not ChangeType.DELETE else None
        return Entry(lsn, kind, name, room_old, room_new, data)

    def _row(self) -> dict[str, SqliteValue]:
        """A row that may lack columns, as those of an older or later shape do."""
        row: dict[str, SqliteValue] = {"id": self.rng.choice((1, 2))}
        for name in ("room", "v", "w", "V"):
            if self.rng.random() < (0.1 if name == "V" else 0.9):
                row[name] = self.rng.choice(VALUES)
        return row

    def asked_of_each(self, entries: Sequence[Entry]) -> dict[Feed, list[Item]]:
        found = {feed: feed.matcher.items(entries) for feed in self.feeds}
        return {feed: items for feed, items in found.items() if items}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_index_finds_what_asking_each_feed_finds(seed: int) -> None:
    world = _World(seed)
    concerned = 0
    for _ in range(120):
        draw = world.rng.random()
        if draw < 0.5 or not world.feeds:
            world.join()
        elif draw < 0.85:
            world.part()
        elif draw < 0.9:
            world.recatalog()
        entries = [world.entry() for _ in range(world.rng.randrange(1, 6))]
        expected = world.asked_of_each(entries)
        assert world.index.concerned(entries) == expected
        concerned += len(expected)
    assert concerned > 0
    while world.feeds:
        world.part()
    assert world.index.concerned([world.entry() for _ in range(50)]) == {}


# What it costs.


class _Counted(Matcher):
    asked = 0

    def data(self, change: EntryRows) -> bytes | None:
        _Counted.asked += 1
        return super().data(change)


@pytest.fixture
def asked() -> Iterator[type[_Counted]]:
    _Counted.asked = 0
    yield _Counted
    _Counted.asked = 0


def feeds_of(filters: Sequence[str], index: FeedIndex) -> list[Feed]:
    feeds = [Feed(CATALOG.select(["a"], None, filters=[text]), CATALOG, FRAMER) for text in filters]
    for feed in feeds:
        feed.matcher = _Counted(feed.selection, CATALOG)
        index.add(feed)
    return feeds


def changed(old: SqliteValue, new: SqliteValue, name: str = "a") -> Entry:
    data = encode_change(
        lsn=1,
        type=ChangeType.UPDATE,
        table=name,
        key={"id": 1},
        old={"id": 1, "v": old},  # type: ignore[dict-item]
        new={"id": 1, "v": new},  # type: ignore[dict-item]
        timestamp_ms=0,
        txid=1,
        commit=True,
    )
    return Entry(1, ChangeType.UPDATE, name, None, None, data)


@pytest.mark.parametrize(
    ("old", "new", "concerned"),
    [(5, 5, [5]), (5, 7, [5, 7]), (5.0, None, [5]), (None, "x", []), (5_000, 6_000, []), (5, 5.0, [5])],
)
def test_of_a_thousand_filters_only_those_that_can_match_are_asked(
    asked: type[_Counted], old: SqliteValue, new: SqliteValue, concerned: list[int]
) -> None:
    index = FeedIndex()
    feeds = feeds_of([f"v=eq.{number}" for number in range(1_000)], index)
    found = index.concerned([changed(old, new)])
    assert set(found) == {feeds[number] for number in concerned}
    assert asked.asked == len(concerned)
    assert index.concerned([changed(old, new, "b")]) == {}
    assert asked.asked == len(concerned), "a change of another table concerns nobody"


def test_a_list_is_looked_up_like_single_values(asked: type[_Counted]) -> None:
    index = FeedIndex()
    feeds = feeds_of([f"v=in.({n},{n + 1},{n}.0)" for n in range(0, 1_000, 2)], index)
    assert set(index.concerned([changed(5, 4)])) == {feeds[2]}
    assert asked.asked <= 2, "once for each value, at most"


def test_a_comparison_is_asked_beside_those_that_are_looked_up(asked: type[_Counted]) -> None:
    index = FeedIndex()
    feeds = feeds_of([*(f"v=eq.{n}" for n in range(100)), "v=gt.50", "v=gt.500"], index)
    assert set(index.concerned([changed(7, 99)])) == {feeds[7], feeds[99], feeds[100]}
    assert asked.asked == 4


def test_equal_requests_are_one_feed_however_they_are_written() -> None:
    one = CATALOG.select(["a", "b"], None, filters=["a.v=gt.1", 'b."w"=eq."x"'], columns=["a.v,a.w"])
    two = CATALOG.select(
        ["B", "A"], None, filters=["b.w=eq.x", 'A."V"=gt.1'], columns=["a.w", "A.id,a.v"]
    )
    assert one == two
    assert hash(one) == hash(two)


def test_frames_of_what_the_index_finds_carry_the_view_of_each_feed() -> None:
    index = FeedIndex()
    feeds = feeds_of(["v=eq.1", "v=eq.2", "v=gt.0"], index)
    found = index.concerned([changed(1, 2)])
    seen = []
    for feed in feeds:
        (event,) = EventParser().feed(b"".join(feed.frames(Epoch("abcdefgh"), found[feed])))
        seen.append(event.data.partition('"type":"')[2].partition('"')[0])
    assert seen == ["DELETE", "INSERT", "UPDATE"]


@pytest.mark.parametrize(
    ("column", "old", "new", "seen_as"),
    [
        # The change that brings a row into the new shape has the old one's names and types.
        ("v", {"id": 1, "v": 100}, {"id": 1, "v": "100"}, "DELETE"),
        ("v", {"id": 1, "v": 50}, {"id": 1, "v": "50"}, "UPDATE"),
        ("v", {"id": 1, "v": 5}, {"id": 1, "v": "5"}, "INSERT"),
        ("v", {"id": 1, "v": 7}, None, None),
        ("gone", {"id": 1, "gone": 100}, {"id": 1, "v": "100"}, "DELETE"),
        ("gone", {"id": 1, "gone": 100}, None, "DELETE"),
        ("gone", {"id": 1, "gone": 7}, {"id": 1, "v": "7"}, None),
    ],
)
@pytest.mark.parametrize("operator", ["gt.20", "in.(050,0100,50,100)"])
def test_a_row_of_an_older_shape_was_in_the_view_that_it_was_in_then(
    operator: str, column: str, old: dict[str, Any], new: dict[str, Any] | None, seen_as: str | None
) -> None:
    number, text = ColumnInfo("id", "", Affinity.NUMERIC), ColumnInfo("v", "", Affinity.TEXT)
    was = TableInfo("a", ("id",), (number, ColumnInfo(column, "", Affinity.NUMERIC)), None)
    before = Catalog([was])
    after = Catalog([TableInfo("a", ("id",), (number, text), None)], former=[was])
    feed = Feed(before.select(["a"], None, filters=[f"{column}={operator}"]), before, FRAMER)
    feed.recatalog(after)
    index = FeedIndex()
    index.add(feed)
    kind = ChangeType.DELETE if new is None else ChangeType.UPDATE
    data = encode_change(
        lsn=1,
        type=kind,
        table="a",
        key={"id": 1},
        old=old,
        new=new,
        timestamp_ms=0,
        txid=1,
        commit=True,
    )
    found = index.concerned([Entry(1, kind, "a", None, None, data)])
    if operator != "gt.20" and column == "v":
        # Texts are compared with what was written, and one of those is equal.
        seen_as = {"DELETE": "UPDATE", "INSERT": None}.get(str(seen_as), seen_as)
    assert [json.loads(data)["type"] for _, data in found.get(feed, [])] == (
        [seen_as] if seen_as else []
    )
