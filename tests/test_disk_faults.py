"""Disks that are full, files that are damaged or gone, locks that are held: one clear line each.

The hub goes on as soon as it can, nothing is lost, and nothing that was whole is damaged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdchub.capture.connection import BUSY_TIMEOUT_S
from tests.harness import (
    PATIENCE_S,
    HubProcess,
    beside,
    cdchub,
    has_base,
    make_database,
    one_line,
    run_sql,
    verified,
    wait_for,
)
from tests.test_source_faults import add, ids, reset_of

FILL = "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT, completed INTEGER DEFAULT 0)"


@contextlib.contextmanager
def small_disk(size_bytes: int) -> Iterator[Path]:
    """A file system of its own, of so many bytes."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = Path(tempfile.mkdtemp(prefix="cdchub-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", folder]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        folder.rmdir()
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Nothing more can be written in this file system."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass
    try:
        yield
    finally:
        ballast.unlink()


def is_failing(hub: HubProcess) -> bool:
    return hub.get("/readyz").status == 503


def is_ready(hub: HubProcess) -> bool:
    return hub.get("/readyz").status == 200


# Full disks.


def test_a_full_disk_under_source_and_log_is_waited_out() -> None:
    with small_disk(24 * 2**20) as folder:
        database = make_database(folder / "app.db", FILL)
        with HubProcess(database) as hub, hub.stream("table=todos") as stream:
            stream.until("caught-up")
            add(database, "a")
            stream.changes(1)
            wait_for(lambda: has_base(hub), "the base")
            # Also the writer's own commit is refused: what isn't committed is no change.
            with full(folder), pytest.raises(AssertionError, match="full"):
                add_much(database, "lost")
            add(database, "b")
            assert ids(stream.changes(1)) == ["b"]
            wait_for(lambda: is_ready(hub), "the hub to be ready")
            assert hub.stop() == 0
        verified(database)


def add_much(database: Path, key: str) -> None:
    run_sql(database, f"INSERT INTO todos(id, title) VALUES ('{key}', hex(zeroblob(1000000)))")


def test_a_full_disk_under_the_log_alone_is_waited_out(tmp_path: Path) -> None:
    """The log lies on a disk of its own, through a link."""
    database = make_database(tmp_path / "app.db", FILL)
    with small_disk(8 * 2**20) as folder:
        with HubProcess(database) as hub:
            hub.stop()
        for suffix in ("-cdchub", "-cdchub-wal", "-cdchub-shm"):
            if beside(database, suffix).exists():
                shutil.move(beside(database, suffix), folder / f"app.db{suffix}")
        beside(database, "-cdchub").symlink_to(folder / "app.db-cdchub")
        with HubProcess(database) as hub, hub.stream("table=todos") as stream:
            stream.until("caught-up")
            wait_for(lambda: has_base(hub), "the base")
            with full(folder):
                add_much(database, "a")
                wait_for(lambda: is_failing(hub), "the hub to say that capture is failing")
                add(database, "b", "c")
            assert ids(stream.changes(3)) == ["a", "b", "c"]
            wait_for(lambda: is_ready(hub), "the hub to be ready again")
            assert "full" in hub.log
            assert hub.stop() == 0
        verified(database)


@pytest.mark.parametrize("room_mib", [5, 14])
def test_a_base_that_has_no_room_leaves_capture_alone(room_mib: int) -> None:
    """There is no room for a copy of the tables in a spool, or not for one in the log too."""
    with small_disk(40 * 2**20) as folder:
        database = make_database(
            folder / "app.db",
            FILL,
            "CREATE TABLE bulk(id INTEGER PRIMARY KEY, pad)",
            """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
            INSERT INTO bulk SELECT i, randomblob(8000) FROM n""",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA journal_mode = WAL",
        )
        room = os.statvfs(folder)
        (folder / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - room_mib * 2**20))
        with HubProcess(database) as hub, hub.stream("table=todos") as stream:
            stream.until("caught-up")
            wait_for(
                lambda: hub.get("/cdc/status").json()["log"]["basesFailed"] > 0,
                "the base to be given up",
            )
            for key in "abc":
                add(database, key)
                assert ids(stream.changes(1)) == [key]
            assert is_ready(hub)
            assert hub.stop() == 0


# Files that may not be written.


def test_a_source_that_becomes_read_only_under_the_hub_is_still_followed(hub: HubProcess) -> None:
    """Only the mode changes; who has it open for writing already goes on."""
    hub.database.chmod(0o444)
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        hub.database.chmod(0o644)
        add(hub.database, "a")
        assert ids(stream.changes(1)) == ["a"]


# Locks.


def test_a_lock_longer_than_the_hubs_patience_delays_and_loses_nothing(database: Path) -> None:
    """Somebody holds the write lock while the hub wants it: to mend capture, and to prune."""
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('ALTER TABLE todos ADD COLUMN note')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute(\"INSERT INTO todos(id) VALUES ('held')\")\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
        "db.execute('COMMIT')\n"
        "db.close()"
    )
    with HubProcess(database) as hub, hub.stream("table=todos") as stream:
        stream.until("caught-up")
        add(database, "a")
        stream.changes(1)
        # With it followers are told what has changed; without, they would be reset.
        wait_for(lambda: has_base(hub), "the base")
        holder = subprocess.Popen(
            [sys.executable, "-c", script, database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        # Twice the hub's busy timeout at least: it has given up, and come back.
        wait_for(lambda: hub.get("/cdc/status").json()["capture"]["busy"] >= 2, "the hub to be refused")
        assert hub.get("/cdc/status").json()["capture"]["faults"] == 0
        holder.communicate("")
        assert holder.returncode == 0
        # The row that was held, and then the new column.
        assert ids(stream.changes(3)) == ["held", "a", "held"]
        add(database, "b")
        assert ids(stream.changes(1)) == ["b"]
        assert hub.stop() == 0
    verified(database)
    assert BUSY_TIMEOUT_S < PATIENCE_S / 3


# Damage.


def damage(path: Path, page: int) -> bytes:
    """Overwrites one page, counted from 1. Returns the file as it was."""
    before = path.read_bytes()
    (page_bytes,) = (int.from_bytes(before[16:18], "big"),)
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xde\xad\xbe\xef" * (page_bytes // 4))
    return before


def root_page(path: Path, name: str) -> int:
    ((page,),) = run_sql(path, f"SELECT rootpage FROM sqlite_schema WHERE name = '{name}'")
    return int(page)


@pytest.mark.parametrize("name", ["_cdchub_meta", "_cdchub_tables", "_cdchub_outbox"])
def test_a_damaged_page_of_the_source_is_named_and_left_alone(hub: HubProcess, name: str) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    hub.stop()
    run_sql(hub.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole = damage(hub.database, root_page(hub.database, name))
    damaged = hub.database.read_bytes()
    one_line(cdchub("serve", hub.database, "--port", "0"), "malformed")
    assert hub.database.read_bytes() == damaged
    one_line(cdchub("verify", hub.database), "malformed")
    # With the page back in place, everything goes on in the same history.
    hub.database.write_bytes(whole)
    hub.start()
    assert hub.get("/cdc/status").json()["capture"]["epochsStarted"] == 0


def test_a_damaged_table_does_not_stop_the_capture_of_others(database: Path) -> None:
    run_sql(database, "CREATE TABLE other(id INTEGER PRIMARY KEY)", "INSERT INTO other VALUES (1)")
    run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    damage(database, root_page(database, "other"))
    with HubProcess(database) as hub, hub.stream("table=todos") as stream:
        stream.until("caught-up")
        add(database, "a")
        assert ids(stream.changes(1)) == ["a"]
        wait_for(lambda: "malformed" in hub.log, "the hub to name the damage")
        assert "Traceback" not in hub.log
        assert hub.get("/cdc/snapshot?table=other").status in (500, 503)
        assert hub.stop() == 0


@pytest.mark.parametrize("name", ["meta", "epochs", "blocks", "bases"])
def test_a_damaged_page_of_the_log_is_named_and_left_alone(hub: HubProcess, name: str) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    wait_for(lambda: hub.get("/cdc/status").json()["log"]["basesTaken"] == 1, "the base")
    hub.stop()
    log = beside(hub.database, "-cdchub")
    source = hub.database.read_bytes()
    page = root_page(log, name)
    run_sql(log, "PRAGMA wal_checkpoint(TRUNCATE)")
    size = len(damage(log, page))
    # A disk damages a page without a write, so the file's mark would still be the one that was left.
    beside(hub.database, "-cdchub.lock").unlink()
    one_line(cdchub("serve", hub.database, "--port", "0"), str(log), "malformed")
    assert log.stat().st_size == size
    if name != "meta":  # which nobody needs for reading
        one_line(cdchub("verify", hub.database), "change log", "malformed")
    assert hub.database.read_bytes() == source
    # Who removes it has said so: another history begins, and followers learn it.
    log.unlink()
    hub.start()
    with hub.stream("table=todos&snapshot=1", Last_Event_ID="abcdef:1") as stream:
        assert reset_of(stream)["reason"] == "epoch"
