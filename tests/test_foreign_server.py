"""The app on an ASGI server that is not ours: sse-starlette carries the stream there too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypercorn.asyncio
from hypercorn.config import Config as HypercornConfig

from cdchub.app import create_app
from cdchub.client import Client
from cdchub.hub import Hub
from tests.harness import run_sql


@asynccontextmanager
async def foreign_server(database: Path) -> AsyncIterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = HypercornConfig()
    # The server owns the descriptor from here on, and closes it.
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 0.1
    async with Hub(database) as hub:
        ended = asyncio.Event()
        serving = asyncio.create_task(
            hypercorn.asyncio.serve(create_app(hub), config, shutdown_trigger=ended.wait)
        )
        yield f"http://127.0.0.1:{port}"
        await hub.drain()
        ended.set()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def first(changes: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield await anext(changes)


async def test_a_foreign_server_streams_and_resumes(database: Path) -> None:
    run_sql(database, "INSERT INTO todos(id, title) VALUES ('a', 'milk')")
    async with foreign_server(database) as url, Client(url) as client:
        async with contextlib.aclosing(client.events(["todos"], snapshot=True)) as events:
            names = []
            async for event in events:
                names.append(event.name)
                if event.name == "caught-up":
                    await asyncio.to_thread(
                        run_sql, database, "INSERT INTO todos(id, title) VALUES ('b', 'eggs')"
                    )
                if '"id":"b"' in event.data:
                    break
        assert names == ["snapshot", "message", "caught-up", "message"]
        async with contextlib.aclosing(client.stream("todos", since="beginning")) as changes:
            kinds = [(change["type"], change["key"]["id"]) async for change in first(changes, 2)]
            assert kinds == [("SNAPSHOT", "a"), ("INSERT", "b")]
