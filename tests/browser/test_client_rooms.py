"""Chat rooms of the browser library: history, order, presence, typing, and messages that get lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.client_page import WITHOUT, library, tab, use
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess, make_database, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

ROOM = """([name, options]) => {
  const kept = lib.room("lobby", options);
  const told = { room: kept, states: [], statuses: [] };
  window[name] = told;
  kept.subscribe((state) => { told.last = state; told.states.push(structuredClone(state)); });
  kept.onStatus((status, error) => told.statuses.push(error ? [status, error] : status));
}"""


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE messages("
        "id TEXT PRIMARY KEY, room TEXT, user_id TEXT, content TEXT, created_at INTEGER)",
    )
    with HubProcess(database) as process:
        yield process


def join(page: Page, user: str | None = None, name: str = "lobby", **options: Any) -> None:
    page.evaluate(ROOM, [name, {**options, **({"user": user} if user else {})}])
    wait_joined(page, name)


def wait_joined(page: Page, name: str = "lobby") -> None:
    page.wait_for_function(
        "(name) => window[name].last.joined && window[name].room.status === 'live'", arg=name
    )


def send(page: Page, text: str) -> None:
    page.evaluate("(text) => lobby.room.send(text)", text)


def texts(page: Page, name: str = "lobby") -> list[str]:
    found: list[str] = page.evaluate("(name) => window[name].last.messages.map((m) => m.content)", name)
    return found


def wait_for_texts(page: Page, *wanted: str, name: str = "lobby") -> None:
    wait_for(lambda: texts(page, name) == list(wanted), f"{wanted}, in this order")


def wait_for_members(page: Page, *wanted: str) -> None:
    wait_for(lambda: page.evaluate("lobby.last.members") == list(wanted), f"the members {wanted}")


def write_messages(database: Path, count: int) -> None:
    """So many messages, each a commit, as another program would write them."""
    run_sql(
        database,
        *(
            f"INSERT INTO messages VALUES ('m{n:03d}', 'lobby', 'bot', 'text {n}', {n})"
            for n in range(count)
        ),
    )


def test_two_people_talk(chat: HubProcess, windows: Windows) -> None:
    ann, bob = library(windows, chat.url), library(windows, chat.url)
    join(ann, "ann")
    join(bob, "bob")
    assert ann.evaluate("lobby.room.userId") == "ann"
    for page in (ann, bob):
        wait_for_members(page, "ann", "bob")
    send(ann, "hi")
    send(bob, "<b>hello</b>")
    for page in (ann, bob):
        wait_for_texts(page, "hi", "<b>hello</b>")
    message = ann.evaluate("lobby.last.messages[0]")
    assert message.keys() == {"messageId", "userId", "content", "timestamp", "lsn"}
    assert (message["userId"], message["lsn"]) == ("ann", 1)
    stored = run_sql(chat.database, "SELECT id, content FROM messages ORDER BY rowid")
    assert stored[0] == [message["messageId"], "hi"]
    # Shown at once, then confirmed, under the same id and never twice.
    seen = ann.evaluate("lobby.states.map((s) => s.messages.map((m) => [m.content, !!m.pending]))")
    assert [["hi", True]] in seen
    assert all(sum(text == "hi" for text, _ in each) <= 1 for each in seen)
    bob.evaluate("lobby.room.close()")
    wait_for_members(ann, "ann")


def test_history_comes_as_a_whole_and_older_in_front(chat: HubProcess, windows: Windows) -> None:
    write_messages(chat.database, 30)
    chat.wait_for_lsn(30)
    page = library(windows, chat.url)
    join(page, history=10)
    wait_for_texts(page, *(f"text {n}" for n in range(20, 30)))
    lengths = page.evaluate("lobby.states.map((state) => state.messages.length)")
    assert set(lengths) <= {0, 10}
    assert page.evaluate("lobby.room.older(15)") is True
    assert texts(page) == [f"text {n}" for n in range(5, 30)]
    assert page.evaluate("lobby.room.older(15)") is False
    assert texts(page) == [f"text {n}" for n in range(30)]


def test_messages_that_others_change_and_delete(chat: HubProcess, windows: Windows) -> None:
    page = library(windows, chat.url)
    join(page)
    write_messages(chat.database, 3)
    wait_for_texts(page, "text 0", "text 1", "text 2")
    run_sql(
        chat.database,
        "UPDATE messages SET content = 'mended' WHERE id = 'm000'",
        "DELETE FROM messages WHERE id = 'm001'",
    )
    wait_for_texts(page, "mended", "text 2")


@pytest.mark.parametrize("without", list(WITHOUT))
def test_a_break_loses_and_repeats_nothing(chat: HubProcess, windows: Windows, without: str) -> None:
    windows.network_errors_expected = True
    with Relay(chat.port) as relay:
        page = library(windows, relay.url, without=without)
        join(page, "ann")
        send(page, "one")
        relay.hold()
        relay.cut()
        page.wait_for_function("() => !lobby.last.joined")
        page.evaluate("() => { window.sent = lobby.room.send('two').then(() => 'stored'); }")
        run_sql(chat.database, "INSERT INTO messages VALUES ('x', 'lobby', 'bob', 'meanwhile', 1)")
        assert texts(page) == ["one", "two"]
        relay.release()
        assert page.evaluate("() => sent") == "stored"
        wait_for_texts(page, "one", "meanwhile", "two")
        page.wait_for_function("() => !lobby.last.messages.some((message) => message.pending)")
        assert texts(page) == ["one", "meanwhile", "two"]


def test_a_message_whose_ack_was_lost_is_stored_once(chat: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(chat.port) as relay:
        page = library(windows, relay.url)
        join(page, "ann")
        relay.hold_answers()
        page.evaluate("() => { window.sent = lobby.room.send('once').then(() => 'stored'); }")
        count = "SELECT count(*) FROM messages"
        wait_for(lambda: run_sql(chat.database, count) == [[1]], "the message to be stored")
        relay.cut()
        relay.release()
        assert page.evaluate("() => sent") == "stored"
        wait_for_texts(page, "once")
        assert run_sql(chat.database, count) == [[1]]


def test_a_message_that_is_refused_is_gone_with_a_reason(chat: HubProcess, windows: Windows) -> None:
    page = library(windows, chat.url)
    join(page)
    refused = "(text) => lobby.room.send(text).catch((error) => error.message)"
    assert "nothing" in page.evaluate(refused, "")
    # So long a frame would end the connection, again and again.
    for length in (16_385, 300_000):
        assert "16,384 characters" in page.evaluate(refused, "x" * length)
    send(page, "\U0001f642" * 16_384)
    wait_for(lambda: len(texts(page)) == 1, "the longest message")
    run_sql(
        chat.database,
        "CREATE TRIGGER full BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'full'); END",
    )
    assert page.evaluate(refused, "hi")
    wait_for(lambda: len(texts(page)) == 1, "only the stored one to be left")


def test_tabs_of_one_browser_are_one_member(chat: HubProcess, windows: Windows) -> None:
    first = library(windows, chat.url)
    join(first, "ann")
    send(first, "hi")
    second = tab(first.context, chat.url)
    join(second, "ann")
    wait_for_texts(second, "hi")
    send(second, "from the other tab")
    wait_for_texts(first, "hi", "from the other tab")
    assert first.evaluate("lobby.last.members") == ["ann"]
    assert chat.subscribers() == 1
    # Someone else in the same browser has a connection of their own.
    join(second, "bob", name="other")
    wait_for_members(first, "ann", "bob")
    assert second.evaluate("other.room.userId") == "bob"


@pytest.mark.parametrize("tabs", [1, 2])
def test_a_reload_is_no_departure(chat: HubProcess, windows: Windows, tabs: int) -> None:
    ann, bob = library(windows, chat.url), library(windows, chat.url)
    join(bob, "bob")
    join(ann, "ann")
    if tabs == 2:
        # The connection outlives the reload.
        tab(ann.context, chat.url).evaluate(
            "() => { window.kept = lib.collection({ table: 'messages' }); }"
        )
    wait_for_members(bob, "ann", "bob")
    bob.evaluate("lobby.states.length = 0")
    use(ann, chat.url)
    join(ann, "ann")
    send(ann, "again here")
    wait_for_texts(bob, "again here")
    members = bob.evaluate("lobby.states.map((state) => state.members.join())")
    assert set(members) == {"ann,bob"}
    ann.evaluate("lobby.room.close()")
    wait_for_members(bob, "bob")


def test_typing_is_told_and_forgotten(chat: HubProcess, windows: Windows) -> None:
    ann, bob = library(windows, chat.url), library(windows, chat.url)
    join(ann, "ann")
    join(bob, "bob")
    wait_for_members(ann, "ann", "bob")
    ann.clock.install()

    def wait_typing(*wanted: str) -> None:
        wait_for(lambda: ann.evaluate("lobby.last.typing") == list(wanted), f"{wanted} typing")

    bob.evaluate("lobby.room.typing(true)")
    wait_typing("bob")
    ann.clock.run_for(5_000)
    wait_typing()
    bob.evaluate("lobby.room.typing(false)")
    bob.evaluate("lobby.room.typing(true)")
    wait_typing("bob")
    bob.evaluate("lobby.room.typing(false)")
    wait_typing()
    bob.evaluate("lobby.room.typing(true)")
    wait_typing("bob")
    send(bob, "done")
    wait_for_texts(ann, "done")
    wait_typing()


def test_a_hub_without_rooms_says_so(hub: HubProcess, windows: Windows) -> None:
    page = library(windows, hub.url)
    page.evaluate(ROOM, ["lobby", {}])
    page.wait_for_function("() => lobby.room.status === 'closed'")
    assert "messages" in page.evaluate("lobby.room.error")
    assert "messages" in page.evaluate("() => lobby.room.send('hi').catch((error) => error.message)")


def test_without_websockets_a_room_says_so(chat: HubProcess, windows: Windows) -> None:
    with Relay(chat.port, websockets=False) as relay:
        windows.network_errors_expected = True
        page = library(windows, relay.url)
        page.evaluate(ROOM, ["lobby", {}])
        page.wait_for_function("() => lobby.room.status === 'closed'")
        assert "WebSocket" in page.evaluate("lobby.room.error")
