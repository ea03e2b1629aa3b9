"""A hub that follows another one's log, when the source or the log can't be had for a moment."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdchub import Hub
from cdchub.capture.connection import Owner, source_paths
from cdchub.change import ChangeType, Entry, WireNote, encode_note
from cdchub.config import CaptureConfig, Config
from cdchub.errors import SourceOwned
from cdchub.following import LogFollower
from cdchub.log import LogWriter
from cdchub.log.protocol import Appended, Delivery
from tests.harness import PATIENCE_S, HubProcess, run_sql, wait_for
from tests.test_hub import until


@contextmanager
def away(database: Path) -> Iterator[None]:
    elsewhere = database.rename(database.with_name("away.db"))
    try:
        yield
    finally:
        elsewhere.rename(database)


def lose(log: Path) -> None:
    for path in log.parent.glob(f"{log.name}*"):
        if path.suffix != ".lock":
            path.unlink()


def note(lsn: int) -> Entry:
    line = encode_note(WireNote(lsn, "SCHEMA", "todos", 1, lsn, commit=True))
    return Entry(lsn, ChangeType.SCHEMA, "todos", None, None, line)


@pytest.mark.parametrize("owner_ends", [False, True])
async def test_what_it_could_not_deliver_comes_later(database: Path, owner_ends: bool) -> None:
    async with Hub(database):
        pass
    paths = source_paths(database)
    log = LogWriter(paths.log, database=database)
    number = log.state().present.number
    owning = Owner(paths)
    owning.acquire()
    delivered: list[Delivery] = []
    ended: list[bool] = []
    config = CaptureConfig(retry_s=0.05, owner_look_s=0.02)
    mine = Owner(paths)
    follower = LogFollower(
        paths, mine, config, deliver=delivered.append, owning=lambda: ended.append(True)
    )
    try:
        follower.open()
        with away(database):
            if owner_ends:
                log.append(number, [note(1)], nonce=1, timestamp_ms=1)
                owning.release()
            follower.start()
            if not owner_ends:
                log.append(number, [note(1)], nonce=1, timestamp_ms=1)
            wait_for(lambda: follower.failing, "the source to be missed")
        if owner_ends:
            wait_for(lambda: ended, "the follower to take over")
        wait_for(lambda: any(isinstance(d, Appended) for d in delivered), "the change")
    finally:
        follower.stop()
        mine.release()
        owning.release()
        log.close()


def test_a_lock_that_is_of_no_use_is_given_back(database: Path) -> None:
    paths = source_paths(database)
    follower = Owner(paths)
    with away(database), pytest.raises(FileNotFoundError):
        follower.acquire()
    follower.acquire()
    follower.release()


def test_a_forked_child_does_not_keep_the_source_of_a_dead_owner(database: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from cdchub.capture.connection import Owner, source_paths\n"
        "owner = Owner(source_paths(Path(sys.argv[1])))\n"
        "owner.acquire()\n"
        "if os.fork() == 0:\n"
        "    print('forked', flush=True)\n"
        "    os.read(0, 1)\n"
        "    os._exit(0)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", program, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owning:
        assert owning.stdout is not None
        assert owning.stdout.readline() == "forked\n"
        mine = Owner(source_paths(database))
        with pytest.raises(SourceOwned):
            mine.acquire()
        owning.kill()
        owning.wait(PATIENCE_S)
        # The child lives, until its standard input ends.
        mine.acquire()
        mine.release()


async def test_a_log_that_is_lost_with_its_owner_is_another_epoch(database: Path) -> None:
    with HubProcess(database) as owner:
        async with Hub(database, config=Config(capture=CaptureConfig(owner_look_s=0.5))) as hub:
            epoch = hub.status()["epoch"]
            owner.kill()
            lose(hub.paths.log)
            await until(lambda: hub.status()["epoch"] != epoch, "the follower to begin anew")
            async with contextlib.aclosing(hub.subscribe("todos")) as changes:
                await asyncio.to_thread(run_sql, database, "INSERT INTO todos(id) VALUES ('a')")
                async with asyncio.timeout(PATIENCE_S):
                    assert (await anext(changes))["key"] == {"id": "a"}
            assert hub.failing is None


async def test_a_log_that_is_locked_for_a_moment_is_taken_over_later(database: Path) -> None:
    owner = Hub(database)
    await owner.__aenter__()
    config = Config(capture=CaptureConfig(owner_look_s=0.02, retry_s=0.02))
    async with Hub(database, config=config) as hub:
        locker = sqlite3.connect(hub.paths.log, isolation_level=None)
        locker.execute("BEGIN IMMEDIATE")
        try:
            # It can't leave the mark of a clean stop, but it lets go of the source.
            with pytest.raises(sqlite3.OperationalError):
                await owner.__aexit__(None, None, None)
            await until(lambda: hub._capturing._promotion is not None, "the take-over to begin")
            promotion = hub._capturing._promotion
            assert promotion is not None
            await until(promotion.done, "it to fail")
        finally:
            locker.close()
        await until(lambda: hub.status()["role"] == "owner" and hub.failing is None, "an owner")
        async with contextlib.aclosing(hub.subscribe("todos")) as changes:
            await asyncio.to_thread(run_sql, database, "INSERT INTO todos(id) VALUES ('a')")
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(changes))["key"] == {"id": "a"}
