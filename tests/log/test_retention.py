"""What the log lets go of and what it begins with: retention, base snapshots, replicas."""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import replace

import msgspec
import pytest

from cdchub.catalog import TableSchema
from cdchub.change import ChangeType, Entry, encode_change
from cdchub.log.protocol import (
    BaseChunk,
    Cursor,
    Expired,
    Retention,
)
from cdchub.log.retention import SWEEP_BLOCKS_MAX
from tests.log.logs import FOREVER, Log, entry


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

    def read(wanted: str | None) -> list[tuple[int, bool]]:
        def seen(table: str, line: bytes) -> bytes | None:
            return line if wanted in (None, msgspec.json.decode(line)["newValue"]["room"]) else None

        lines = b"".join(log.reader.base_changes(known, ["t"], seen)).splitlines()
        changes = [msgspec.json.decode(line) for line in lines]
        return [(change["key"]["id"], change["commit"]) for change in changes]

    assert read(None) == [(0, False), (1, False), (2, True)]
    assert read("a") == [(0, False), (2, True)]
    assert read("elsewhere") == []


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
