"""`cdchub verify`: it agrees with every log that is right, and shows each row that is not."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import HubProcess, cdchub, make_database, run_sql, wait_for, write_without_triggers

ROWS = 200


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    """Three tables with rows, captured by `init`."""
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)",
        "INSERT INTO t VALUES (1, 'x', 10), (2, 'y', 20), (3, 'z', 30)",
        "CREATE TABLE keyless(a)",
        "INSERT INTO keyless VALUES (1), (2)",
        "CREATE TABLE nullable(k PRIMARY KEY, v)",
        "INSERT INTO nullable VALUES (NULL, 1), (NULL, 2), ('k', 3)",
    )
    assert cdchub("init", database).returncode == 0
    return database


def agrees(database: Path) -> str:
    done = cdchub("verify", database)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.startswith("verified at ")
    return done.stdout


def differs(database: Path) -> list[str]:
    done = cdchub("verify", database)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


def fails(database: Path, *words: str) -> None:
    done = cdchub("verify", database)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert done.stderr.startswith("cdchub: ")
    for word in words:
        assert word in done.stderr


@contextmanager
def writing(database: Path) -> Iterator[None]:
    """A process that writes all the while."""
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    db.execute('BEGIN IMMEDIATE')\n"
        "    db.execute('INSERT OR REPLACE INTO t VALUES (?, ?, ?)', (n % 50, n, n))\n"
        "    db.execute('UPDATE keyless SET a = a + 1')\n"
        "    db.execute('DELETE FROM t WHERE id = ?', (n % 7,))\n"
        "    db.execute('COMMIT')\n"
        "    if n == 1: print('on', flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, database], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        yield
        assert process.poll() is None, "the writer has failed"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


# What is right.


def test_it_agrees_before_any_hub_ran(captured: Path) -> None:
    assert agrees(captured).endswith("8 rows of 3 tables agree\n")
    run_sql(captured, "UPDATE t SET a = 'new' WHERE id = 1", "DELETE FROM nullable WHERE v = 1")
    assert agrees(captured).endswith("7 rows of 3 tables agree\n")


def test_it_agrees_while_writers_write_and_a_hub_prunes(captured: Path) -> None:
    with writing(captured):
        agrees(captured)
        with HubProcess(captured) as hub:
            stop = threading.Event()
            pruner = threading.Thread(target=prune_often, args=(hub, stop))
            pruner.start()
            try:
                for _ in range(4):
                    agrees(captured)
            finally:
                stop.set()
                pruner.join()
        agrees(captured)


def prune_often(hub: HubProcess, stop: threading.Event) -> None:
    """Takes from the outbox what the log has, as the hub does at times of its own."""
    while not stop.is_set():
        head = int(hub.head().split(":")[1])
        run_sql(hub.database, f"DELETE FROM _cdchub_outbox WHERE lsn < {head}")


def test_it_agrees_after_restarts(captured: Path) -> None:
    hub = HubProcess(captured)
    for end in (hub.stop, hub.kill, hub.stop):
        hub.start()
        run_sql(captured, "INSERT INTO t(a) VALUES ('served')", "INSERT INTO keyless VALUES (5)")
        end()
        run_sql(captured, "INSERT INTO t(a) VALUES ('alone')", "DELETE FROM keyless WHERE rowid = 1")
        agrees(captured)


def test_a_table_beyond_a_break_is_compared_after_the_next_base(captured: Path) -> None:
    with HubProcess(captured) as hub:
        with hub.stream("table=keyless") as stream:
            stream.until("caught-up")
            run_sql(captured, "DELETE FROM keyless WHERE a = 1", "VACUUM")
            stream.until("reset")
        wait_for(lambda: not cdchub("verify", captured).stderr, "the base after the break")
        agrees(captured)


# What is not.


PLANTED = {
    "UPDATE t SET a = 'w' WHERE id = 2": (
        't {"id":2}: log {"id":2,"a":"y","b":20}, table {"id":2,"a":"w","b":20}'
    ),
    "UPDATE t SET b = 10.0 WHERE id = 1": (
        't {"id":1}: log {"id":1,"a":"x","b":10}, table {"id":1,"a":"x","b":10.0}'
    ),
    "DELETE FROM t WHERE id = 3": 't {"id":3}: log {"id":3,"a":"z","b":30}, table has no row',
    "INSERT INTO t VALUES (4, 'n', 40)": ('t {"id":4}: log has no row, table {"id":4,"a":"n","b":40}'),
    "UPDATE keyless SET a = NULL WHERE a = 2": 'keyless {"rowid":2}: log {"a":2}, table {"a":null}',
    "DELETE FROM nullable WHERE v = 2": (
        'nullable {"k":null,"rowid":2}: log {"k":null,"v":2}, table has no row'
    ),
}


@pytest.mark.parametrize("served", [False, True])
def test_each_difference_is_shown(captured: Path, served: bool) -> None:
    write_without_triggers(captured, *PLANTED)
    if served:
        with HubProcess(captured) as hub:
            run_sql(captured, "INSERT INTO t VALUES (9, 'seen', 90)")
            hub.wait_for_lsn(1)
            *shown, last = differs(captured)
    else:
        *shown, last = differs(captured)
    assert sorted(shown) == sorted(PLANTED.values())
    assert sorted(last.split(": ", 2)[2].split(", ")) == ["keyless: 1", "nullable: 1", "t: 4"]


def test_one_difference_is_enough(captured: Path) -> None:
    write_without_triggers(captured, "UPDATE keyless SET a = 'same' WHERE a = 1")
    assert len(differs(captured)) == 2
    write_without_triggers(captured, "UPDATE keyless SET a = 1 WHERE a = 'same'")
    agrees(captured)


def test_many_differences_are_counted(captured: Path) -> None:
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS + 9})"
    write_without_triggers(
        captured,
        f"INSERT INTO t {numbers} SELECT i, hex(zeroblob(500)), 0 FROM n",
        "DELETE FROM keyless",
    )
    *shown, last = differs(captured)
    assert sorted(last.split(": ", 2)[2].split(", ")) == ["keyless: 2", f"t: {ROWS}"]
    assert len(shown) == 22
    assert all(len(line) < 500 for line in shown)


# What can't be compared.


def test_what_there_is_to_verify_from(captured: Path, tmp_path: Path) -> None:
    bare = make_database(tmp_path / "bare.db", "CREATE TABLE t(a)")
    fails(bare, "cdchub init")
    fails(tmp_path / "none.db", "no such file")
    for suffix in ("", "-wal", "-shm"):
        captured.with_name(f"app.db-cdchub{suffix}").unlink(missing_ok=True)
    fails(captured, "no change log", "cdchub init")


def test_without_base_snapshots_it_says_so(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(a)")
    with HubProcess(database, "--no-base"):
        fails(database, "no base snapshot", "--no-base")
    fails(database, "no base snapshot", "--no-base")


def test_a_schema_that_no_hub_has_seen_is_not_compared(captured: Path) -> None:
    run_sql(captured, "DROP TABLE t")
    fails(captured, "cdchub init")
    assert cdchub("init", captured).returncode == 0
    agrees(captured)


def test_it_writes_nothing(captured: Path) -> None:
    run_sql(captured, "UPDATE t SET b = 0")
    before = contents(captured.parent)
    agrees(captured)
    assert contents(captured.parent) == before
    write_without_triggers(captured, "DELETE FROM t WHERE id = 1")
    before = contents(captured.parent)
    differs(captured)
    assert contents(captured.parent) == before


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Each file with its time and its bytes, but for what SQLite needs to read beside a writer: the
    shared memory, and a -wal with nothing in it."""
    files = [path for path in folder.iterdir() if not path.name.endswith("-shm")]
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.stat().st_size
    }
