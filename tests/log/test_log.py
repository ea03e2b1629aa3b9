"""The log on real files: order, conflicts, pages by table and room, durability, epochs."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdchub.catalog import TableSchema
from cdchub.change import ChangeType, Entry, SqliteValue, WireNote, encode_note
from cdchub.errors import ForeignLog, LogUnusable
from cdchub.log import LogWriter, Replica
from cdchub.log.protocol import (
    Cursor,
    LogConflict,
    Narrowing,
    SourceMark,
)
from tests.log.logs import ALL, MARK, Log, entry


def test_entries_come_back_as_they_were(log: Log) -> None:
    log.begin()
    entries = [
        entry(1, "a", None, "x"),
        entry(2, "b", 5, 5.5, kind=ChangeType.UPDATE),
        entry(3, "a", b"\xff", None, kind=ChangeType.DELETE),
        entry(4, "a", kind=ChangeType.BREAK),
    ]
    log.append(1, entries)
    page = log.reader.read(Cursor(1, 0), upto=4, narrowing=ALL, rows_max=10, bytes_max=10**6)
    assert list(page.entries) == entries
    assert page.scanned_to == 4
    assert log.writer.tail().nonce == 44


def test_an_lsn_is_written_once(log: Log) -> None:
    log.begin()
    log.append(1, [entry(1), entry(2)])
    with pytest.raises(LogConflict):
        log.append(1, [entry(3), entry(2)])
    assert log.lsns(0, 9) == [1, 2], "nothing of a refused batch is in the log"


def test_the_same_lsn_may_stand_in_two_epochs(log: Log) -> None:
    first = log.begin()
    log.append(first, [entry(1), entry(2)])
    second = log.begin(base=1)
    log.append(second, [entry(2, "other")])
    state = log.writer.state()
    assert [(e.number, e.floor_lsn, e.head_lsn) for e in state.epochs] == [(1, 0, 2), (2, 1, 2)]
    assert log.lsns(0, 2, epoch=1) == [1, 2]
    assert log.lsns(1, 2, epoch=2) == [2]


def test_pages_end_at_their_bounds(log: Log) -> None:
    log.begin()
    log.append(1, [entry(n) for n in range(1, 11)])
    by_rows = log.reader.read(Cursor(1, 2), upto=10, narrowing=ALL, rows_max=3, bytes_max=10**6)
    assert ([e.lsn for e in by_rows.entries], by_rows.scanned_to) == ([3, 4, 5], 5)
    by_bytes = log.reader.read(Cursor(1, 2), upto=10, narrowing=ALL, rows_max=9, bytes_max=1)
    assert ([e.lsn for e in by_bytes.entries], by_bytes.scanned_to) == ([3], 3)
    nothing = Narrowing(("unknown",))
    empty = log.reader.read(Cursor(1, 2), upto=9, narrowing=nothing, rows_max=9, bytes_max=9)
    assert (list(empty.entries), empty.scanned_to) == ([], 9)


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([None, "x", "y", 5, 5.0, b"x"]),
        st.sampled_from([None, "x", "y", 5, 5.0, b"x"]),
        st.sampled_from([ChangeType.INSERT, ChangeType.UPDATE, ChangeType.DELETE, ChangeType.BREAK]),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ENTRIES,
    st.sampled_from([None, ("a",), ("a", "c")]),
    st.sampled_from([None, "x", 5, 5.0]),
    st.integers(0, 30),
    st.integers(1, 31),
)
def test_narrowing_leaves_out_only_what_cannot_match(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, SqliteValue, SqliteValue, ChangeType]],
    tables: tuple[str, ...] | None,
    room: SqliteValue,
    after: int,
    limit: int,
) -> None:
    log = Log(tmp_path_factory.mktemp("log"))
    try:
        log.begin()
        entries = [entry(n, t, o, w, kind=k) for n, (t, o, w, k) in enumerate(rows, 1)]
        if entries:
            log.append(1, entries)
        narrowing = Narrowing(tables, room if tables is not None and len(tables) == 1 else None)
        got = log.lsns(after, len(rows), narrowing, rows=limit)
        assert got == sorted(set(got)), "an entry came twice, or out of order"
        must = [
            e.lsn
            for e in entries
            if e.lsn > after
            and (tables is None or e.table in tables)
            and (
                narrowing.room is None
                or e.type is ChangeType.BREAK
                or narrowing.room in (e.room_old, e.room_new)
            )
        ]
        assert got == must[:limit]
    finally:
        log.close()


def test_no_table_and_very_many_can_be_asked_for(log: Log) -> None:
    log.begin()
    log.append(1, [entry(1, "a"), entry(2, "b"), entry(3, "c")])
    assert log.lsns(0, 3, Narrowing(())) == []
    # More than SQLite would take as parts of one SELECT.
    assert log.lsns(0, 3, Narrowing(("a", "c", *(f"t{n}" for n in range(600))))) == [1, 3]


@pytest.mark.parametrize(
    ("mark", "just_installed", "reason"),
    [
        (MARK, False, None),
        (SourceMark("install", 8, "boot"), False, "replaced"),
        (SourceMark("install", 7, "other boot"), False, "unclean"),
        (SourceMark("other", 7, "boot"), True, "restored"),
    ],
)
def test_the_log_knows_its_source(
    log: Log, mark: SourceMark, just_installed: bool, reason: str | None
) -> None:
    assert log.writer.belongs_to(MARK, just_installed=True) == "new"
    log.writer.adopt(MARK)
    assert log.writer.belongs_to(mark, just_installed=just_installed) == reason


def test_a_log_of_another_database_is_refused(log: Log) -> None:
    log.writer.adopt(MARK)
    with pytest.raises(ForeignLog, match="another database"):
        log.writer.belongs_to(SourceMark("other", 7, "boot"), just_installed=False)


def test_a_clean_stop_survives_a_reboot(log: Log) -> None:
    log.writer.adopt(MARK)
    log.writer.close_cleanly()
    writer = LogWriter(log.path, database=log.path.with_name("app.db"))
    assert writer.belongs_to(SourceMark("install", 7, "next boot"), just_installed=False) is None
    writer.close()


def test_sync_commits_something(log: Log) -> None:
    log.begin()
    log.append(1, [entry(1), entry(2)])
    log.writer.sync()
    db = sqlite3.connect(log.path)
    marks = db.execute("SELECT count(*) FROM meta WHERE key = 'synced_ns'").fetchone()
    assert marks == (1,)
    db.close()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one", b""])
def test_a_file_that_is_no_log_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "app.db").touch()
    path = tmp_path / "app.db-cdchub"
    path.write_bytes(content)
    with pytest.raises(LogUnusable):
        LogWriter(path, database=tmp_path / "app.db")
    assert path.read_bytes() == content


def test_another_applications_database_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "app.db").touch()
    path = tmp_path / "app.db-cdchub"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE precious(a)")
    db.close()
    with pytest.raises(LogUnusable, match="not a change log"):
        LogWriter(path, database=tmp_path / "app.db")
    db = sqlite3.connect(path)
    assert [name for (name,) in db.execute("SELECT name FROM sqlite_schema")] == ["precious"]
    db.close()


def test_a_replica_knows_what_it_does_not_know() -> None:
    def note(lsn: int, kind: ChangeType, schema: TableSchema | None = None) -> Entry:
        raw = None if schema is None else msgspec.Raw(msgspec.json.encode(schema))
        line = encode_note(WireNote(lsn, kind.name, "t", 1, lsn, commit=True, schema=raw))
        return Entry(lsn, kind, "t", None, None, line)

    begins = TableSchema(
        "t", ("id",), (("id", ""),), (), None, whole=True, sql="CREATE TABLE t(id)", begins=True
    )
    replica = Replica([begins], lsn=0)
    try:
        replica.apply([note(1, ChangeType.BREAK)])
        assert (replica.knows("t"), replica.lost) == (False, {"t"})
        replica.apply([note(2, ChangeType.SCHEMA, begins)])
        assert (replica.knows("t"), replica.lost) == (True, set())
        replica.apply([note(3, ChangeType.BREAK), note(4, ChangeType.SCHEMA)])
        assert (replica.knows("t"), replica.lost) == (False, set())
    finally:
        replica.close()


@pytest.mark.parametrize("flushed", [False, True], ids=["pending", "stored"])
@pytest.mark.parametrize(
    ("kinds", "overwritten"),
    [
        ("INSERT", False),
        ("INSERT UPDATE DELETE INSERT", False),
        ("DELETE INSERT", False),
        ("INSERT INSERT", True),
        ("INSERT UPDATE INSERT DELETE", True),
        ("INSERT INSERT BREAK", False),
    ],
)
def test_a_replica_notices_an_insert_over_a_row(kinds: str, overwritten: bool, flushed: bool) -> None:
    def change(lsn: int, kind: ChangeType) -> Entry:
        row = b"null" if kind is ChangeType.DELETE else b'{"id":1}'
        line = b'{"lsn":%d,"table":"t","key":{"id":1},"newValue":%s}' % (lsn, row)
        return Entry(lsn, kind, "t", None, None, line)

    replica = Replica([TableSchema("t", ("id",), (("id", ""),), (), None, whole=True, sql="")], lsn=0)
    try:
        for lsn, name in enumerate(kinds.split(), 1):
            replica.apply([change(lsn, ChangeType[name])])
            if flushed:
                replica.count("t")
        assert replica.overwritten("t") is overwritten
    finally:
        replica.close()
