"""INTERFACE §5, rooms: messages, acknowledgements, presence and broadcasts, both ways of the bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cdchub.ws import SCHEMA
from tests.harness import HubProcess, cdchub, make_database, quote, run_sql, wait_for
from tests.ws_client import CLOSE, Message, Peer, error_of, frame, opened, text

Serving = Callable[..., HubProcess]
GRACE = ("--set", "websocket.grace_s=1")
NAMES = ["lobby", "é😀", "a b\n\"'\\", "x" * 128, "😀" * 128, "%", "*", "nul\u0000nul", "123", "'; --"]


@pytest.fixture(scope="module")
def shared(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("rooms") / "app.db", SCHEMA, "CREATE TABLE todos(id TEXT PRIMARY KEY)"
    )
    with serving(database, *GRACE) as hub:
        yield hub


@pytest.fixture
def room() -> str:
    return f"room-{next(_rooms)}"


_rooms = count()
# What a message is, as everybody hears it.
MEMBERS = {"type", "room", "userId", "content", "timestamp", "lsn", "messageId"}


def rows(hub: HubProcess, room: str) -> list[list[Any]]:
    return run_sql(
        hub.database,
        "SELECT id, room, user_id, content FROM messages WHERE room = ? ORDER BY rowid",
        parameters=[room],
    )


def fleeting(messages: list[Message]) -> list[Message]:
    return [m for m in messages if m["type"] not in ("caught-up", "heartbeat")]


# Joining, and messages.


def test_what_was_said_before_a_close_is_stored(shared: HubProcess, room: str) -> None:
    """In one write, and whoever says it is gone before anything is answered."""
    said = [f"{room}-{n}" for n in range(20)]
    with opened(shared, user="ann") as peer:
        join = text(type="join", room=room)
        messages = [text(type="message", room=room, content="hi", messageId=id) for id in said]
        peer.wire.send(join + b"".join(messages) + frame(CLOSE, (1000).to_bytes(2, "big")))
        peer.wire.rest()
    wait_for(lambda: [row[0] for row in rows(shared, room)] == said, "all that was said")


def test_who_leaves_and_closes_has_left(serving: Serving, tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", SCHEMA)
    with (
        serving(database, "--set", "websocket.grace_s=1000") as hub,
        opened(hub, user="ann") as ann,
        opened(hub, user="bob") as bob,
    ):
        bob.join("r")
        ann.join("r")
        message = text(type="message", room="r", content="bye")
        leave = text(type="leave", room="r")
        ann.wire.send(message + leave + frame(CLOSE, (1000).to_bytes(2, "big")))
        assert bob.until("user-left")["userId"] == "ann"
        assert bob.find("message")["content"] == "bye"
        wait_for(lambda: hub.status()["rooms"] == {"r": 1}, "one to be left")


@pytest.mark.parametrize("name", NAMES, ids=lambda n: ascii(n)[:30])
def test_a_message_goes_to_everyone_in_the_room(shared: HubProcess, name: str) -> None:
    with ExitStack() as stack:
        ann, bob, cy = (stack.enter_context(opened(shared, user=u)) for u in ("ann", "bob", "cy"))
        first = ann.join(name)
        assert (first["room"], first["members"], first["history"]) == (name, ["ann"], 0)
        assert first["position"] == shared.head()
        assert bob.join(name)["members"] == ["ann", "bob"]
        cy.join("elsewhere")
        before = datetime.now(UTC)
        ack = ann.ask("message", room=name, content="hi\u0000 😀", messageId=f"m {name[:50]}")
        message = ann.find("message")
        assert bob.until("message") == message
        assert set(message) == MEMBERS
        assert message["userId"] == "ann"
        assert (message["room"], message["content"]) == (name, "hi\u0000 😀")
        assert message["messageId"] == ack["messageId"] == f"m {name[:50]}"
        assert message["lsn"] == ack["lsn"]
        assert ack["duplicate"] is False
        at = datetime.fromisoformat(message["timestamp"])
        assert abs((at - before).total_seconds()) < 60
        assert not [m for m in cy.so_far() if m.get("room") == name]
        again = cy.join(name, history=50)
        assert again["history"] == 1
        assert cy.until("message") == {**message, "history": True}


def test_a_message_is_a_row_and_a_change(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann:
        ann.join(room)
        with shared.stream(f"table=messages&room={quote(room)}") as stream:
            stream.until("caught-up")
            ack = ann.ask("message", content="hi")
            (change,) = stream.changes(1)
        assert change["lsn"] == ack["lsn"]
        assert change["newValue"]["content"] == "hi"
        assert change["commit"]
        assert rows(shared, room) == [[ack["messageId"], room, "ann", "hi"]]


def test_an_ack_is_only_for_who_gave_an_id(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann, opened(shared, user="bob") as bob:
        ann.join(room)
        bob.join(room)
        ann.say("message", content="one")
        message = ann.until("message")
        assert len(message["messageId"]) == 36
        bob.until("message")
        # Requests that take the database are done in order.
        ann.ask("history", room=room)
        assert not [m for m in ann.passed if m["type"] == "ack"]
        ann.ask("message", content="two")
        bob.until("message")
        bob.ask("history", room=room)
        assert not [m for m in bob.passed if m["type"] == "ack"]


def test_a_message_sent_again_stores_nothing_and_tells_nobody(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann, opened(shared, user="bob") as bob:
        bob.join(room)
        ann.join(room)
        bob.until("user-joined")
        first = ann.ask("message", content="hi", messageId=room)
        bob.until("message")
        with opened(shared, user="ann") as tab:
            tab.join(room)
            second = tab.ask("message", content="hi", messageId=room)
        third = ann.ask("message", content="hi", messageId=room)
        for again in (second, third):
            assert (again["type"], again["duplicate"], again["lsn"]) == ("ack", True, first["lsn"])
        assert len(rows(shared, room)) == 1
        bob.ask("message", content="after", messageId=room + "-after")
        assert bob.find("message")["content"] == "after"


@pytest.mark.parametrize("whose", ["another user's", "another room's"])
def test_a_message_id_of_another_message(shared: HubProcess, room: str, whose: str) -> None:
    with opened(shared, user="ann") as ann, opened(shared, user="bob") as bob:
        ann.join(room)
        ann.ask("message", content="hi", messageId=room)
        sender = bob if whose == "another user's" else ann
        place = room if whose == "another user's" else room + "-other"
        sender.join(place)
        answer = sender.ask("message", room=place, content="mine", messageId=room)
        assert error_of(answer) == "conflict"
        assert answer["messageId"] == room
        assert answer["room"] == place
        assert len(rows(shared, room)) == 1


def test_the_room_may_be_left_out_where_one_is_joined(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann:
        for type, more in (("message", {"content": "x"}), ("broadcast", {"data": 1}), ("leave", {})):
            assert error_of(ann.ask(type, **more)) == "room_required"
        ann.join(room)
        assert ann.ask("message", content="x")["type"] == "ack"
        ann.join(room + "b")
        for type, more in (("message", {"content": "x"}), ("broadcast", {"data": 1}), ("leave", {})):
            assert error_of(ann.ask(type, **more)) == "room_required"
        assert ann.ask("leave", room=room)["type"] == "left"
        assert ann.ask("message", content="x")["type"] == "ack"
        assert rows(shared, room + "b")
        assert ann.ask("leave")["room"] == room + "b"


@pytest.mark.parametrize("type", ["message", "broadcast", "leave", "history"])
def test_a_room_that_is_not_joined(shared: HubProcess, room: str, type: str) -> None:
    with opened(shared) as peer:
        peer.join(room)
        more = {"message": {"content": "x"}, "broadcast": {"data": 1}}.get(type, {})
        answer = peer.ask(type, room="nowhere", **more)
        assert (error_of(answer), answer["room"]) == ("not_joined", "nowhere")
        assert peer.ask("message", content="x")["type"] == "ack"


def test_joining_twice_answers_twice_and_tells_nobody(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann, opened(shared, user="bob") as bob:
        bob.join(room)
        ann.join(room)
        assert bob.until("user-joined")["userId"] == "ann"
        assert ann.join(room)["members"] == ["ann", "bob"]
        ann.ask("message", content="once")
        ann.ask("history", room=room)
        assert len([m for m in ann.passed if m["type"] == "message"]) == 1
        assert [m["type"] for m in fleeting(bob.so_far())] == ["message"]
        ann.ask("leave", room=room)
        assert bob.until("user-left")["userId"] == "ann"
        assert error_of(ann.ask("leave", room=room)) == "not_joined"


# Broadcasts.


@pytest.mark.parametrize("data", [None, 1, "x", [1, {"a": "é"}], {"typing": True}, {"x": "y" * 8_000}])
def test_a_broadcast_goes_to_the_others_only(shared: HubProcess, room: str, data: object) -> None:
    with opened(shared, user="ann") as ann, opened(shared, user="bob") as bob:
        ann.join(room)
        bob.join(room)
        ann.say("broadcast", data=data, id="b")
        assert bob.until("broadcast") == {
            "type": "broadcast",
            "room": room,
            "userId": "ann",
            "data": data,
        }
        assert "broadcast" not in [m["type"] for m in ann.so_far()]
        assert rows(shared, room) == []


def test_a_broadcast_that_is_too_long(shared: HubProcess, room: str) -> None:
    with opened(shared) as peer:
        peer.join(room)
        assert error_of(peer.ask("broadcast", data="x" * 8_192)) == "bad_message"


# Presence.


def test_who_leaves_is_gone_at_once(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann, opened(shared, user="bob") as bob:
        ann.join(room)
        bob.join(room)
        assert ann.until("user-joined") == {"type": "user-joined", "room": room, "userId": "bob"}
        bob.ask("leave", room=room)
        assert ann.until("user-left") == {"type": "user-left", "room": room, "userId": "bob"}
        ann.ask("message", content="x")
        assert fleeting(bob.so_far()) == []
        assert bob.join(room)["members"] == ["ann", "bob"]


@pytest.mark.parametrize("how", ["closed", "reset", "dropped"])
def test_a_connection_that_is_gone_counts_after_the_grace(
    shared: HubProcess, room: str, how: str
) -> None:
    with opened(shared, user="ann") as ann, opened(shared, user="bob") as bob:
        ann.join(room)
        bob.join(room)
        ann.until("user-joined")
        {
            "closed": lambda: bob.send(8, b"\x03\xe8"),
            "reset": bob.wire.reset,
            "dropped": bob.wire.close,
        }[how]()
        with opened(shared, user="cy") as cy:
            # Present still.
            assert cy.join(room)["members"] == ["ann", "bob", "cy"]
            assert cy.until("user-left") == {"type": "user-left", "room": room, "userId": "bob"}
            assert cy.join(room)["members"] == ["ann", "cy"]
        told = [m["type"] for m in fleeting(ann.so_far())]
        assert told == ["user-joined", "user-left"]


def test_a_reload_is_no_departure(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann:
        ann.join(room)
        for _ in range(5):
            with opened(shared, user="bob") as bob:
                assert bob.join(room)["members"] == ["ann", "bob"]
        assert ann.until("user-left")["userId"] == "bob"
        told = [m["type"] for m in [*ann.passed, *ann.so_far()] if m["type"].startswith("user-")]
        assert told == ["user-joined"]


def test_a_user_with_three_tabs(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann, ExitStack() as stack:
        ann.join(room)
        tabs = [stack.enter_context(opened(shared, user="bob")) for _ in range(3)]
        for tab in tabs:
            assert tab.join(room)["members"] == ["ann", "bob"]
        tabs[0].ask("message", content="to all tabs")
        for tab in tabs[1:]:
            assert tab.until("message")["content"] == "to all tabs"
        tabs[0].ask("leave", room=room)
        tabs[1].wire.close()
        assert tabs[2].join(room)["members"] == ["ann", "bob"]
        tabs[2].ask("leave", room=room)
        ann.until("user-left")
        told = [m["type"] for m in [*ann.passed, *ann.so_far()] if m["type"].startswith("user-")]
        assert told == ["user-joined"]


def test_rooms_end_with_nobody_in_them(shared: HubProcess, room: str) -> None:
    for _ in range(2):
        with opened(shared, user="ann") as ann:
            assert ann.join(room)["members"] == ["ann"]
            ann.ask("leave", room=room)


# Many at once.


def test_twenty_who_send_at_once_all_hear_the_same(shared: HubProcess, room: str) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(opened(shared, user=f"u{n}")) for n in range(20)]
        for peer in peers:
            peer.join(room)
        sent = {f"{room}-{n}-{k}" for n in range(20) for k in range(10)}

        def talk(n: int, peer: Peer) -> None:
            for k in range(10):
                peer.say("message", content=f"{n} {k}", messageId=f"{room}-{n}-{k}", id=k)

        talkers = [threading.Thread(target=talk, args=each) for each in enumerate(peers)]
        for talker in talkers:
            talker.start()
        heard = [peer.several(len(sent), "message") for peer in peers]
        for talker in talkers:
            talker.join()
        assert {m["messageId"] for m in heard[0]} == sent
        lsns = [m["lsn"] for m in heard[0]]
        assert lsns == sorted(set(lsns))
        assert all(each == heard[0] for each in heard)
        for n in range(20):
            mine = [m["content"] for m in heard[0] if m["userId"] == f"u{n}"]
            assert mine == [f"{n} {k}" for k in range(10)], "a sender's own order"
        assert len(rows(shared, room)) == len(sent)


# Limits.


def test_a_hundred_at_once_and_then_a_refusal(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann:
        ann.join(room)
        for n in range(160):
            ann.say("broadcast", data=n, id=n)
        refused = [m for m in ann.so_far() if m["type"] == "error"]
        assert {m["code"] for m in refused} == {"too_many_requests"}
        assert 0 < len(refused) <= 60
        assert all(m["retryAfterMs"] > 0 for m in refused)
        assert min(m["id"] for m in refused) >= 100


def test_what_is_refused_for_its_number_is_not_stored(shared: HubProcess, room: str) -> None:
    with opened(shared, user="ann") as ann:
        ann.join(room)
        for n in range(140):
            ann.say("message", content="x", messageId=f"{room}-{n}", id=n)
        answers = {}
        while len(answers) < 140:
            message = ann.next()
            if message["type"] in ("ack", "error"):
                answers[message["id"]] = message
        stored = {id for id, *_ in rows(shared, room)}
        assert stored == {a["messageId"] for a in answers.values() if a["type"] == "ack"}
        refused = [a for a in answers.values() if a["type"] == "error"]
        assert refused
        assert {a["code"] for a in refused} == {"too_many_requests"}
        assert all(a["messageId"] == f"{room}-{a['id']}" for a in refused)


def test_a_flood_of_requests_is_closed(shared: HubProcess) -> None:
    with opened(shared) as peer:
        data = json.dumps({"type": "ping"}).encode()
        for _ in range(1_000):
            peer.send(1, data)
        assert peer.close_code() == 1008
        assert 500 <= len([m for m in peer.passed if m["type"] == "pong"]) < 1_000


def test_serve_rooms_creates_the_table(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)")
    for _ in range(2):
        with HubProcess(database, "--rooms") as hub, opened(hub) as peer:
            peer.join("lobby")
            assert peer.ask("message", content="x")["type"] == "ack"
            assert {"table": "messages", "room": "room"}.items() <= {
                t["table"]: t for t in hub.get("/cdc/tables").json()
            }["messages"].items()
            assert hub.stop() == 0
    assert cdchub("verify", database).returncode == 0
