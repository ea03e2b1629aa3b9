"""The programs in docs/embedding.md run as they stand there."""

from __future__ import annotations

import asyncio
import contextlib
import re
import types
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cdchub import Client
from tests.harness import make_database
from tests.test_embedding import served

PAGE = Path(__file__).parent.parent / "docs" / "embedding.md"
PROGRAM, FOLLOWING = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


async def test_the_programs_of_the_page_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_database(
        tmp_path / "app.db",
        "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT)",
        "CREATE TABLE messages(id TEXT PRIMARY KEY, room TEXT)",
    )
    module = types.ModuleType("application")
    exec(PROGRAM, module.__dict__)
    async with served(module.app, lifespan="on") as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/todos", json={"id": "a", "title": "milk"}) as answer:
            assert answer.status == 201
        async with Client(f"{url}/live") as client:
            changes = client.stream("todos", since="beginning")
            async with contextlib.aclosing(changes):
                assert (await anext(changes))["newValue"] == {"id": "a", "title": "milk"}
        scope: dict[str, Any] = {"hub": module.hub}
        body = "".join(f"    {line}\n" for line in FOLLOWING.splitlines())
        exec(f"async def follow():\n{body}", scope)
        following = asyncio.ensure_future(scope["follow"]())
        while "milk" not in capsys.readouterr().out:
            await asyncio.to_thread(lambda: None)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
