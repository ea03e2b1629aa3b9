"""Which entries a selection sees, and in which form."""

from __future__ import annotations

import json

import pytest

from cdchub.catalog import Affinity, Catalog, ColumnInfo, Selection, TableInfo
from cdchub.change import ChangeType, Entry, SqliteValue, encode_change
from cdchub.fanout import EntryRows, Feed, Matcher
from cdchub.log.protocol import Narrowing
from cdchub.sse import SseFramer


def table(name: str, affinity: Affinity | None) -> TableInfo:
    columns = [ColumnInfo("id", "", Affinity.BLOB)]
    columns += [ColumnInfo("room", "", affinity)] if affinity else []
    return TableInfo(name, ("id",), tuple(columns), "room" if affinity else None)


CATALOG = Catalog([table("plain", None), table("chat", Affinity.TEXT), table("desk", Affinity.NUMERIC)])


def entry(kind: ChangeType, old: SqliteValue, new: SqliteValue, name: str = "chat") -> Entry:
    data = encode_change(
        lsn=1,
        type=kind,
        table=name,
        key={"id": 1},
        old=None if kind is ChangeType.INSERT else {"id": 1, "room": None},
        new=None if kind is ChangeType.DELETE else {"id": 1, "room": None},
        timestamp_ms=0,
        txid=1,
        commit=True,
    )
    return Entry(1, kind, name, old, new, data)


def seen(kind: ChangeType, old: SqliteValue, new: SqliteValue, name: str = "chat") -> EntryRows:
    return EntryRows(entry(kind, old, new, name))


INS, UPD, DEL = ChangeType.INSERT, ChangeType.UPDATE, ChangeType.DELETE


@pytest.mark.parametrize(
    ("kind", "old", "new", "seen_as"),
    [
        (INS, None, "x", "INSERT"),
        (INS, None, "y", None),
        (INS, None, None, None),
        (UPD, "x", "x", "UPDATE"),
        (UPD, "y", "x", "INSERT"),
        (UPD, None, "x", "INSERT"),
        (UPD, "x", "y", "DELETE"),
        (UPD, "x", None, "DELETE"),
        (UPD, "y", "z", None),
        (UPD, "X", "x", "INSERT"),
        (DEL, "x", None, "DELETE"),
        (DEL, "y", None, None),
        (DEL, None, None, None),
        (INS, None, b"x", None),
    ],
)
def test_a_room_sees_its_rows_come_and_go(
    kind: ChangeType, old: SqliteValue, new: SqliteValue, seen_as: str | None
) -> None:
    data = Matcher(Selection(("chat",), "x"), CATALOG).data(seen(kind, old, new))
    assert (None if data is None else json.loads(data)["type"]) == seen_as


@pytest.mark.parametrize(("value", "inside"), [(5, True), (5.0, True), ("5", False), (6, False)])
def test_numbers_compare_by_value(value: SqliteValue, inside: bool) -> None:
    matcher = Matcher(Selection(("desk",), "5"), CATALOG)
    assert (matcher.data(seen(INS, None, value, "desk")) is not None) is inside


def test_tables_without_a_room_column_are_sent_whole() -> None:
    matcher = Matcher(Selection(("chat", "plain"), "x"), CATALOG)
    assert matcher.data(seen(INS, None, None, "plain")) is not None
    assert matcher.data(seen(INS, None, None, "desk")) is None


def test_a_table_that_is_gone_keeps_its_rooms() -> None:
    """Read later, its rows without a room look as if it had no room column."""
    gone = [table("chat", Affinity.TEXT), table("desk", Affinity.NUMERIC), table("any", Affinity.BLOB)]
    catalog = Catalog([table("plain", None)], gone=gone)
    matcher = Matcher(Selection(None, "1"), catalog)
    assert matcher.data(seen(INS, None, None)) is None
    assert matcher.data(seen(UPD, None, "y")) is None
    assert matcher.data(seen(UPD, None, "1")) is not None
    # Its numbers are compared as they were when it was there.
    assert matcher.data(seen(DEL, 1.0, None, "desk")) is not None
    assert matcher.data(seen(INS, None, 1, "any")) is None
    assert matcher.data(seen(INS, None, None, "plain")) is not None
    assert Matcher(Selection(("desk",), "1"), catalog).narrowing() == Narrowing(("desk",), 1)
    assert Matcher(Selection(("plain",), "1"), catalog).data(seen(INS, None, "1")) is None


def test_everything_includes_tables_that_come_later() -> None:
    matcher = Matcher(Selection(None), CATALOG)
    assert matcher.covers("not yet there")


def test_a_break_is_no_change() -> None:
    feed = Feed(Selection(None), CATALOG, SseFramer())
    broken = Entry(1, ChangeType.BREAK, "chat", None, None, b"{}")
    assert feed.matcher.items([broken]) == []
