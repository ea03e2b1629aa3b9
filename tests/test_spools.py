"""Snapshots that many ask for at once are one read of the source, as long as little has followed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import partial
from pathlib import Path

from cdchub import Hub
from cdchub.catalog import Selection
from cdchub.config import Config, SnapshotConfig
from tests.harness import PATIENCE_S, run_sql
from tests.test_hub import until

TODOS = Selection(("todos",))


def config(**snapshot: float) -> Config:
    return Config(snapshot=SnapshotConfig(**snapshot))  # type: ignore[arg-type]


def _is_past(loop: asyncio.AbstractEventLoop, time_s: float) -> bool:
    return loop.time() > time_s


async def ids(hub: Hub) -> list[str]:
    async with hub.spools.open(TODOS) as spool:
        lines = b"".join([piece async for piece in spool.lines()]).splitlines()
    return [json.loads(line)["key"]["id"] for line in lines]


async def test_a_crowd_is_served_by_one_read(database: Path) -> None:
    run_sql(database, "INSERT INTO todos(id) VALUES ('a'), ('b')")
    async with Hub(database) as hub:
        found = await asyncio.gather(*[ids(hub) for _ in range(50)])
        assert found == [["a", "b"]] * 50
        assert hub.spools.taken == 1


async def test_a_large_spool_is_read_from_its_file(database: Path) -> None:
    run_sql(database, "INSERT INTO todos(id, title) VALUES ('a', hex(zeroblob(5000))), ('b', 'x')")
    async with Hub(database, config=config(held_bytes_max=1_000, chunk_bytes=1_000)) as hub:
        assert await ids(hub) == ["a", "b"]
        async with hub.spools.open(TODOS) as spool:
            assert spool._spool.held is None


async def test_while_somebody_reads_it_a_spool_serves_on(database: Path) -> None:
    async with Hub(database, config=config(share_s=0.01)) as hub, contextlib.AsyncExitStack() as stack:
        spool = await stack.enter_async_context(hub.spools.open(TODOS))
        loop = asyncio.get_running_loop()
        for _ in range(3):
            # Longer than a spool is young, without which it would have been let go.
            old_s = loop.time() + 0.02
            await until(partial(_is_past, loop, old_s), "the spool to be old")
            await ids(hub)
        assert hub.spools.taken == 1
        await stack.aclose()
        await until(lambda: not hub.spools._shared, "the spool to be let go")
        await ids(hub)
        assert hub.spools.taken == 2
        assert spool.cursor.lsn == 0


async def test_a_spool_that_much_has_followed_is_read_anew(database: Path) -> None:
    few = config(share_s=0.01, share_changes_max=1)
    async with Hub(database, config=few) as hub, hub.spools.open(TODOS):
        run_sql(database, "INSERT INTO todos(id) VALUES ('a'), ('b')")
        async with asyncio.timeout(PATIENCE_S):
            found = await ids(hub)
            while found != ["a", "b"]:
                # A spool in memory is read without a pause, in which nothing else would move.
                await asyncio.sleep(0)
                found = await ids(hub)
        assert hub.spools.taken > 1
