"""A hub that starts again and finds more than it left: rows, another schema, another owner's end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cdchub import Hub
from cdchub.capture.connection import source_paths
from cdchub.config import CaptureConfig, Config
from cdchub.errors import StartError
from cdchub.log import LogWriter
from cdchub.log.protocol import SourceMark
from tests.harness import PATIENCE_S, HubProcess, cdchub, make_database, run_sql
from tests.test_hub import until
from tests.test_source_faults import backup

COUNT_UP = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"


# One batch; and more batches than may be on their way to the loop at once.
@pytest.mark.parametrize("rows", [10, 200])
async def test_rows_and_another_schema_while_it_was_away(database: Path, rows: int) -> None:
    config = Config(capture=CaptureConfig(batch_rows=10))
    async with Hub(database, config=config) as hub:
        await until(lambda: hub.status()["log"]["baseLsn"] is not None, "a base snapshot")
    run_sql(
        database,
        f"{COUNT_UP.format(rows)} INSERT INTO todos(id) SELECT i FROM n",
        "ALTER TABLE todos ADD COLUMN note",
    )
    async with asyncio.timeout(PATIENCE_S), Hub(database, config=config) as hub:
        async with contextlib.aclosing(hub.subscribe("*", since="beginning")) as changes:
            told = [await anext(changes) for _ in range(rows)]
            assert [change["type"] for change in told] == ["INSERT"] * rows
            await asyncio.to_thread(run_sql, database, "INSERT INTO todos(id) VALUES ('last')")
            async for change in changes:
                if change["key"] == {"id": "last"}:
                    break
        assert hub.failing is None


async def test_a_start_that_fails_leaves_nothing_open(database: Path) -> None:
    async def fail() -> int:
        with pytest.raises(StartError):
            async with Hub(database, tables=["nothing"]):
                pass
        return len(os.listdir("/proc/self/fd"))

    before = await fail()
    assert [await fail() for _ in range(3)] == [before] * 3


async def test_a_start_that_fails_midway_is_made_up_for(database: Path) -> None:
    copy = await asyncio.to_thread(database.read_bytes)
    async with Hub(database) as hub:
        log = hub.paths.log
    # A copy from before there was capture; and the log can't be written when it is captured anew.
    await asyncio.to_thread(database.write_bytes, copy)
    locker = sqlite3.connect(log, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StartError, match="locked"):
            async with Hub(database):
                pass
    finally:
        locker.close()
    async with Hub(database) as hub:
        assert hub.failing is None


def test_a_crash_between_source_and_log_is_made_up_for(database: Path) -> None:
    mark = SourceMark("new", 1, "boot")
    log = LogWriter(source_paths(database).log, database=database)
    log.adopt(SourceMark("old", 1, "boot"))
    log.expect("new")
    assert log.belongs_to(mark, just_installed=False) == "restored"
    log.close()


HUB = """
import asyncio, sys
from cdchub import Hub

async def main():
    async with Hub(sys.argv[1], driver=sys.argv[2]) as hub:
        print("ready", flush=True)
        while hub.status()["capture"]["epochsStarted"] < 2:
            await asyncio.sleep(0.01)
        print("again", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.mark.parametrize("driver", ["sqlite3", "apsw"])
def test_a_copy_put_back_in_place_outlives_the_hub(database: Path, driver: str) -> None:
    run_sql(database, "INSERT INTO todos(id) VALUES ('kept')")
    copy = database.read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-c", HUB, str(database), driver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        run_sql(database, f"{COUNT_UP.format(500)} INSERT INTO todos(id) SELECT i FROM n")
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink()
        # As `cp` does it: the same file with other content.
        database.write_bytes(copy)
        assert process.stdout.readline() == "again\n"
        run_sql(database, "INSERT INTO todos(id) VALUES ('later')")
    finally:
        process.communicate("\n", timeout=PATIENCE_S)
    # At the end of the process nobody writes the pages of the old -wal into it.
    assert run_sql(database, "SELECT id FROM todos ORDER BY id") == [["kept"], ["later"]]


def stopped_copy(database: Path, folder: Path) -> None:
    """A copy of the database, the log and whatever lies beside them, while no hub runs."""
    run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(database.parent, folder)


@pytest.mark.parametrize("options", [[], ["-p"]], ids=["new times", "old times"])
@pytest.mark.parametrize("with_lock", [True, False])
def test_an_older_copy_of_database_and_log_together_is_another_history(
    tmp_path: Path, options: list[str], with_lock: bool
) -> None:
    """They fit together, and the files are those that were there: only when they were written tells."""
    (tmp_path / "app").mkdir()
    database = make_database(tmp_path / "app" / "app.db", "CREATE TABLE todos(id TEXT PRIMARY KEY)")
    with HubProcess(database) as hub:
        run_sql(database, "INSERT INTO todos(id) VALUES ('old')")
        hub.wait_for_lsn(1)
        assert hub.stop() == 0
        stopped_copy(database, tmp_path / "copy")
        hub.start()
        run_sql(database, "INSERT INTO todos(id) VALUES ('lost')")
        hub.wait_for_lsn(2)
        seen = hub.head()
        assert hub.stop() == 0
    run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    for file in (tmp_path / "copy").iterdir():
        if with_lock or file.suffix != ".lock":
            subprocess.run(["cp", *options, file, database.parent], check=True)
    run_sql(database, "INSERT INTO todos(id) VALUES ('new')")
    with HubProcess(database) as hub:
        hub.wait_for_lsn(2)
        with hub.stream(f"table=todos&since={seen}&snapshot=1") as stream:
            events = stream.until("caught-up")
        assert json.loads(events[0].data)["reason"] == "epoch"
        rows = [json.loads(event.data)["key"]["id"] for event in events if event.name == "message"]
        assert rows == ["new", "old"]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_copy_that_was_taken_while_a_hub_ran_is_another_history(
    database: Path, tmp_path: Path, end: str
) -> None:
    log = Path(f"{database}-cdchub")
    with HubProcess(database) as hub:
        run_sql(database, "INSERT INTO todos(id) VALUES ('old')")
        hub.wait_for_lsn(1)
        for path in (database, log):
            backup(path, tmp_path / f"copy of {path.name}")
        run_sql(database, "INSERT INTO todos(id) VALUES ('lost')")
        hub.wait_for_lsn(2)
        seen = hub.head()
        hub.stop() if end == "stop" else hub.kill()
        for path in (database, log):
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            subprocess.run(["cp", tmp_path / f"copy of {path.name}", path], check=True)
        hub.start()
        with hub.stream(f"table=todos&since={seen}&snapshot=1") as stream:
            events = stream.until("caught-up")
        assert json.loads(events[0].data)["reason"] == "epoch"
        rows = [json.loads(event.data)["key"]["id"] for event in events if event.name == "message"]
        assert rows == ["old"]


def test_stops_and_kills_are_no_restores(database: Path) -> None:
    with HubProcess(database) as hub:
        epoch = hub.status()["epoch"]
        for end in (hub.stop, hub.kill, hub.stop):
            run_sql(database, "INSERT INTO todos(id) VALUES (hex(randomblob(8)))")
            end()
            # Whoever only reads the files leaves them as they are.
            assert cdchub("tail", database, "--no-follow").returncode == 0
            assert cdchub("status", database).returncode == 0
            hub.start()
            assert hub.status()["epoch"] == epoch
        assert hub.stop() == 0
    assert cdchub("init", database).returncode == 0
    with HubProcess(database) as hub:
        assert hub.status()["epoch"] == epoch
    # A start or an init that fails leaves all as it was.
    for command in ("serve", "init"):
        assert cdchub(command, database, "--table", "nix").returncode != 0
    with HubProcess(database) as hub:
        assert hub.status()["epoch"] == epoch
    # A lock file that is gone tells nothing.
    with HubProcess(database) as hub:
        assert hub.stop() == 0
        Path(f"{database}-cdchub.lock").unlink()
        hub.start()
        assert hub.status()["epoch"] == epoch
