"""The browser library where proxies, browsers, pages and their users do what they should not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.client_page import (
    begin,
    collect,
    insert,
    library,
    tab,
    told,
    wait_for_titles,
    wait_live,
)
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.browser.test_client_rooms import join, send, texts, wait_joined, write_messages
from tests.harness import HubProcess, make_database, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[HubProcess]:
    database = make_database(tmp_path / "app.db", "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT)")
    with HubProcess(database, "--rooms") as process:
        yield process


def open_room(page: Page, name: str = "lobby", **options: Any) -> None:
    """Joins without waiting for anything."""
    page.evaluate(
        """([name, options]) => {
          const told = { room: lib.room("lobby", options), states: [] };
          window[name] = told;
          told.room.subscribe((state) => { told.last = state; });
        }""",
        [name, options],
    )


# Proxies.


def test_sockets_that_get_through_later_are_found_by_itself(chat: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(chat.port, websockets=False) as relay:
        page = library(windows, relay.url)
        open_room(page)
        page.wait_for_function("() => lobby.room.status === 'closed'")
        assert "WebSocket" in page.evaluate("lobby.room.error")
        relay.let_websockets_through()
        wait_joined(page)
        send(page, "hello")


def test_a_proxys_error_is_no_hub(chat: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(chat.port) as relay:
        relay.answer_all(_BAD_GATEWAY)
        page = library_through(windows, relay)
        page.evaluate("lib.connection().onStatus((status) => (window.statuses ??= []).push(status))")
        open_room(page)
        wait_for(lambda: relay.sockets_opened == 0 and relay.answered > 6, "some tries")
        assert "live" not in page.evaluate("statuses")
        relay.answer_all(None)
        wait_joined(page)


def library_through(windows: Windows, relay: Relay) -> Page:
    """A page whose library is there already, though the hub is not."""
    relay.answer_all(None)
    page = library(windows, relay.url)
    relay.answer_all(_BAD_GATEWAY)
    return page


# Browsers.


@pytest.mark.parametrize("without", ["locks", "alone"])
def test_a_browser_that_refuses_locks_connects(hub: HubProcess, windows: Windows, without: str) -> None:
    """As it does where a site may keep no data."""
    page = windows.new()
    page.add_init_script(
        "navigator.locks.request = () => Promise.reject(new DOMException('no', 'SecurityError'))"
    )
    page.close()
    page = library(windows, hub.url, without=without)
    page.context.add_init_script(
        "navigator.locks.request = () => Promise.reject(new DOMException('no', 'SecurityError'))"
    )
    other = tab(page.context, hub.url)
    collect(other)
    insert(hub.database, "a")
    wait_for_titles(other, ["a"])


def test_a_user_who_is_there_need_not_wait_for_the_next_try(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = library(windows, hub.url, without="alone")
    page.clock.install()
    collect(page)
    hub.kill()
    page.wait_for_function("() => todos.store.status === 'reconnecting'")
    hub.start()
    # No timer runs out any more: only the key can help.
    page.keyboard.press("a")
    wait_live(page)


# Pages.


def test_one_request_that_is_too_long_is_refused_alone(hub: HubProcess, windows: Windows) -> None:
    page = library(windows, hub.url)
    collect(page, "others")
    ids = ",".join(f"{n:036}" for n in range(4_000))
    begin(page, "todos", where=f"id=in.({ids})")
    page.wait_for_function("() => todos.store.status === 'closed'")
    assert "too long" in page.evaluate("todos.store.error")
    insert(hub.database, "a")
    wait_for_titles(page, ["a"], "others")
    assert told(page, "statuses", "others") == ["connecting", "live"]


def test_an_error_in_a_key_function_costs_one_row(hub: HubProcess, windows: Windows) -> None:
    insert(hub.database, "a")
    page = library(windows, hub.url)
    page.evaluate(
        """() => {
          window.errors = [];
          window.addEventListener("error", (event) => {
            errors.push(event.message);
            event.preventDefault();
          });
          const key = (row) => { if (row.id === "bad") throw new Error("my own"); return row.id; };
          window.todos = { store: lib.collection({ table: "todos", key }) };
        }"""
    )
    wait_live(page)
    run_sql(
        hub.database,
        "INSERT INTO todos(id, title) VALUES ('b', 'b'), ('bad', 'bad'), ('c', 'c')",
    )
    wait_for_titles(page, ["a", "b", "c"])
    assert page.evaluate("errors.length") == 1
    windows._errors.clear()


def test_subscribers_that_write_and_leave(hub: HubProcess, windows: Windows) -> None:
    page = library(windows, hub.url)
    seen = page.evaluate(
        """() => {
          const open = () => new Promise(() => {});
          const store = lib.collection({ table: "none", key: "id", initialData: [{ id: 1, n: 0 }] });
          const seen = [];
          let off = null;
          store.subscribe(([row]) => {
            if (row.n === 1) store.update(1, { n: 2 }, open);
            if (row.n === 2) off();
          });
          store.subscribe(([row]) => seen.push(row.n));
          off = store.subscribe(([row]) => seen.push(`left ${row.n}`));
          store.update(1, { n: 1 }, open);
          return seen;
        }"""
    )
    assert seen == [0, "left 0", 2]


# Rooms.


def test_a_first_history_that_is_cut_is_asked_for_again(chat: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    write_messages(chat.database, 300)
    wait_for(lambda: chat.status()["headLsn"] >= 300, "the messages")
    with Relay(chat.port) as relay:
        page = library(windows, relay.url)
        relay.cut_next_after(20_000)
        join(page, history=300)
        assert texts(page) == [f"text {n}" for n in range(300)]


def test_older_messages_of_one_tab_make_no_hole_in_another(chat: HubProcess, windows: Windows) -> None:
    write_messages(chat.database, 620)
    wait_for(lambda: chat.status()["headLsn"] >= 620, "the messages")
    first = library(windows, chat.url)
    join(first, "ann", history=480)
    second = tab(first.context, chat.url)
    join(second, "ann", history=10)
    # The holder keeps 500, so that it lets some go now.
    run_sql(
        chat.database,
        *(f"INSERT INTO messages VALUES ('n{n}', 'lobby', 'bot', 'new {n}', {n})" for n in range(40)),
    )
    for page in (first, second):
        wait_for(lambda page=page: texts(page)[-1] == "new 39", "what is new")
    for page in (first, second, first, second):
        assert page.evaluate("lobby.room.older(50)") in (True, False)
        numbers = [int(text.split()[1]) for text in texts(page) if text.startswith("text")]
        assert numbers == list(range(numbers[0], 620)), "a hole in what is shown"
        assert page.evaluate("lobby.last.more") is (numbers[0] > 0)


def test_a_room_that_was_refused_is_open_when_the_hub_has_rooms(
    tmp_path: Path, windows: Windows
) -> None:
    windows.network_errors_expected = True
    database = make_database(tmp_path / "app.db", "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT)")
    with HubProcess(database) as without:
        page = library(windows, without.url)
        open_room(page)
        page.wait_for_function("() => lobby.room.status === 'closed'")
        port = without.port
        assert without.stop() == 0
    with HubProcess(database, "--rooms", port=port):
        wait_joined(page)
        send(page, "now")


def test_half_an_emoji_is_sent_as_what_can_be_read(chat: HubProcess, windows: Windows) -> None:
    page = library(windows, chat.url)
    join(page)
    page.evaluate(r"lobby.room.send('half \ud83d')")
    wait_for(lambda: texts(page) == ["half \ufffd"], "the message")


def test_a_room_that_is_left_owes_nothing(chat: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(chat.port) as relay:
        page = library(windows, relay.url)
        join(page)
        relay.hold_answers()
        results = page.evaluate(
            """async () => {
              const waiting = [lobby.room.send("on its way"), lobby.room.older()];
              const settled = Promise.allSettled(waiting);
              lobby.room.close();
              const found = (await settled).map(({ reason }) => reason?.message);
              return [found, lobby.last.joined, lobby.last.messages.length];
            }"""
        )
        assert results == [["The room was left.", "The room was left."], False, 0]
