"""The browser library when the network or the hub misbehaves, and what never needs either."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cdchub.views.pages import STATIC
from tests.browser.client_page import (
    begin,
    collect,
    insert,
    library,
    told,
    wait_for_streams,
    wait_for_titles,
    wait_live,
)
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("websockets", [True, False], ids=["websocket", "sse"])
def test_a_cut_connection_comes_back_and_misses_nothing(
    hub: HubProcess, windows: Windows, websockets: bool
) -> None:
    windows.network_errors_expected = True
    with Relay(hub.port, websockets=websockets) as relay:
        page = library(windows, relay.url)
        collect(page)
        insert(hub.database, "a")
        wait_for_titles(page, ["a"])
        for each in "bcd":
            relay.hold()
            relay.cut()
            page.wait_for_function("() => todos.store.status === 'reconnecting'")
            insert(hub.database, each)
            relay.release()
            wait_for_titles(page, "abcd"[: "abcd".index(each) + 1])
            wait_live(page)
        assert [change["lsn"] for change in told(page, "changes")] == [1, 2, 3, 4]
        assert {"connecting", "live", "reconnecting"} == set(told(page, "statuses"))


@pytest.mark.needs("chromium")
def test_offline_and_online(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(hub.port) as relay:
        # In the page itself, because the browser's tools take the network from pages, not workers.
        page = library(windows, relay.url, without="alone")
        collect(page)
        page.context.set_offline(True)
        relay.cut()
        page.wait_for_function("() => todos.store.status === 'reconnecting'")
        insert(hub.database, "a")
        page.context.set_offline(False)
        wait_for_titles(page, ["a"])
        wait_live(page)


@pytest.mark.needs("chromium")
def test_a_silent_connection_is_given_up(database: Path, windows: Windows) -> None:
    """A network that swallows everything: nothing is ever said of the connection's end."""
    windows.network_errors_expected = True
    with HubProcess(database, "--heartbeat", "0.4") as hub, Relay(hub.port) as relay:
        page = library(windows, relay.url)
        collect(page)
        relay.swallow()
        insert(hub.database, "a")
        page.wait_for_function("() => todos.store.status === 'reconnecting'")
        relay.release()
        wait_for_titles(page, ["a"])


@pytest.mark.needs("chromium")
def test_an_event_stream_that_the_browser_gave_up_is_opened_again(
    hub: HubProcess, windows: Windows
) -> None:
    windows.network_errors_expected = True
    with Relay(hub.port, websockets=False) as relay:
        page = library(windows, relay.url)
        collect(page)
        # An answer that is no event stream ends an EventSource for good.
        relay.answer_next_stream(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        relay.cut()
        insert(hub.database, "a")
        wait_for_titles(page, ["a"])
        wait_live(page)


@pytest.mark.needs("chromium")
def test_a_hub_that_comes_late_is_met_over_websocket(hub: HubProcess, windows: Windows) -> None:
    """While no hub is there, WebSockets fail like blocked ones: that must not settle it."""
    windows.network_errors_expected = True
    page = library(windows, hub.url)
    hub.kill()
    begin(page)
    page.wait_for_function("() => todos.store.status === 'connecting'")
    hub.start()
    wait_live(page)
    wait_for_streams(hub, {"ws": 1})
    page.wait_for_function("() => lib.connection().transport === 'websocket'")


@pytest.mark.needs("chromium")
def test_the_connection_tells_its_status(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = library(windows, hub.url)
    page.evaluate(
        """() => {
          window.statuses = [];
          lib.connection().onStatus((status) => statuses.push(status));
        }"""
    )
    page.wait_for_function("() => statuses.at(-1) === 'live'")
    assert page.evaluate("lib.connection().transport") == "websocket"
    hub.kill()
    page.wait_for_function("() => statuses.at(-1) === 'reconnecting'")
    hub.start()
    page.wait_for_function("() => statuses.at(-1) === 'live'")
    assert page.evaluate("statuses") == ["connecting", "live", "reconnecting", "live"]


@pytest.mark.needs("chromium")
def test_a_subscriber_that_throws_harms_nobody_else(hub: HubProcess, windows: Windows) -> None:
    page = library(windows, hub.url)
    page.evaluate(
        """() => {
          window.problems = [];
          addEventListener("error", (event) => {
            problems.push(event.message);
            event.preventDefault();
          });
        }"""
    )
    collect(page)
    page.evaluate("""() => { todos.store.onChange(() => { throw new Error("mine"); }); }""")
    page.evaluate("() => { todos.store.subscribe((rows) => { window.last = rows.length; }); }")
    insert(hub.database, "a")
    page.wait_for_function("() => window.last === 1 && problems.length === 1")
    assert "mine" in page.evaluate("problems[0]")


def test_the_library_is_served_as_a_module(hub: HubProcess) -> None:
    for path in ("/cdc/client.js", "/api/cdc/client.js"):
        answer = hub.get(path)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.body == (STATIC / "client.js").read_bytes()
        again = hub.get(path, If_None_Match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")
        assert again.headers["cache-control"] == "no-cache"
        assert hub.request("HEAD", path).status == 200


def node(script: str) -> Any:
    """What a module prints as JSON in Node, with the library in `lib`."""
    program = f"const lib = await import({str(STATIC / 'client.js')!r});\n{script}"
    done = subprocess.run(
        ["node", "--no-warnings", "--input-type=module", "-e", program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.needs("node")
def test_on_a_server_it_holds_initial_rows_and_never_connects() -> None:
    found = node(
        """
        const todos = lib.collection({ table: "todos", key: "id", initialData: [{ id: 1 }] });
        const seen = [];
        todos.subscribe((rows) => seen.push(rows))();
        const lobby = lib.room("lobby");
        lobby.subscribe((state) => seen.push(state));
        console.log(JSON.stringify([seen, todos.data, todos.status, todos.loaded,
          lib.connection().status, lobby.status]));
        """
    )
    room = {"messages": [], "members": [], "typing": [], "joined": False, "more": False}
    assert found == [[[{"id": 1}], room], [{"id": 1}], "connecting", True, "connecting", "connecting"]


@pytest.mark.needs("node")
def test_the_fold_is_the_promise_of_the_log() -> None:
    found = node(
        """
        const change = (type, id, title, before) => ({ type, table: "t", key: { id },
          oldValue: before === undefined ? null : { id, title: before },
          newValue: title === null ? null : { id, title } });
        const byId = lib.keyReader("id"), byTitle = lib.keyReader("title");
        const state = (keyOf, ...changes) => {
          const rows = new Map();
          for (const each of changes) lib.fold(rows, each, keyOf);
          return [...rows.values()].map((row) => row.title);
        };
        console.log(JSON.stringify([
          state(byId, change("INSERT", 1, "a"), change("INSERT", 1, "b")),
          state(byId, change("UPDATE", 1, "a", "z")),
          state(byId, change("DELETE", 1, null, "a")),
          state(byId, change("INSERT", 1, "a"), change("DELETE", 1, null, "a")),
          state(byId, change("INSERT", 1, "a"), { ...change("DELETE", 1, null), oldValue: null }),
          state(byTitle, change("INSERT", 1, "a"), change("UPDATE", 1, "b", "a")),
          [lib.keyText("a"), lib.keyText({ id: "a" }), lib.keyText(["a"]), lib.keyText({ $int: "9" }),
           lib.keyText({ id: null, rowid: 7 })],
        ]));
        """
    )
    keys = ['["a"]', '["a"]', '["a"]', '[{"$int":"9"}]', "[null,7]"]
    assert found == [["b"], ["a"], [], [], [], ["b"], keys]


@pytest.mark.needs("node")
def test_words_of_requests() -> None:
    found = node(
        """
        const request = (table, more) => ({ table, room: null, filters: [], columns: null, ...more });
        const names = (feeds) => feeds.map((group) => group.map((feed) => feed.requests[0].table));
        console.log(JSON.stringify([
          lib.filtersOf({ 'a "b"': 'x "y"', n: null, done: true }),
          lib.nameOf("a").length, new Set(["a", "b", "a"].map(lib.nameOf)).size,
          names(lib.unions(["a", "b", "A", "c"].map((table) => ({ requests: [request(table)] })))),
          lib.streamQuery([request("a", { filters: ["x=eq.1", "a.y=eq.2"] }),
            request("b", { columns: ["c"] })]).getAll("filter"),
          lib.commonPosition(["e:9", "e:10", "e:8"]), lib.commonPosition(["e:9", "f:1"]),
          lib.commonPosition([null]), lib.backoff(0, 0.5), lib.backoff(30, 1),
        ]));
        """
    )
    assert found == [
        ['"a \\"b\\""=eq."x \\"y\\""', '"done"=eq."1"', '"n"=is.null'],
        32,
        2,
        [["a", "b", "c"], ["A"]],
        ['"a".x=eq.1', "a.y=eq.2"],
        "e:8",
        None,
        None,
        500,
        30_000,
    ]
