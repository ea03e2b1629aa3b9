"""The hub in this process, with bounds small enough to be reached."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cdchub.config import BaseConfig, CaptureConfig, Config, LogConfig
from cdchub.errors import ConstraintViolation, SourceOwned
from cdchub.hub import Hub
from tests.harness import PATIENCE_S, log_entries, run_sql


async def until(condition: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0)
                await asyncio.to_thread(lambda: None)
    except TimeoutError:
        raise AssertionError(f"waited for {what}") from None


def outbox_lsns(database: Path) -> list[int]:
    return [lsn for (lsn,) in run_sql(database, "SELECT lsn FROM _cdchub_outbox ORDER BY lsn")]


def commit(database: Path, count: int) -> None:
    run_sql(
        database,
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
        " INSERT INTO todos(id, title) SELECT hex(randomblob(8)), 't' FROM n",
    )


def capture_status(hub: Hub) -> dict[str, object]:
    status = hub.status()["capture"]
    assert isinstance(status, dict)
    return status


async def test_the_outbox_is_pruned_in_a_pause_and_keeps_the_anchor(database: Path) -> None:
    config = Config(capture=CaptureConfig(prune_soft_rows=20, prune_quiet_s=0.05, prune_slice_rows=15))
    async with Hub(database, config=config) as hub:
        await asyncio.to_thread(commit, database, 50)
        await until(lambda: capture_status(hub)["rowsPruned"] == 49, "the pause's pruning")
        assert await asyncio.to_thread(outbox_lsns, database) == [50]
        assert capture_status(hub)["prunesForced"] == 0
        # And the history goes on from the anchor.
        await asyncio.to_thread(commit, database, 3)
        await until(lambda: hub.core.present.head.lsn == 53, "the next changes")


async def test_a_hard_bound_prunes_without_a_pause(database: Path) -> None:
    config = Config(
        capture=CaptureConfig(prune_soft_rows=10**6, prune_hard_rows=30, prune_quiet_s=3600)
    )
    async with Hub(database, config=config) as hub:
        for _ in range(3):
            await asyncio.to_thread(commit, database, 20)
        await until(lambda: capture_status(hub)["prunesForced"], "the forced pruning")
        assert capture_status(hub)["prunesQuiet"] == 0
        await until(lambda: hub.core.present.head.lsn == 60, "all changes")


async def test_a_locked_source_is_no_fault(database: Path) -> None:
    config = Config(capture=CaptureConfig(prune_soft_rows=1, prune_quiet_s=0.02, poll_s=0.01))
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "for n in range(10): db.execute('INSERT INTO todos(id) VALUES (?)', (n,))\n"
        "db.execute('COMMIT'); db.execute('BEGIN IMMEDIATE'); sys.stdin.read()"
    )
    async with Hub(database, config=config) as hub:
        locker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(database), stdin=asyncio.subprocess.PIPE
        )
        await until(lambda: capture_status(hub)["busy"], "a prune to meet the lock")
        assert (hub.failing, hub.core.present.head.lsn) == (None, 10)
        await locker.communicate(b"")
        await until(lambda: capture_status(hub)["rowsPruned"] == 9, "the pruning after all")


async def test_without_inotify_the_hub_polls(database: Path) -> None:
    """The kernel's limit of inotify instances is used up, as on a crowded machine."""
    libc = ctypes.CDLL(None)
    taken = []
    config = Config(capture=CaptureConfig(prune_soft_rows=1, prune_quiet_s=0.02))
    try:
        async with contextlib.AsyncExitStack() as stack:
            wake = None
            # The limit is the user's: a hub of another test that ends may give one back just then.
            while wake != "poll":
                await stack.aclose()
                while (descriptor := libc.inotify_init1(os.O_CLOEXEC)) >= 0:
                    taken.append(descriptor)
                hub = await stack.enter_async_context(Hub(database, config=config))
                wake = capture_status(hub)["wake"]
            await asyncio.to_thread(commit, database, 3)
            await until(lambda: hub.core.present.head.lsn == 3, "the changes")
            await until(lambda: capture_status(hub)["rowsPruned"] == 2, "the pruning")
            await asyncio.to_thread(commit, database, 1)
            await until(lambda: hub.core.present.head.lsn == 4, "the next change")
    finally:
        for descriptor in taken:
            os.close(descriptor)


async def test_a_large_transaction_stays_one(database: Path) -> None:
    config = Config(capture=CaptureConfig(batch_rows=7), log=LogConfig(ring_bytes_max=2_000))
    async with Hub(database, config=config) as hub:
        await asyncio.to_thread(commit, database, 50)
        await until(lambda: hub.core.present.head.lsn == 50, "all rows")
        await asyncio.to_thread(commit, database, 2)
        await until(lambda: hub.core.present.head.lsn == 52, "the next transaction")
    changes = [json.loads(entry.data) for entry in log_entries(hub.paths.log)]
    marks = [(change["txid"], change["commit"]) for change in changes]
    assert marks == [(1, n == 50) for n in range(1, 51)] + [(51, False), (51, True)]


async def test_a_source_has_one_owner(database: Path) -> None:
    async with Hub(database):
        with pytest.raises(SourceOwned, match="already served by pid"):
            async with Hub(database, exclusive=True):
                pass
    async with Hub(database) as again:
        assert again.failing is None


async def test_retention_is_enforced_in_the_background(database: Path) -> None:
    config = Config(
        log=LogConfig(retain_changes=10, retain_every_s=0.05), base=BaseConfig(enabled=False)
    )
    async with Hub(database, config=config) as hub:
        await asyncio.to_thread(commit, database, 50)
        await until(lambda: hub.core.present.oldest.lsn == 40, "the old entries to go")


async def test_the_writer_commits_or_rolls_back(database: Path) -> None:
    async with Hub(database) as hub:
        async with hub.writer.transaction() as tx:
            await tx.execute("INSERT INTO todos(id, title) VALUES (?, ?)", ("a", "milk"))

        async def twice() -> None:
            async with hub.writer.transaction() as tx:
                await tx.execute("INSERT INTO todos(id, title) VALUES ('b', 'eggs')")
                await tx.execute("INSERT INTO todos(id, title) VALUES ('a', 'twice')")

        with pytest.raises(ConstraintViolation):
            await twice()
        assert await hub.writer.query("SELECT id FROM todos") == [("a",)]
        await until(lambda: hub.core.present.head.lsn == 1, "the change")
