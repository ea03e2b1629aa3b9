"""One connection for all tabs of a browser, whichever way they share it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page

from tests.browser.client_page import (
    WITHOUT,
    begin,
    collect,
    insert,
    library,
    tab,
    titles,
    told,
    wait_for_streams,
    wait_for_titles,
    wait_live,
)
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess, run_sql

pytestmark = pytest.mark.needs("chromium")

HIDE = """() => {
  Object.defineProperty(document, "visibilityState", { get: () => "hidden", configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
SHOW = """() => {
  delete document.visibilityState;
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def tabs(windows: Windows, url: str, count: int, *, without: str = "worker") -> list[Page]:
    """Tabs of one browser, all with the same collection, live."""
    first = library(windows, url, without=without)
    found = [first, *(tab(first.context, url) for _ in range(count - 1))]
    for page in found:
        begin(page)
    for page in found:
        wait_live(page)
    return found


def insert_many(database: Path, count: int) -> None:
    """So many rows in one commit."""
    run_sql(
        database,
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < "
        f"{count}) INSERT INTO todos(id, title) SELECT printf('%05d', i), i FROM n",
    )


@pytest.mark.parametrize("without", ["worker", "locks"])
def test_seven_tabs_have_one_connection_and_all_are_live(
    hub: HubProcess, windows: Windows, without: str
) -> None:
    with Relay(hub.port) as relay:
        pages = tabs(windows, relay.url, 7, without=without)
        wait_for_streams(hub, {"ws": 1})
        insert(hub.database, "a")
        for page in pages:
            wait_for_titles(page, ["a"])
        # What another tab has already comes from the holder's copy.
        collect(pages[3], "second")
        assert titles(pages[3], "second") == ["a"]
        assert hub.status()["log"]["snapshotsTaken"] == 1
        assert relay.sockets_opened == 1


def test_without_locks_each_tab_has_its_own(hub: HubProcess, windows: Windows) -> None:
    pages = tabs(windows, hub.url, 2, without="alone")
    wait_for_streams(hub, {"ws": 2})
    insert(hub.database, "a")
    for page in pages:
        wait_for_titles(page, ["a"])


def test_seven_tabs_share_one_event_stream(hub: HubProcess, windows: Windows) -> None:
    with Relay(hub.port, websockets=False) as relay:
        pages = tabs(windows, relay.url, 7)
        wait_for_streams(hub, {"sse": 1})
        assert pages[0].evaluate("lib.connection().transport") == "sse"
        insert(hub.database, "a")
        for page in pages:
            wait_for_titles(page, ["a"])


def test_several_tables_share_one_event_stream(demo: HubProcess, windows: Windows) -> None:
    with Relay(demo.port, websockets=False) as relay:
        page = library(windows, relay.url)
        collect(page)
        collect(page, "users", table="users")
        collect(page, "orders", table="orders", columns=["total"])
        wait_for_streams(demo, {"sse": 1})
        page.evaluate("users.store.close()")
        page.evaluate("orders.store.close()")
        assert page.evaluate("todos.store.connected")


@pytest.mark.parametrize("without", ["worker", "locks"])
def test_the_tab_that_came_first_may_close(hub: HubProcess, windows: Windows, without: str) -> None:
    first, second, third = tabs(windows, hub.url, 3, without=without)
    insert(hub.database, "a")
    wait_for_titles(second, ["a"])
    first.close()
    insert(hub.database, "b")
    for page in (second, third):
        wait_for_titles(page, ["a", "b"])
        wait_live(page)
    wait_for_streams(hub, {"ws": 1})
    assert all(seen in ([], ["a"], ["a", "b"]) for seen in _seen(second))


def _seen(page: Page) -> list[list[str]]:
    return [[row["title"] for row in each] for each in told(page, "emissions")]


@pytest.mark.parametrize("end", ["close", "crash"])
def test_what_a_tab_asked_for_ends_with_it(hub: HubProcess, windows: Windows, end: str) -> None:
    first, second = tabs(windows, hub.url, 2)
    collect(second, "narrow", where={"completed": 0})
    wait_for_streams(hub, {"ws": 2})
    if end == "close":
        second.close()
    else:
        with second.expect_event("crash"), pytest.raises(Error):
            second.goto("chrome://crash")
    wait_for_streams(hub, {"ws": 1})
    insert(hub.database, "a")
    wait_for_titles(first, ["a"])


def test_a_worker_that_dies_is_replaced(hub: HubProcess, windows: Windows) -> None:
    pages = tabs(windows, hub.url, 2)
    browser = pages[0].context.browser
    assert browser is not None
    devtools = browser.new_browser_cdp_session()
    targets = devtools.send("Target.getTargets")["targetInfos"]
    (worker,) = [each["targetId"] for each in targets if each["type"] == "shared_worker"]
    devtools.send("Target.closeTarget", {"targetId": worker})
    insert(hub.database, "a")
    for page in pages:
        wait_for_titles(page, ["a"])
        wait_live(page)
    wait_for_streams(hub, {"ws": 1})


def test_a_hidden_tab_is_not_fed_and_comes_back_where_it_was(hub: HubProcess, windows: Windows) -> None:
    page, other = tabs(windows, hub.url, 2)
    page.clock.install()
    page.evaluate(HIDE)
    insert(hub.database, "a")
    # For half a minute nothing is different.
    wait_for_titles(page, ["a"])
    page.clock.run_for(30_000)
    insert(hub.database, "b", "c")
    wait_for_titles(other, ["a", "b", "c"])
    assert titles(page) == ["a"]
    page.evaluate(SHOW)
    wait_for_titles(page, ["a", "b", "c"])
    assert [change["lsn"] for change in told(page, "changes")] == [1, 2, 3], "no gap, no repeat"


def test_a_hidden_tab_that_missed_much_is_filled_anew(hub: HubProcess, windows: Windows) -> None:
    page, other = tabs(windows, hub.url, 2)
    insert(hub.database, "a")
    wait_for_titles(page, ["a"])
    page.evaluate("window.before = todos.store.data[0]")
    page.clock.install()
    page.evaluate(HIDE)
    page.clock.run_for(30_000)
    insert_many(hub.database, 2_500)
    other.wait_for_function("() => todos.store.data.length === 2501")
    assert titles(page) == ["a"]
    page.evaluate(SHOW)
    page.wait_for_function("() => todos.store.data.length === 2501")
    assert page.evaluate("todos.store.data[0] === before")
    insert(hub.database, "z")
    page.wait_for_function("() => todos.store.data.at(-1).title === 'z'")


def test_a_frozen_tab_is_not_sent_more_than_it_can_hold(hub: HubProcess, windows: Windows) -> None:
    page, other = tabs(windows, hub.url, 2)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    insert_many(hub.database, 12_000)
    other.wait_for_function("() => todos.store.data.length === 12000")
    insert(hub.database, "y")
    other.wait_for_function("() => todos.store.data.at(-1).title === 'y'")
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    page.wait_for_function("() => todos.store.data.length === 12001")
    insert(hub.database, "z")
    page.wait_for_function("() => todos.store.data.at(-1).title === 'z'")


@pytest.mark.parametrize("without", list(WITHOUT))
def test_a_tab_that_comes_back_from_the_page_cache_is_live(
    hub: HubProcess, windows: Windows, without: str
) -> None:
    (page,) = tabs(windows, hub.url, 1, without=without)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    wait_for_streams(hub, {})
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    insert(hub.database, "a")
    wait_for_titles(page, ["a"])


_APPLICATION = """
import contextlib, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from cdchub import Hub

hub = Hub(sys.argv[1])

@contextlib.asynccontextmanager
async def lifespan(app):
    async with hub:
        yield

async def page(request):
    return HTMLResponse('<!doctype html><link rel="icon" href="data:,"><title>an application</title>')

routes = [Route("/", page), Mount("/live", hub.asgi())]
uvicorn.run(Starlette(routes=routes, lifespan=lifespan), port=0)
"""


def test_a_hub_under_a_prefix(database: Path, windows: Windows) -> None:
    program = [sys.executable, "-c", _APPLICATION, str(database)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = iter(process.stderr.readline, "")
            url = next(found[0] for line in said if (found := re.search(r"http://\S+:\d+", line)))
            page = windows.open(url)
            page.evaluate("async () => { window.lib = await import('/live/cdc/client.js'); }")
            collect(page)
            insert(database, "a")
            wait_for_titles(page, ["a"])
            # Told where the hub is, as by a page that has the library from elsewhere.
            collect(page, "told", url="live/cdc")
            wait_for_titles(page, ["a"], "told")
            assert page.evaluate("lib.connection().transport") == "websocket"
        finally:
            process.terminate()
            process.communicate()


def test_a_holder_that_stands_still_is_replaced(hub: HubProcess, windows: Windows) -> None:
    first, second = tabs(windows, hub.url, 2, without="locks")
    third = tab(first.context, hub.url)
    devtools = first.context.new_cdp_session(first)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    insert(hub.database, "a")
    begin(third)
    for page in (second, third):
        wait_for_titles(page, ["a"])
        wait_live(page)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    wait_for_streams(hub, {"ws": 1})
    insert(hub.database, "b")
    for page in (first, second, third):
        wait_for_titles(page, ["a", "b"])
        wait_live(page)


@pytest.mark.parametrize("how", ["a key", "an answer"])
def test_somebody_who_is_there_brings_the_connection_back(
    hub: HubProcess, windows: Windows, how: str
) -> None:
    windows.network_errors_expected = True
    page = library(windows, hub.url, without="alone")
    collect(page)
    # By itself it never tries again.
    page.evaluate("() => { window.setTimeout = () => 0; }")
    hub.kill()
    page.wait_for_function("() => todos.store.status === 'reconnecting'")
    hub.start()
    insert(hub.database, "a")
    if how == "a key":
        page.keyboard.press("Shift")
    else:
        page.evaluate("() => todos.store.optimistic([], () => Promise.resolve())")
    wait_for_titles(page, ["a"])
