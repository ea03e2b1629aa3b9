"""A hub inside an application: its transactions and subscriptions, mounting, the driver rule, and
several workers of which one captures."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import apsw
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from cdchub import Client, Hub, Table
from cdchub.capture.connection import Owner, source_paths
from cdchub.config import CaptureConfig, Config, StreamConfig
from cdchub.errors import BadPosition, DriverConflict, StartError, UnknownTable, UsageError
from cdchub.fanout import BufferSink
from tests.harness import PATIENCE_S, run_sql, wait_for

INSERT = "INSERT INTO todos(id, title) VALUES (?, ?)"


async def take(changes: AsyncIterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The next changes; the iterator is left open."""
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(changes) for _ in range(count)]


def insert(database: Path, *ids: str) -> None:
    run_sql(database, *(f"INSERT INTO todos(id) VALUES ('{each}')" for each in ids))


@pytest.mark.parametrize("driver", ["sqlite3", "apsw"])
async def test_an_application_writes_and_subscribes(database: Path, driver: str) -> None:
    insert(database, "old")
    async with Hub(database, tables=["todos"], driver=driver) as hub:
        async with hub.transaction() as tx:
            await tx.execute(INSERT, ("a", "milk"))
            rows = await tx.execute("UPDATE todos SET title = 'eggs' WHERE id = 'a' RETURNING title")
        assert rows == [("eggs",)]
        async with contextlib.aclosing(hub.subscribe("todos", since="beginning")) as changes:
            first = await take(changes, 3)
            assert [change["type"] for change in first] == ["SNAPSHOT", "INSERT", "UPDATE"]
            assert {change["txid"] for change in first[1:]} == {1}
            await asyncio.to_thread(insert, database, "b")
            (live,) = await take(changes, 1)
            assert live["key"] == {"id": "b"}
            position = f"{hub.core.present.head.epoch}:1"
        async with contextlib.aclosing(hub.subscribe("*", since=position)) as changes:
            assert [c["lsn"] for c in await take(changes, 2)] == [2, 3]
        async with contextlib.aclosing(hub.subscribe("todos", snapshot=True)) as changes:
            assert [c["key"]["id"] for c in await take(changes, 3)] == ["a", "b", "old"]
        assert hub.core.subscriber_count == 0


async def test_a_failed_transaction_leaves_nothing(database: Path) -> None:
    async with Hub(database) as hub:
        with contextlib.suppress(ZeroDivisionError):
            async with hub.transaction() as tx:
                await tx.execute(INSERT, ("a", "milk"))
                raise ZeroDivisionError
        async with hub.transaction() as tx:
            assert await tx.execute("SELECT count(*) FROM todos") == [(0,)]


async def test_a_slow_subscriber_gets_everything(database: Path) -> None:
    config = Config(stream=StreamConfig(buffer_bytes_max=2_000))
    async with Hub(database, config=config) as hub:
        async with contextlib.aclosing(hub.subscribe("todos")) as changes:
            await asyncio.to_thread(insert, database, "first")
            (first,) = await take(changes, 1)
            await asyncio.to_thread(
                run_sql,
                database,
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
                " INSERT INTO todos(id) SELECT i FROM n",
            )
            rest = await take(changes, 5_000)
        assert [change["lsn"] for change in [first, *rest]] == list(range(1, 5_002))


async def test_who_stops_reading_leaves_nothing_behind(database: Path) -> None:
    async with Hub(database) as hub:
        left = hub.subscribe("todos")
        first = asyncio.ensure_future(anext(left))
        async with contextlib.aclosing(hub.subscribe("todos", since="beginning")) as other:
            await asyncio.to_thread(insert, database, *(str(n) for n in range(50)))
            await first
            await take(other, 50)
        await left.aclose()
        del left, first, other
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, BufferSink)]


async def test_wrong_words_are_told(database: Path) -> None:
    with pytest.raises(UsageError, match="driver is"):
        Hub(database, driver="mysql")
    with pytest.raises(UsageError, match="full or plain"):
        Hub(database, tables=[Table("todos", capture="some")])
    async with Hub(database) as hub:
        with pytest.raises(UnknownTable):
            hub.subscribe("nothing")
        with pytest.raises(BadPosition):
            hub.subscribe("todos", since="yesterday")


async def test_tables_rooms_and_exclusions(database: Path) -> None:
    tables = [Table("todos", room="title", capture="plain", exclude=("completed",))]
    async with Hub(database, tables=tables) as hub:
        (info,) = hub.core.present.catalog.tables
        assert ([c.name for c in info.columns], info.room) == (["id", "title"], "title")
        async with contextlib.aclosing(hub.subscribe("todos", room="x", since="now")) as changes:
            async with hub.transaction() as tx:
                await tx.execute(INSERT, ("a", "y"))
                await tx.execute(INSERT, ("b", "x"))
            (change,) = await take(changes, 1)
            assert change["newValue"] == {"id": "b", "title": "x"}


# The driver rule.


def test_two_libraries_on_one_file_are_refused(database: Path) -> None:
    async def enter(driver: str) -> None:
        async with Hub(database, driver=driver):
            pass

    other = apsw.Connection(str(database))
    other.execute("SELECT count(*) FROM todos").fetchall()
    with pytest.raises(DriverConflict, match=r'use Hub\(\.\.\., driver="apsw"\)'):
        asyncio.run(enter("sqlite3"))
    asyncio.run(enter("apsw"))
    other.close()
    asyncio.run(enter("sqlite3"))
    mine = sqlite3.connect(database)
    mine.execute("SELECT count(*) FROM todos").fetchall()
    with pytest.raises(DriverConflict, match=r'driver="sqlite3"'):
        asyncio.run(enter("apsw"))
    asyncio.run(enter("sqlite3"))
    mine.close()


async def test_a_watched_connection_wakes_the_hub(database: Path, tmp_path: Path) -> None:
    async with Hub(database, driver="apsw") as hub:
        connection = apsw.Connection(str(database))
        hub.watch(connection)
        async with contextlib.aclosing(hub.subscribe("todos")) as changes:
            connection.execute("INSERT INTO todos(id) VALUES ('a')")
            (change,) = await take(changes, 1)
            assert change["key"] == {"id": "a"}
        elsewhere = apsw.Connection(str(tmp_path / "other.db"))
        with pytest.raises(UsageError, match="not to"):
            hub.watch(elsewhere)
        elsewhere.close()
        with pytest.raises(UsageError, match="have hooks"):
            hub.watch(object())
    # The hook stays when the hub ends: an error in it would undo the commit.
    connection.execute("INSERT INTO todos(id) VALUES ('b')")
    connection.close()


async def test_only_its_own_library_can_be_watched(database: Path) -> None:
    async with Hub(database) as hub:
        connection = apsw.Connection(":memory:")
        with pytest.raises(DriverConflict):
            hub.watch(connection)
        connection.close()


# Mounting.


@asynccontextmanager
async def served(app: Any, *, lifespan: str = "off") -> AsyncIterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan=lifespan, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.to_thread(wait_for, lambda: server.started, "the server to listen")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listener.close()


async def test_a_mounted_hub_streams(database: Path) -> None:
    def who(request: Request) -> str | None:
        return request.headers.get("authorization")

    hub = Hub(database, tables=["todos"])
    app = Starlette(routes=[Mount("/live", hub.asgi()), Mount("/closed", hub.asgi(authenticate=who))])
    async with served(app) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/live/cdc/tables") as answer:
            assert (answer.status, (await answer.json())["code"]) == (503, "overloaded")
        async with hub, Client(f"{url}/live") as client:
            async with hub.transaction() as tx:
                await tx.execute(INSERT, ("a", "milk"))
            async with contextlib.aclosing(client.stream("todos", snapshot=True)) as changes:
                assert (await anext(changes))["key"] == {"id": "a"}
            # A host of its own is the application's affair, not loopback's.
            async with session.get(f"{url}/live/cdc/tables", headers={"Host": "a.example"}) as answer:
                assert answer.status == 200
            async with session.get(f"{url}/closed/cdc/tables") as answer:
                assert (answer.status, (await answer.json())["code"]) == (401, "unauthorized")
            async with session.get(
                f"{url}/closed/cdc/tables", headers={"Authorization": "me"}
            ) as answer:
                assert answer.status == 200
            await hub.drain()


async def test_a_hub_served_by_itself_lives_with_its_server(database: Path) -> None:
    hub = Hub(database)
    async with (
        served(hub.asgi(), lifespan="on") as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/cdc/tables") as answer,
    ):
        assert [table["table"] for table in await answer.json()] == ["todos"]
    async with Hub(database, exclusive=True) as again:
        assert again.failing is None


# Several workers.

WORKER = """
import asyncio, contextlib, json, sys
from cdchub import Hub

async def main():
    async with Hub(sys.argv[1]) as hub:
        print(json.dumps({"role": hub.status()["role"]}), flush=True)
        async with contextlib.aclosing(hub.subscribe("todos", since="beginning")) as changes:
            async for change in changes:
                print(json.dumps({"id": change["key"]["id"], "lsn": change["lsn"],
                                  "role": hub.status()["role"]}), flush=True)

asyncio.run(main())
"""


class Worker:
    def __init__(self, database: Path) -> None:
        command = [sys.executable, "-c", WORKER, str(database)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.role = self.next()["role"]

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        document: dict[str, Any] = json.loads(self.process.stdout.readline())
        return document

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def test_one_worker_captures_and_the_others_follow_and_take_over(database: Path) -> None:
    workers = [Worker(database) for _ in range(3)]
    try:
        assert [worker.role for worker in workers] == ["owner", "follower", "follower"]
        lsn = 0
        while workers:
            lsn += 1
            insert(database, f"t{lsn}")
            seen = [worker.next() for worker in workers]
            assert [(each["id"], each["lsn"]) for each in seen] == [(f"t{lsn}", lsn)] * len(seen)
            assert [each["role"] for each in seen].count("owner") == 1
            # The owner dies; what is committed meanwhile reaches all through the next one.
            owner = [each["role"] for each in seen].index("owner")
            workers.pop(owner).kill()
        with sqlite3.connect(database) as db:
            (count,) = db.execute("SELECT count(*) FROM todos").fetchone()
        db.close()
        assert count == 3
    finally:
        for worker in workers:
            worker.kill()


async def test_a_follower_sees_schema_changes_and_new_epochs(database: Path) -> None:
    async with Hub(database) as owner, Hub(database) as follower:
        assert (owner.status()["role"], follower.status()["role"]) == ("owner", "follower")
        async with contextlib.aclosing(follower.subscribe("*", snapshot=True)) as changes:
            await asyncio.to_thread(insert, database, "a")
            (first,) = await take(changes, 1)
            assert first["key"] == {"id": "a"}
            await asyncio.to_thread(run_sql, database, "ALTER TABLE todos ADD COLUMN note DEFAULT 7")
            (second,) = await take(changes, 1)
            assert second["newValue"]["note"] == 7
            assert "note" in [c.name for c in follower.core.present.catalog.tables[0].columns]


async def test_a_follower_of_nothing_says_so(database: Path) -> None:
    lock = Owner(source_paths(database))
    lock.acquire()
    try:
        config = Config(capture=CaptureConfig(owner_wait_s=0.05))
        with pytest.raises(StartError, match="change log"):
            async with Hub(database, config=config):
                pass
    finally:
        lock.release()
