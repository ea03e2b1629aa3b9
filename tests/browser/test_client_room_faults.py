"""Rooms of the browser library that are cut, refused or left, and tabs that hold different messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocketRoute

from tests.browser.client_page import WITHOUT, library, tab, use
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.browser.test_client_rooms import (
    ROOM,
    chat,
    join,
    send,
    texts,
    wait_for_texts,
    wait_joined,
    write_messages,
)
from tests.harness import HubProcess, wait_for

__all__ = ["chat"]  # the fixture

pytestmark = pytest.mark.needs("chromium")


def speak(
    page: Page, url: str, heard: Callable[[int, dict[str, Any]], list[dict[str, Any] | None]]
) -> None:
    """The hub's part of each connection: what follows a frame; None closes it."""
    page.context.add_init_script(WITHOUT["alone"])
    connections = 0

    def open_one(socket: WebSocketRoute) -> None:
        nonlocal connections
        connections += 1
        number = connections

        def answer(text: str | bytes) -> None:
            for frame in heard(number, json.loads(text)):
                if frame is None:
                    socket.close(code=1001)
                else:
                    socket.send(json.dumps({"room": "lobby", **frame}))

        socket.on_message(answer)
        welcome = {"clientId": "c", "userId": "ann", "epoch": "new", "heartbeat": 15}
        socket.send(json.dumps({"type": "connected", **welcome}))

    page.route_web_socket("**/cdc/ws*", open_one)
    use(page, url)


def joined(position: str, history: int = 0) -> dict[str, Any]:
    return {"type": "joined", "position": position, "members": ["ann"], "history": history}


def message(text: str, lsn: int) -> dict[str, Any]:
    who = {"userId": "bob", "timestamp": "2026-01-01T00:00:00Z"}
    return {"type": "message", "content": text, "messageId": text, "lsn": lsn, **who}


def test_a_first_history_that_was_cut_is_asked_for_again(chat: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    write_messages(chat.database, 300)
    chat.wait_for_lsn(300)
    with Relay(chat.port) as relay:
        page = library(windows, relay.url, without="alone")
        relay.cut_next_after(20_000)
        join(page, history=300)
        wait_for_texts(page, *(f"text {n}" for n in range(300)))


def test_a_break_after_a_reset_begins_anew(chat: HubProcess, windows: Windows) -> None:
    page = windows.new()
    windows.network_errors_expected = True

    def heard(number: int, frame: dict[str, Any]) -> list[dict[str, Any] | None]:
        match number, frame["type"]:
            case 1, "join":
                return [joined("old:9", 1), {**message("from a lost past", 9), "history": True}, None]
            case 2, "join":
                return [joined("new:5"), {"type": "reset", "reason": "epoch", "position": "new:5"}]
            case 2, "history":
                return [None]
            case _, "join":
                assert "since" not in frame
                return [joined("new:5", 1), {**message("as it is", 4), "history": True}]
        return []

    speak(page, chat.url, heard)
    page.evaluate(ROOM, ["lobby", {}])
    wait_for_texts(page, "as it is")


def test_older_messages_of_one_tab_make_no_hole_in_another(chat: HubProcess, windows: Windows) -> None:
    write_messages(chat.database, 520)
    chat.wait_for_lsn(520)
    ann = library(windows, chat.url)
    join(ann, history=400)
    # More than is kept for other tabs once the next message is there.
    ann.evaluate("lobby.room.older(110)")
    send(ann, "new")
    bob = tab(ann.context, chat.url)
    join(bob, history=10)
    assert ann.evaluate("lobby.room.older(5)") is True
    send(ann, "last")
    wait_for(lambda: texts(bob)[-1:] == ["last"], "the other tab to have it")
    everything = [*(f"text {n}" for n in range(520)), "new", "last"]
    for page in (ann, bob):
        found = texts(page)
        assert found == everything[-len(found) :]
    assert bob.evaluate("lobby.last.more") is True
    assert bob.evaluate("lobby.room.older(500)") is False
    assert texts(bob) == everything


def test_a_refused_room_that_lets_in_later_is_live(chat: HubProcess, windows: Windows) -> None:
    page = windows.new()
    windows.network_errors_expected = True
    refused = {"type": "error", "code": "forbidden", "message": "not yet", "id": "join lobby"}

    def heard(number: int, frame: dict[str, Any]) -> list[dict[str, Any] | None]:
        return [refused, None] if number == 1 else [joined("new:5")]

    speak(page, chat.url, heard)
    page.evaluate(ROOM, ["lobby", {}])
    wait_joined(page)
    assert page.evaluate("[lobby.statuses.some(([s]) => s === 'closed'), lobby.room.error]") == [
        True,
        None,
    ]


def test_a_closed_room_is_not_joined_later(chat: HubProcess, windows: Windows) -> None:
    page = windows.new()
    windows.network_errors_expected = True
    page.clock.install()
    said: list[str] = []
    busy = {"type": "error", "code": "overloaded", "message": "busy", "id": "join lobby"}

    def heard(_: int, frame: dict[str, Any]) -> list[dict[str, Any] | None]:
        said.append(f"{frame['type']} {frame.get('room')}")
        # What comes behind the refusal shows that it has been heard.
        return [{**busy, "retryAfterMs": 20_000}, {"type": "user-joined", "userId": "x"}]

    def wait_to_say(what: str) -> None:
        # Only a word with the page lets its frames arrive here.
        wait_for(lambda: page.evaluate("true") and what in said, what)

    speak(page, chat.url, heard)
    page.evaluate(ROOM, ["lobby", {}])
    page.wait_for_function("() => lobby.last.members.includes('x')")
    page.evaluate("lobby.room.close()")
    wait_to_say("leave lobby")
    page.clock.run_for(20_000)
    page.evaluate("() => { window.other = lib.room('other'); }")
    wait_to_say("join other")
    assert said.count("join lobby") == 1


def test_half_an_emoji_is_sent(chat: HubProcess, windows: Windows) -> None:
    page = library(windows, chat.url)
    join(page)
    page.evaluate("() => lobby.room.send('cut \\ud83d')")
    wait_for_texts(page, "cut \ufffd")


def test_a_room_that_is_closed_leaves_nothing_open(chat: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    write_messages(chat.database, 20)
    chat.wait_for_lsn(20)
    with Relay(chat.port) as relay:
        page = library(windows, relay.url)
        join(page, history=10)
        relay.hold_answers()
        said = page.evaluate(
            """async () => {
              const why = (error) => error.message;
              const all = [lobby.room.send("hi").catch(why), lobby.room.older().catch(why)];
              lobby.room.close();
              return Promise.all(all);
            }"""
        )
        assert said == ["The room was left."] * 2
        assert page.evaluate("[lobby.last.joined, lobby.last.messages.some((m) => m.pending)]") == [
            False,
            False,
        ]
