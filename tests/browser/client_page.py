"""The browser library in the words of the tests: pages that use it, and what it told them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page

from tests.browser.conftest import Windows
from tests.harness import run_sql, wait_for

# What a browser lacks in which the connection is shared otherwise, or not at all.
WITHOUT = {
    "worker": "",
    "locks": "delete window.SharedWorker;",
    "alone": "delete window.SharedWorker; delete window.BroadcastChannel;",
}
WITHOUT_WEBSOCKET = "window.WebSocket = class { constructor() { throw new Error('not here'); } };"

_COLLECTION = """([name, options]) => {
  const kept = lib.collection(options);
  const told = { store: kept, emissions: [], statuses: [], changes: [] };
  window[name] = told;
  told.unsubscribe = kept.subscribe((rows) => told.emissions.push(structuredClone(rows)));
  kept.onStatus((status, error) => told.statuses.push(error ? [status, error] : status));
  kept.onChange((change) => told.changes.push(change));
}"""


def use(page: Page, url: str) -> Page:
    """A page of the hub with the library in `lib`, and nothing else that listens to the hub."""
    page.goto(f"{url}/healthz")
    page.evaluate("async () => { window.lib = await import('/cdc/client.js'); }")
    return page


def library(windows: Windows, url: str, *, without: str = "worker") -> Page:
    page = windows.new()
    # A page that is only JSON names no icon, and the hub has no /favicon.ico.
    windows.network_errors_expected = True
    page.context.add_init_script(WITHOUT[without])
    return use(page, url)


def tab(context: BrowserContext, url: str) -> Page:
    """One more tab of a browser."""
    return use(context.new_page(), url)


def collect(page: Page, name: str = "todos", **options: Any) -> None:
    """`lib.collection(options)`, noting what it tells; live when this returns."""
    begin(page, name, **options)
    wait_live(page, name)


def begin(page: Page, name: str = "todos", **options: Any) -> None:
    page.evaluate(_COLLECTION, [name, {"table": "todos", "key": "id", **options}])


def wait_live(page: Page, name: str = "todos") -> None:
    page.wait_for_function(
        "(name) => window[name].store.connected && window[name].store.loaded", arg=name
    )


def rows(page: Page, name: str = "todos") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate("(name) => window[name].store.data", name)
    return found


def titles(page: Page, name: str = "todos") -> list[str]:
    return [row["title"] for row in rows(page, name)]


def told(page: Page, what: str, name: str = "todos") -> list[Any]:
    """All `emissions`, `statuses` or `changes` so far."""
    found: list[Any] = page.evaluate("([name, what]) => window[name][what]", [name, what])
    return found


def status(page: Page, name: str = "todos") -> str:
    return str(page.evaluate("(name) => window[name].store.status", name))


def wait_for_titles(page: Page, wanted: Sequence[str], name: str = "todos") -> None:
    """Waits until these titles are there, in whatever order."""
    expected = sorted(wanted)
    page.wait_for_function(
        """([name, expected]) => JSON.stringify(window[name].store.data.map((row) => row.title).sort())
        === expected""",
        arg=[name, json.dumps(expected, separators=(",", ":"), ensure_ascii=False)],
    )


def insert(database: Path, *ids: str) -> None:
    """One commit for each id; the title is the id."""
    run_sql(database, *(f"INSERT INTO todos(id, title) VALUES ('{each}', '{each}')" for each in ids))


def stored(database: Path, table: str = "todos") -> list[str]:
    return [title for (title,) in run_sql(database, f"SELECT title FROM {table} ORDER BY id")]


def streams(hub: Any) -> dict[str, int]:
    """The hub's subscribers by transport."""
    found: dict[str, int] = hub.status()["subscribers"]["byTransport"]
    return found


def wait_for_streams(hub: Any, wanted: dict[str, int]) -> None:
    wait_for(lambda: streams(hub) == wanted, f"the hub's subscribers to be {wanted}")
