"""The todo page in the words of the tests: its rows, and the todos under it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, Route, expect

from tests.harness import PATIENCE_S, HubProcess, run_sql, wait_for

ADD_BOX = "What needs to be done?"


def put(database: Path, *todos: str | dict[str, Any]) -> None:
    """Replaces all todos, from outside of the hub. A string is the title of one at the next place."""
    rows = []
    for place, todo in enumerate(todos):
        given = {"title": todo} if isinstance(todo, str) else todo
        plain = {"id": f"todo-{place}", "completed": 0, "position": place, "created_at": 1}
        rows.append(plain | given)
    fields = ", ".join(
        f"value ->> '{name}'" for name in ("id", "title", "completed", "position", "created_at")
    )
    run_sql(
        database,
        "DELETE FROM todos",
        f"INSERT INTO todos SELECT {fields}, 1 FROM json_each(?)",
        parameters=[json.dumps(rows)],
    )


def hold(on_their_way: list[Route]) -> Callable[[Route], None]:
    """A route's handler: requests stay on their way until the test lets them go, or loses them."""

    def handler(route: Route) -> None:
        on_their_way.append(route)

    return handler


def wait_for_requests(page: Page, on_their_way: list[Route], count: int = 1) -> None:
    # Playwright hands requests over while the test talks to the page.
    wait_for(lambda: page.evaluate("true") and len(on_their_way) == count, f"request {count}")


def sqlite3_shell(database: Path, sql: str) -> str:
    done = subprocess.run(
        ["sqlite3", "-cmd", ".timeout 10000", database, sql],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored(hub: HubProcess) -> list[dict[str, Any]]:
    """The todos as the API lists them."""
    todos: list[dict[str, Any]] = hub.get("/api/todos").json()
    return todos


def stored_titles(hub: HubProcess) -> list[str]:
    return [todo["title"] for todo in stored(hub)]


def wait_stored(hub: HubProcess, *titles: str) -> None:
    """What a page shows is stored a moment later."""
    wait_for(lambda: stored_titles(hub) == list(titles), f"{titles} to be stored")


def titles(page: Page) -> Locator:
    """The titles that are shown, from top to bottom."""
    return page.get_by_role("list", name="Todos").locator(".title")


def row(page: Page, title: str) -> Locator:
    check = page.get_by_role("checkbox", name=title, exact=True)
    return page.get_by_role("listitem").filter(has=check)


def check_box(page: Page, title: str) -> Locator:
    return page.get_by_role("checkbox", name=title, exact=True)


def delete_button(page: Page, title: str) -> Locator:
    return page.get_by_role("button", name=f"Delete {title}", exact=True)


def edit_button(page: Page, title: str) -> Locator:
    return page.get_by_role("button", name=f"Edit {title}", exact=True)


def undo_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Undo", exact=True)


def handle(page: Page, title: str) -> Locator:
    return page.get_by_role("button", name=f"Move {title}", exact=True)


def wait_until_still(page: Page) -> None:
    """Until all animations are over, but for those that have no end."""
    page.evaluate(
        "Promise.allSettled(document.getAnimations()"
        ".filter((each) => each.effect.getComputedTiming().endTime < Infinity)"
        ".map((each) => each.finished))"
    )


def grab(page: Page, title: str) -> None:
    """Takes a row with the mouse, in the middle; it is held when this returns."""
    wait_until_still(page)
    box = row(page, title).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 8)
    expect(row(page, title)).to_have_css("opacity", "0.5")


def move_over(page: Page, title: str) -> None:
    """The pointer goes to the middle of the row that is there now."""
    wait_until_still(page)
    box = row(page, title).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)


def editor(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Title")


def add_box(page: Page) -> Locator:
    return page.get_by_role("textbox", name=ADD_BOX)


def add(page: Page, title: str) -> None:
    add_box(page).fill(title)
    page.get_by_role("button", name="Add", exact=True).click()


def problem(page: Page) -> Locator:
    """Where the page says why something didn't work."""
    return page.locator("#problem")
