"""A hub that starts again and finds more than it left: rows, another schema, another owner's end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from cdchub import Hub
from cdchub.config import CaptureConfig, Config
from cdchub.errors import StartError
from tests.harness import PATIENCE_S, run_sql
from tests.test_hub import until

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
