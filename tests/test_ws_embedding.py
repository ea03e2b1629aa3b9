"""`/cdc/ws` of a hub that is mounted in somebody's application, on a server that is not ours."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cdchub import Hub
from cdchub.config import Config, StreamConfig
from tests.harness import PATIENCE_S, run_sql
from tests.test_embedding import served

MESSAGES = (
    "CREATE TABLE messages(id TEXT PRIMARY KEY, room TEXT, user_id TEXT, content TEXT,"
    " created_at INTEGER)"
)


async def heard(socket: ClientConnection) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return json.loads(await socket.recv())


def at(url: str, path: str) -> str:
    return url.replace("http", "ws") + path


def who(request: Request) -> str | None:
    return request.headers.get("authorization")


async def test_a_mounted_hub_speaks_websocket(database: Path) -> None:
    async with (
        Hub(database) as hub,
        served(Starlette(routes=[Mount("/live", hub.asgi())])) as url,
        connect(at(url, "/live/cdc/ws?user=ann")) as socket,
    ):
        assert (await heard(socket))["userId"] == "ann"
        await socket.send('{"type":"subscribe","sub":"s","table":"todos"}')
        assert (await heard(socket))["type"] == "subscribed"
        assert (await heard(socket))["type"] == "caught-up"
        async with hub.transaction() as tx:
            await tx.execute("INSERT INTO todos(id, title) VALUES ('a', 'milk')")
        change = await heard(socket)
        assert (change["sub"], change["change"]["newValue"]["title"]) == ("s", "milk")


async def test_the_application_says_who_it_is(database: Path) -> None:
    run_sql(database, MESSAGES)
    async with (
        Hub(database) as hub,
        served(Starlette(routes=[Mount("/live", hub.asgi(authenticate=who))])) as url,
    ):
        path = at(url, "/live/cdc/ws?user=somebody-else")
        async with connect(path, additional_headers={"Authorization": "bob"}) as socket:
            assert (await heard(socket))["userId"] == "bob"
            await socket.send('{"type":"join","room":"lobby"}')
            assert (await heard(socket))["members"] == ["bob"]
        async with connect(path) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await heard(socket)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


async def test_no_url_says_who_somebody_is_where_the_application_does(database: Path) -> None:
    def user(_: Request) -> object:
        return {"id": 7, "rights": "all"}

    async with (
        Hub(database) as hub,
        served(Starlette(routes=[Mount("/live", hub.asgi(authenticate=user))])) as url,
        connect(at(url, "/live/cdc/ws?user=admin")) as socket,
    ):
        assert (await heard(socket))["userId"].startswith("guest-")


async def test_a_broadcast_is_one_message(database: Path) -> None:
    run_sql(database, MESSAGES)
    forged = '{"type":"message","room":"lobby","userId":"admin","content":"forged"}'
    async with (
        Hub(database) as hub,
        served(Starlette(routes=[Mount("/live", hub.asgi())])) as url,
        connect(at(url, "/live/cdc/ws?user=bob")) as bob,
        connect(at(url, "/live/cdc/ws?user=eve")) as eve,
    ):
        for socket in (bob, eve):
            await socket.send('{"type":"join","room":"lobby"}')
            while (await heard(socket))["type"] != "caught-up":
                pass
        for end in ("\n", "\r", "\r\n"):
            data = f"[1,{end}{forged}{end}]"
            await eve.send(f'{{"type":"broadcast","room":"lobby","data":{data}}}')
            while (message := await heard(bob))["type"] == "user-joined":
                pass
            assert (message["type"], message["data"]) == ("broadcast", json.loads(data))


async def test_a_drain_closes_connections_with_1001(database: Path) -> None:
    config = Config(stream=StreamConfig(drain_s=0.1))
    async with (
        Hub(database, config=config) as hub,
        served(Starlette(routes=[Mount("/live", hub.asgi())])) as url,
        connect(at(url, "/live/cdc/ws")) as quiet,
        connect(at(url, "/live/cdc/ws")) as busy,
    ):
        await heard(quiet)
        await heard(busy)
        await busy.send('{"type":"subscribe","sub":"s","table":"*"}')
        assert (await heard(busy))["type"] == "subscribed"
        await hub.drain()
        for socket in (quiet, busy):
            with pytest.raises(ConnectionClosed) as closed:
                await _to_the_end(socket)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        async with connect(at(url, "/live/cdc/ws")) as late:
            with pytest.raises(ConnectionClosed) as closed:
                await _to_the_end(late)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001


async def _to_the_end(socket: ClientConnection) -> None:
    while True:
        await heard(socket)
