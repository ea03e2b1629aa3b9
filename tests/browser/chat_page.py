"""The chat page in the words of the tests: who is in which room, and what stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Windows
from tests.harness import run_sql, wait_for

LOST = "Connection lost. Reconnecting…"


def enter(windows: Windows, url: str, user: str, room: str = "lobby", **options: Any) -> Page:
    """A person in a room, in a browser of their own; live when this returns."""
    page = windows.open(f"{url}/chat?{urlencode({'user': user, 'room': room})}", **options)
    expect_live(page)
    return page


def expect_live(page: Page) -> None:
    """Live, and the room has told what it holds."""
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name=re.compile("^Message to "))


def say(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def texts(page: Page) -> Locator:
    """What the messages say, oldest first."""
    return page.locator("#messages .message .text")


def message(page: Page, text: str) -> Locator:
    return page.locator("#messages .message").filter(has_text=text)


def log(page: Page) -> Locator:
    return page.get_by_role("log")


def problem(page: Page) -> Locator:
    return page.locator("#problem")


def members(page: Page) -> Locator:
    return page.get_by_role("list", name="Here now").get_by_role("listitem")


def room_link(page: Page, room: str) -> Locator:
    return page.get_by_role("navigation", name="Rooms").locator(f"li[data-room={json.dumps(room)}] a")


def stored(database: Path, room: str = "lobby") -> list[str]:
    rows = run_sql(
        database, "SELECT content FROM messages WHERE room = ? ORDER BY rowid", parameters=[room]
    )
    return [content for (content,) in rows]


def expect_stored(database: Path, wanted: Sequence[str], room: str = "lobby") -> None:
    """A message is shown before it is stored."""
    wait_for(lambda: stored(database, room) == wanted, f"{len(wanted)} messages to be stored")


def put(database: Path, contents: Sequence[str], *, room: str = "lobby", **columns: Any) -> None:
    """Messages as another program writes them: one commit, a minute between two of them."""
    rows = [
        {
            "id": f"{room}-{place}",
            "user_id": "eve",
            "content": content,
            "created_at": 1_700_000_000_000 + 60_000 * place,
        }
        | columns
        for place, content in enumerate(contents)
    ]
    run_sql(
        database,
        "INSERT INTO messages(id, room, user_id, content, created_at) SELECT value ->> 'id', ?2,"
        " value ->> 'user_id', value ->> 'content', value ->> 'created_at' FROM json_each(?1)",
        parameters=[json.dumps(rows), room],
    )
