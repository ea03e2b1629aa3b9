"""The log on real files: order, conflicts, pages by table and room, retention, durability, epochs."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdchub.catalog import TableSchema
from cdchub.change import ChangeType, Entry, SqliteValue, encode_change
from cdchub.errors import ForeignLog, LogUnusable
from cdchub.log import LogReader, LogWriter
from cdchub.log.protocol import (
    BaseChunk,
    Cursor,
    Expired,
    LogConflict,
    Narrowing,
    Retention,
    SourceMark,
)
from cdchub.log.retention import SWEEP_BLOCKS_MAX

ALL = Narrowing()
MARK = SourceMark("install", 7, "boot")
FOREVER = Retention(age_s=1e12, changes_max=10**9, bytes_max=2**40)


def entry(
    lsn: int,
    table: str = "t",
    old: SqliteValue = None,
    new: SqliteValue = None,
    *,
    kind: ChangeType = ChangeType.INSERT,
) -> Entry:
    return Entry(lsn, kind, table, old, new, b'{"txid":%d,"commit":true}' % lsn)


class Log:
    def __init__(self, folder: Path) -> None:
        (folder / "app.db").touch()
        self.path = folder / "app.db-cdchub"
        self.writer = LogWriter(self.path, database=folder / "app.db")
        self.reader = LogReader(self.path)

    def begin(self, base: int = 0) -> int:
        self.writer.start_epoch(base_lsn=base, base_nonce=None, now_ms=0, reason="new")
        return self.writer.state().present.number

    def append(self, epoch: int, entries: list[Entry], ts: int = 0) -> None:
        self.writer.append(epoch, entries, nonce=entries[-1].lsn * 11, timestamp_ms=ts)

    def lsns(
        self, after: int, upto: int, narrowing: Narrowing = ALL, *, epoch: int = 1, rows: int = 99
    ) -> list[int]:
        page = self.reader.read(
            Cursor(epoch, after), upto=upto, narrowing=narrowing, rows_max=rows, bytes_max=10**6
        )
        return [e.lsn for e in page.entries]

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.close()


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


def settle(log: Log, bounds: Retention, now_ms: int = 0) -> None:
    while log.writer.retain(bounds, now_ms=now_ms):
        pass


def base(log: Log, lsn: int, epoch: int = 1, rows: int = 3) -> None:
    """A complete base snapshot of table `t`."""
    schema = TableSchema("t", ("id",), (("id", ""),), (), None, whole=True, sql="")
    base_id = log.writer.begin_base(epoch, lsn, [schema], now_ms=0)
    lines = [
        encode_change(
            lsn=lsn,
            type=ChangeType.SNAPSHOT,
            table="t",
            key={"id": n},
            old=None,
            new={"id": n, "room": "ab"[n % 2]},
            timestamp_ms=0,
            txid=lsn,
            commit=False,
        )
        for n in range(rows)
    ]
    log.writer.add_to_base(base_id, [BaseChunk("t", zlib.compress(b"\n".join(lines)))])
    log.writer.finish_base(base_id, rows=rows, bytes=sum(map(len, lines)))


BY_COUNT = Retention(age_s=1e12, changes_max=3, bytes_max=2**40)


@pytest.mark.parametrize(
    ("bounds", "floor"),
    [
        (BY_COUNT, 7),
        (Retention(age_s=5, changes_max=99, bytes_max=2**40), 4),
        (Retention(age_s=0, changes_max=99, bytes_max=2**40), 9),
        (Retention(age_s=1e12, changes_max=99, bytes_max=1), 9),
        (FOREVER, 0),
    ],
)
def test_retention_drops_the_oldest_and_keeps_the_newest(
    log: Log, bounds: Retention, floor: int
) -> None:
    log.begin()
    for n in range(1, 11):
        log.append(1, [entry(n)], ts=n * 1000)
    settle(log, replace(bounds, to_bases=False), now_ms=10_000)
    assert log.writer.state().present.floor_lsn == floor
    assert log.lsns(floor, 99) == list(range(floor + 1, 11))
    if floor:
        with pytest.raises(Expired):
            log.lsns(floor - 1, 99)


def test_retention_lets_changes_go_only_up_to_a_newer_base(log: Log) -> None:
    log.begin()
    base(log, 0)
    log.append(1, [entry(n) for n in range(1, 11)])
    settle(log, BY_COUNT)
    assert log.writer.state().present.floor_lsn == 0, "no newer base yet"
    assert log.writer.overdue(BY_COUNT, now_ms=0)
    base(log, 5)
    base(log, 8)
    settle(log, BY_COUNT)
    present = log.writer.state().present
    assert (present.floor_lsn, present.base_lsn) == (5, 5), "8 would drop one change too many"
    assert [known.lsn for known in log.writer.bases()] == [5, 8], "the older one is swept away"
    assert log.lsns(5, 99) == [6, 7, 8, 9, 10]


def test_sweeping_works_in_slices(log: Log) -> None:
    log.begin()
    for n in range(1, 3 * SWEEP_BLOCKS_MAX + 1):
        log.append(1, [entry(n, old="x", new="y")])
    slices = []
    while gone := log.writer.retain(replace(BY_COUNT, changes_max=1, to_bases=False), now_ms=0):
        slices.append(gone)
    assert slices[0] == 1, "first the floor moves"
    assert max(slices) == SWEEP_BLOCKS_MAX
    db = sqlite3.connect(log.path)
    for table in ("blocks", "block_tables"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM block_rooms").fetchone() == (2,), "no route leads nowhere"
    db.close()


def test_an_old_epoch_goes_with_its_last_entry(log: Log) -> None:
    log.append(log.begin(), [entry(1), entry(2)])
    base(log, 0)
    log.append(log.begin(base=2), [entry(3), entry(4)])
    settle(log, replace(BY_COUNT, changes_max=1, to_bases=False))
    (present,) = log.writer.state().epochs
    assert (present.number, present.floor_lsn) == (2, 3)
    assert log.writer.bases() == []
    with pytest.raises(Expired):
        log.lsns(0, 2, epoch=1)


def test_an_unfinished_base_does_not_count(log: Log) -> None:
    log.begin()
    log.writer.begin_base(1, 0, [], now_ms=0)
    assert log.writer.bases() == []
    assert log.writer.state().present.base_lsn is None
    base(log, 0)
    settle(log, FOREVER)
    db = sqlite3.connect(log.path)
    assert db.execute("SELECT count(*) FROM bases").fetchone() == (1,), "it is swept away"
    db.close()


def test_a_base_comes_back_as_one_transaction(log: Log) -> None:
    log.begin()
    base(log, 7)
    (known,) = log.reader.bases()

    def read(rooms: dict[str, tuple[str, SqliteValue]]) -> list[tuple[int, bool]]:
        lines = b"".join(log.reader.base_changes(known, ["t"], rooms)).splitlines()
        changes = [msgspec.json.decode(line) for line in lines]
        return [(change["key"]["id"], change["commit"]) for change in changes]

    assert read({}) == [(0, False), (1, False), (2, True)]
    assert read({"t": ("room", "a")}) == [(0, False), (2, True)]
    assert read({"t": ("gone", "a")}) == []


def test_a_replica_is_the_base_and_what_follows(log: Log) -> None:
    log.begin()
    base(log, 0)

    def change(lsn: int, kind: ChangeType, key: int) -> Entry:
        new = None if kind is ChangeType.DELETE else {"id": key, "room": "z"}
        data = encode_change(
            lsn=lsn, type=kind, table="t", key={"id": key}, old=None, new=new, timestamp_ms=0,
            txid=lsn, commit=True,
        )  # fmt: skip
        return Entry(lsn, kind, "t", None, None, data)

    log.append(1, [change(1, ChangeType.DELETE, 0), change(2, ChangeType.UPDATE, 1)])
    log.append(1, [change(3, ChangeType.INSERT, 9), change(4, ChangeType.BREAK, 0)])
    seen = []
    for lsn in range(4):
        replica = log.reader.replica(Cursor(1, lsn))
        assert replica is not None
        seen.append([key for key, _ in replica.rows("t")])
        replica.close()
    ids = [[f'{{"id":{n}}}'.encode() for n in ns] for ns in ([0, 1, 2], [1, 2], [1, 2], [1, 2, 9])]
    assert seen == ids
    broken = log.reader.replica(Cursor(1, 4))
    assert broken is not None
    assert not broken.knows("t"), "behind a break nobody knows"
    broken.close()
    assert log.reader.replica(Cursor(2, 4)) is None, "another epoch has no base"


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
