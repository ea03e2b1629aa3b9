"""Where commits end, read from the -wal: what is found against what writers wrote.

The oracle is the writer itself, which asks for the last LSN after each of its commits. Writer and
reader of the files are this process (one SQLite library) or another one (the other library).
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from cdchub.capture.commits import (
    CommitEnds,
)
from cdchub.capture.install import reconcile
from cdchub.capture.triggers import OUTBOX

PAGE_SIZES = [512, 1024, 4096, 65536]
CREATE = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"


def fits(found: list[int] | None, truth: list[int]) -> bool:
    """Whether this may be said of these ends: after a restart the first ones may count as one."""
    return found is None or found == (truth[-len(found) :] if found else truth)


class World:
    """A captured database, its writer and the reader that a hub would have, with the oracle."""

    def __init__(self, path: Path, *, page: int = 4096, tables: int = 0, cache: int = 50) -> None:
        self.path, self.wal = path, path.with_name(path.name + "-wal")
        self.db = apsw.Connection(str(path))
        self.db.execute(f"PRAGMA page_size = {page}")
        for number in range(tables):
            name = f"an_application_with_many_tables_{number:04}"
            self.db.execute(f"CREATE TABLE {name}(i INTEGER PRIMARY KEY AUTOINCREMENT)")
            self.db.execute(f"INSERT INTO {name} DEFAULT VALUES")
        self.db.execute("PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0")
        self.db.execute(f"PRAGMA cache_size = {cache}; PRAGMA synchronous = normal; {CREATE}")
        with self.db:
            reconcile(self.db)
        # Nobody reconciles after this, so its commits are none of the outbox.
        self.db.execute("CREATE TABLE free(a)")
        self.hub = apsw.Connection(str(path))
        self.reader = CommitEnds(self.wal)
        self.ends: list[int] = []
        self.after = 0
        self.salts = b""
        self.next = 0

    def close(self) -> None:
        self.reader.close()
        self.hub.close()
        self.db.close()

    def insert(self, rows: int) -> None:
        self.db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " INSERT INTO t(id, v) SELECT i + ?, hex(zeroblob(i % 40)) FROM n",
            (rows, self.next),
        )
        self.next += rows

    def commit(self, *rows: int) -> None:
        with self.db:
            for number in rows:
                self.insert(number)
        self.committed()

    def committed(self) -> None:
        last = self.head(self.db)
        if last > (self.ends[-1] if self.ends else 0):
            self.ends.append(last)

    def head(self, db: Any) -> int:
        return db.execute(f"SELECT max(lsn) FROM {OUTBOX}").get or 0

    def read(self, *, held: bool = True) -> list[int] | None:
        """What the reader says now; checked, and so is that it is not None without need."""
        with self.hub:
            head = self.head(self.hub)
            sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_sequence'"
            root = self.hub.execute(sql).get
            found = self.reader.upto(after=self.after, head=head, root_page=root, held=held)
        salts = self.wal.read_bytes()[16:24]
        truth = [end for end in self.ends if self.after < end <= head]
        assert fits(found, truth)
        if salts and salts == self.salts:
            assert found == truth
        self.salts, self.after = salts, head
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "app.db")
    yield world
    world.close()


def test_each_commit_is_told_apart(world: World) -> None:
    world.read()
    for rows in (1, 3, 2, 5, 1):
        world.commit(rows)
    assert world.read() == [1, 4, 6, 11, 12]
    assert world.read() == []
    world.commit(1)
    assert world.read() == [13]


def test_without_an_open_snapshot_the_second_look_knows(world: World) -> None:
    world.commit(2)
    assert world.read(held=False) == [2]
    world.commit(2)
    world.commit(3)
    assert world.read(held=False) == [4, 7]


def test_a_caller_that_lags_gets_each_end_once_for_each_question(world: World) -> None:
    world.read()
    for _ in range(5):
        world.commit(3)
    root = world.db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_sequence'").get
    ask = world.reader.upto
    assert ask(after=0, head=15, root_page=root) == [3, 6, 9, 12, 15]
    assert ask(after=4, head=15, root_page=root) == [6, 9, 12, 15]
    assert ask(after=9, head=15, root_page=root) == [12, 15]
    assert ask(after=3, head=15, root_page=root) == [9, 12, 15], "9 stands for what is forgotten"


def test_an_only_change_is_an_end_even_without_a_wal(world: World) -> None:
    world.commit(2)
    world.read()
    world.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    world.commit(1)
    world.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert world.read() == [3]


@pytest.mark.parametrize("mode", ["RESTART", "TRUNCATE"])
def test_a_restart_between_two_looks_is_noticed(world: World, mode: str) -> None:
    world.read()
    world.commit(3)
    world.read()
    world.commit(2)
    world.db.execute(f"PRAGMA wal_checkpoint({mode})")
    world.commit(4)
    assert world.read() == [9], "the ends before it went with the old WAL"
    world.commit(2)
    world.commit(2)
    assert world.read() == [11, 13]


def test_a_replaced_or_missing_wal_is_noticed(world: World, tmp_path: Path) -> None:
    world.read()
    world.commit(3)
    reader = CommitEnds(tmp_path / "nothing-wal")
    assert reader.upto(after=0, head=3, root_page=3, held=True) is None
    (tmp_path / "nothing-wal").write_bytes(world.wal.read_bytes())
    assert reader.upto(after=3, head=3, root_page=3, held=True) == []
    (tmp_path / "nothing-wal").rename(tmp_path / "old-wal")
    (tmp_path / "nothing-wal").write_bytes(b"no wal")
    assert reader.upto(after=3, head=6, root_page=3) is None
    reader.close()


def test_insert_or_fail_that_leaves_the_sequence_behind(world: World) -> None:
    world.commit(1)
    world.read()
    with pytest.raises(apsw.ConstraintError):
        world.db.execute("INSERT OR FAIL INTO t VALUES(501, 1), (502, 1), (1, 1)")
    world.committed()
    world.commit(2)
    assert world.ends == [1, 3, 5]
    world.salts = b""
    assert world.read() is None
    world.commit(2)
    with world.db:
        world.insert(1)
        with pytest.raises(apsw.ConstraintError):
            world.db.execute("INSERT OR FAIL INTO t VALUES(601, 1), (602, 1), (1, 1)")
    world.committed()
    world.salts = b""
    assert world.read() is None
    world.commit(1, 1)
    world.commit(3)
    assert world.read() == world.ends[-2:]


def test_a_users_table_that_looks_like_the_outbox(world: World) -> None:
    world.db.execute("CREATE TABLE trade(id INTEGER PRIMARY KEY, a, b TEXT, c, d INTEGER, e INTEGER)")
    world.read()
    world.commit(2)
    for id in (5000, 9, 1):
        with world.db:
            world.insert(2)
            world.db.execute("INSERT INTO trade VALUES(?, 1, 'b', 100, 1700000000000, ?)", (id, 2**60))
        world.committed()
        world.salts = b""
        world.read()
    world.commit(2)
    world.commit(2)
    assert world.read() == world.ends[-2:]


def test_vacuum_moves_the_sequence(world: World) -> None:
    world.db.execute("CREATE TABLE big(a); INSERT INTO big VALUES(zeroblob(99999))")
    world.read()
    world.commit(2)
    world.commit(3)
    world.db.execute("DROP TABLE big; VACUUM")
    world.commit(4)
    assert world.read() == [2, 5, 9]


def test_a_rolled_back_spill_is_no_commit(world: World) -> None:
    world.read()
    world.commit(2)
    world.db.execute("BEGIN")
    world.insert(3000)
    assert world.read() == [2]
    world.db.execute("ROLLBACK")
    world.next -= 3000
    world.commit(5)
    assert world.read() == [7]
    world.commit(2990, 3)
    world.commit(2)
    assert world.read() == [3000, 3002]


def test_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "wide.db"
    db = apsw.Connection(str(path))
    db.execute("PRAGMA encoding = 'UTF-16'; CREATE TABLE one(a)")
    db.close()
    world = World(path)
    world.read()
    world.commit(2)
    world.commit(3)
    assert world.read() == [2, 5]
    world.close()


def random_step(world: World, rng: random.Random) -> None:
    dice, db = rng.random(), world.db
    size = rng.choice([1, 1, 2, 5, 30, 300, 3000])
    if dice < 0.45:
        world.commit(*(rng.randint(1, size) for _ in range(rng.choice([1, 1, 2]))))
    elif dice < 0.6:
        with db:
            if rng.random() < 0.7:
                world.insert(rng.randint(1, size))
            db.execute("SAVEPOINT s")
            world.insert(rng.randint(1, size))
            db.execute("ROLLBACK TO s")
            if rng.random() < 0.5:
                world.insert(rng.randint(1, 4))
        world.committed()
    elif dice < 0.7:
        db.execute("BEGIN")
        world.insert(rng.randint(1, size))
        if rng.random() < 0.3:
            world.read()
        db.execute("ROLLBACK")
    elif dice < 0.78:
        db.execute("INSERT INTO free SELECT zeroblob(?)", (rng.randint(1, 20_000),))
    elif dice < 0.88:
        limit = rng.choice([world.after, rng.randint(0, world.after)])
        db.execute(f"DELETE FROM {OUTBOX} WHERE lsn < ?", (limit,))
    elif dice < 0.9:
        db.execute("UPDATE t SET v = 'x' WHERE id <= ?", (rng.randint(1, 50),))
        world.committed()
    elif dice < 0.92:
        db.execute("DELETE FROM t WHERE id <= ?", (rng.randint(1, 500),))
        world.committed()
    else:
        db.execute(f"PRAGMA wal_checkpoint({rng.choice(['PASSIVE', 'RESTART', 'TRUNCATE'])})")


# To make 200 captured tables takes longer than all the rest.
@pytest.mark.parametrize(("seed", "tables"), [(0, 0), (1, 0), (0, 200)])
@pytest.mark.parametrize("page", PAGE_SIZES)
def test_random_programs(tmp_path: Path, seed: int, page: int, tables: int) -> None:
    rng = random.Random(f"{seed} {page} {tables}")
    world = World(tmp_path / "app.db", page=page, tables=tables, cache=rng.choice([5, 20, 2000]))
    found = 0
    try:
        for _ in range(80):
            random_step(world, rng)
            if rng.random() < 0.4:
                found += len(world.read() or [])
    finally:
        world.close()
    print(f"seed {seed}: {found} of {len(world.ends)} ends found")
    assert found > len(world.ends) / 4


WRITER = """
import random, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
rng = random.Random(sys.argv[2])
db.execute(f"PRAGMA wal_autocheckpoint = {sys.argv[3]}")
db.execute("PRAGMA synchronous = off")
db.execute("PRAGMA cache_size = 10")
for number in range(int(sys.argv[4])):
    db.execute("BEGIN IMMEDIATE")
    rows = rng.choice([1, 1, 1, 2, 5, 400])
    db.executemany("INSERT INTO t(v) VALUES(?)", [(number,)] * rows)
    if rng.random() < 0.2:
        db.execute("ROLLBACK")
        continue
    last = db.execute("SELECT max(lsn) FROM _cdchub_outbox").fetchone()[0]
    db.execute("COMMIT")
    print(last)
db.close()
"""


@pytest.mark.parametrize(("checkpoint", "commits"), [(0, 800), (50, 800)])
@pytest.mark.parametrize("seed", range(2))
def test_while_other_processes_write(tmp_path: Path, seed: int, checkpoint: int, commits: int) -> None:
    world = World(tmp_path / "app.db")
    command = [sys.executable, "-c", WRITER, str(world.path)]
    world.read()
    writers = [
        subprocess.Popen(
            [*command, f"{seed}{n}", str(checkpoint), str(commits)], stdout=subprocess.PIPE, text=True
        )
        for n in range(2)
    ]
    answers: list[tuple[int, int, list[int] | None]] = []
    root = world.hub.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_sequence'").get
    running = True
    while running:
        running = any(writer.poll() is None for writer in writers)
        with world.hub:
            head = world.head(world.hub)
            held = seed != 0
            if held:
                found = world.reader.upto(after=world.after, head=head, root_page=root, held=True)
        if not held:
            found = world.reader.upto(after=world.after, head=head, root_page=root)
        answers.append((world.after, head, found))
        world.after = head
    truth = sorted(int(line) for writer in writers for line in writer.communicate()[0].split())
    world.close()
    assert all(writer.returncode == 0 for writer in writers)
    assert truth[-1] == head
    for after, head, found in answers:
        ends = [end for end in truth if after < end <= head]
        assert fits(found, ends), (seed, after, head)
        assert checkpoint or not held or found == ends, (seed, after, head)
