"""INTERFACE §5 over real connections: the opening, subscriptions and errors, both ways of the bytes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness import HubProcess, Stream, make_database, quote, run_sql, wait_for
from tests.ws_client import SUBPROTOCOL, TEXT, Message, Peer, error_of, opened

Serving = Callable[..., HubProcess]


@pytest.fixture(scope="module")
def shared(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("ws") / "app.db",
        "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT, completed INTEGER DEFAULT 0)",
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, room TEXT, body)",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
        "INSERT INTO notes VALUES (10, 'a', 'x'), (9, 'b', 'y')",
        "INSERT INTO todos VALUES ('b', 'B', 0), ('a', 'A', 0)",
    )
    with serving(database, "--heartbeat", "0.3") as hub:
        run_sql(database, "INSERT INTO todos(id) VALUES ('t')", "DELETE FROM todos WHERE id = 't'")
        hub.wait_for_lsn(2)
        yield hub


@pytest.fixture
def peer(shared: HubProcess) -> Iterator[Peer]:
    with opened(shared) as found:
        yield found


def write(hub: HubProcess, *statements: str) -> None:
    run_sql(hub.database, *statements)


def types(messages: list[Message]) -> list[str]:
    return [m["type"] for m in messages if m["type"] != "heartbeat"]


# The opening.


@pytest.mark.parametrize("path", ["/cdc/ws", "/api/cdc/ws"])
def test_connected(shared: HubProcess, path: str) -> None:
    with Peer(shared, path=path) as peer:
        hello = peer.next()
        assert hello["type"] == "connected"
        assert hello["epoch"] == shared.status()["epoch"]
        assert hello["heartbeat"] == 0.3
        assert re.fullmatch(r"guest-\w+", hello["userId"])
        assert set(hello) == {"type", "clientId", "userId", "epoch", "heartbeat"}
    with Peer(shared, path=path) as other:
        again = other.next()
        assert again["clientId"] != hello["clientId"]
        assert again["userId"] != hello["userId"]


@pytest.mark.parametrize("user", ["ann", "é" * 64, "😀 a&b=c", "x" * 64])
def test_the_user_of_the_url(shared: HubProcess, user: str) -> None:
    with Peer(shared, user=user) as peer:
        assert peer.next()["userId"] == user


@pytest.mark.parametrize("user", ["", "x" * 65])
def test_a_user_that_is_none_is_refused(shared: HubProcess, user: str) -> None:
    with pytest.raises(AssertionError, match=r"HTTP/1\.1 400 ") as refused:
        Peer(shared, user=user)
    assert "problem+json" in str(refused.value)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        ("other.v1", None),
        (SUBPROTOCOL, SUBPROTOCOL),
        (f"other.v1, {SUBPROTOCOL}, third", SUBPROTOCOL),
    ],
)
def test_the_subprotocol(shared: HubProcess, offered: str | None, chosen: str | None) -> None:
    headers = () if offered is None else (f"Sec-WebSocket-Protocol: {offered}",)
    with opened(shared, *headers) as peer:
        assert peer.header("sec-websocket-protocol") == chosen
        assert peer.ask("ping")["type"] == "pong"


def test_no_extension_is_taken_up_that_frames_could_not_share(shared: HubProcess) -> None:
    with opened(shared, "Sec-WebSocket-Extensions: x-unheard-of") as peer:
        assert peer.header("sec-websocket-extensions") is None


# Subscribing.


def test_a_subscription_begins_now(shared: HubProcess, peer: Peer) -> None:
    head = shared.head()
    answer = peer.ask("subscribe", sub="s1", table="todos")
    del answer["id"]
    assert answer == {"type": "subscribed", "sub": "s1", "position": head}
    assert peer.until("caught-up") == {"type": "caught-up", "sub": "s1", "position": head}
    write(shared, "UPDATE todos SET title = 'C' WHERE id = 'a'")
    with shared.stream(f"table=todos&since={quote(head)}") as stream:
        assert peer.changes(1, "s1") == stream.changes(1)
    write(shared, "UPDATE todos SET title = 'A' WHERE id = 'a'")
    peer.changes(1)


REQUESTS: list[dict[str, Any]] = [
    {"table": "todos"},
    {"table": ["todos", "notes"]},
    {"table": "todos,notes"},
    {"table": "*"},
    {"table": ["*"]},
    {"table": "notes", "room": "a"},
    {"table": "*", "room": "b"},
    {"table": "todos", "filter": "completed=eq.0"},
    {"table": "todos", "filter": ["completed=eq.0", "title=like.A*"]},
    {"table": "todos", "columns": ["title"]},
    {"table": "todos", "columns": "title,completed"},
    {"table": "todos", "format": "debezium"},
    {"table": "todos", "format": "cloudevents"},
    {"table": "todos", "conflate": True},
]


def query_of(request: dict[str, Any]) -> str:
    return "&".join(
        f"{name}={quote(str(int(value) if isinstance(value, bool) else value))}"
        for name, values in request.items()
        for value in (values if isinstance(values, list) else [values])
    )


def told(stream: Stream) -> list[tuple[str, Any]]:
    """What a stream says up to `caught-up`, as the messages of a subscription would."""
    events = stream.until("caught-up")
    return [(e.name, json.loads(e.data)) for e in events]


def heard(peer: Peer, sub: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for message in peer.upto("caught-up", sub=sub):
        kind = message.pop("type")
        if kind in ("heartbeat", "snapshot-end", "subscribed"):
            continue
        assert message.pop("sub") == sub
        found.append(("message", message["change"]) if kind == "change" else (kind, message))
    return found


@pytest.mark.parametrize("begin", ["beginning", "0", "snapshot", "older"])
@pytest.mark.parametrize("request_", REQUESTS, ids=query_of)
def test_a_subscription_says_what_the_stream_says(
    shared: HubProcess, peer: Peer, request_: dict[str, Any], begin: str
) -> None:
    epoch = shared.status()["epoch"]
    since: dict[str, Any] = {
        "beginning": {"since": "beginning"},
        "0": {"since": 0},
        "snapshot": {"snapshot": True},
        "older": {"since": f"{epoch}:1"},
    }[begin]
    wait_for(lambda: shared.status()["log"]["baseLsn"] is not None, "the base snapshot")
    peer.say("subscribe", sub="s", **request_, **since)
    with shared.stream(query_of(request_ | since)) as stream:
        assert heard(peer, "s") == told(stream)


def test_a_snapshot_is_framed(shared: HubProcess, peer: Peer) -> None:
    head = shared.head()
    answer = peer.ask("subscribe", sub="s", table="todos,notes", snapshot=True)
    assert answer["position"] is None
    messages = [m for m in peer.upto("caught-up") if m["type"] != "heartbeat"]
    first, *changes, end, caught_up = messages
    assert first == {"type": "snapshot", "sub": "s", "position": head, "tables": first["tables"]}
    assert sorted(first["tables"]) == ["notes", "todos"]
    assert end == {"type": "snapshot-end", "sub": "s", "position": head}
    assert caught_up == {"type": "caught-up", "sub": "s", "position": head}
    rows = [(c["change"]["table"], c["change"]["newValue"]["id"]) for c in changes]
    assert sorted(rows, key=str) == sorted(
        [("todos", "a"), ("todos", "b"), ("notes", 9), ("notes", 10)], key=str
    )
    assert {c["change"]["type"] for c in changes} == {"SNAPSHOT"}


def test_a_snapshot_is_not_needed_where_since_can_be_served(shared: HubProcess, peer: Peer) -> None:
    head = shared.head()
    answer = peer.ask("subscribe", sub="s", table="todos", since=head, snapshot=True)
    assert answer["position"] == head
    assert types(peer.upto("caught-up")) == ["caught-up"]


def test_several_subscriptions_of_one_connection(shared: HubProcess, peer: Peer) -> None:
    for sub, table in (("s1", "todos"), ("s2", "notes"), ("s3", "*"), ("s4", "quiet")):
        assert peer.ask("subscribe", sub=sub, table=table)["type"] == "subscribed"
    write(shared, "UPDATE todos SET completed = 1", "UPDATE notes SET body = 'z' WHERE id = 9")
    found: dict[str, list[int]] = {}
    while len(found.get("s3", [])) < 3 or len(found.get("s1", [])) < 2 or "s2" not in found:
        message = peer.until("change")
        found.setdefault(message["sub"], []).append(message["change"]["lsn"])
    last = found["s3"][-1]
    assert found == {"s1": [last - 2, last - 1], "s2": [last], "s3": [last - 2, last - 1, last]}
    assert all(m["type"] != "change" for m in peer.so_far())


def test_unsubscribe(shared: HubProcess, peer: Peer) -> None:
    peer.ask("subscribe", sub="s1", table="todos")
    peer.ask("subscribe", sub="s2", table="todos")
    answer = peer.ask("unsubscribe", sub="s1")
    del answer["id"]
    assert answer == {"type": "unsubscribed", "sub": "s1"}
    write(shared, "UPDATE todos SET title = title")
    messages = [peer.until("change"), peer.until("change"), *peer.so_far()]
    assert {m.get("sub") for m in messages} <= {"s2", None}
    assert error_of(peer.ask("unsubscribe", sub="s1")) == "unknown_sub"
    peer.ask("subscribe", sub="s1", table="quiet")
    assert peer.until("caught-up", sub="s1")


def test_a_name_is_taken_once(shared: HubProcess, peer: Peer) -> None:
    peer.ask("subscribe", sub="s", table="todos")
    answer = peer.ask("subscribe", sub="s", table="notes")
    assert (error_of(answer), answer["sub"]) == ("duplicate_sub", "s")
    write(shared, "UPDATE notes SET body = body", "UPDATE todos SET title = title WHERE id = 'a'")
    assert peer.changes(1, "s")[0]["table"] == "todos"


@pytest.mark.parametrize("burst", range(3))
def test_random_writes_and_resumes_lose_and_repeat_nothing(shared: HubProcess, burst: int) -> None:
    """Connections are cut at any place, and go on from the highest position that they were told."""
    rng = random.Random(burst)
    first = shared.head()
    position, got = first, list[dict[str, Any]]()
    for _ in range(6):
        with opened(shared) as peer:
            peer.say("subscribe", sub="s", table="todos,notes", since=position)
            write(shared, *(rng.choice(WRITES).format(n=rng.randrange(20)) for _ in range(30)))
            for _ in range(rng.randrange(60)):
                message = peer.next()
                if message["type"] == "change":
                    got.append(message["change"])
                    position = f"{position.split(':')[0]}:{message['change']['lsn']}"
                elif message.get("position"):
                    position = message["position"]
            if rng.random() < 0.5:
                peer.wire.reset()
    mark = {"id": f"mark {burst}"}
    write(shared, f"INSERT INTO todos(id) VALUES ('{mark['id']}')")
    with opened(shared) as peer, shared.stream(f"table=todos,notes&since={quote(first)}") as stream:
        peer.say("subscribe", sub="s", table="todos,notes", since=position)
        while not got or got[-1]["key"] != mark:
            got += peer.changes(1)
        whole = stream.changes(1)
        while whole[-1]["key"] != mark:
            whole += stream.changes(1)
    assert [c["lsn"] for c in got] == [c["lsn"] for c in whole]
    assert got == whole


WRITES = [
    "INSERT OR REPLACE INTO todos VALUES ('r{n}', 't', {n} % 2)",
    "UPDATE todos SET completed = 1 - completed WHERE id = 'r{n}'",
    "INSERT OR REPLACE INTO notes VALUES (100 + {n}, 'a', {n})",
    "UPDATE notes SET room = CASE room WHEN 'a' THEN 'b' ELSE 'a' END WHERE id = 100 + {n}",
    "INSERT OR REPLACE INTO notes VALUES (100 + {n}, 'c', NULL)",
    "INSERT OR REPLACE INTO todos VALUES ('r{n}', 'T', 0)",
]


# Heartbeats.


def test_a_quiet_connection_hears_of_the_hub(shared: HubProcess, peer: Peer) -> None:
    assert peer.until("heartbeat")
    assert peer.until("heartbeat")


def test_a_quiet_subscription_is_told_its_position(shared: HubProcess, peer: Peer) -> None:
    peer.ask("subscribe", sub="s", table="quiet")
    write(shared, "UPDATE todos SET title = title")
    written = shared.status()["headLsn"]
    head = peer.find("heartbeat", sub="s")["position"]
    while int(head.split(":")[1]) < written:
        head = peer.find("heartbeat", sub="s")["position"]
    assert not [m for m in peer.passed if m["type"] == "change"]
    with opened(shared) as again:
        answer = again.ask("subscribe", sub="s", table="quiet", since=head)
        assert answer["position"] == head


# Errors, after each of which the connection lives on.

LASTING: list[tuple[dict[str, Any], str]] = [
    ({}, "missing_table"),
    ({"table": ""}, "missing_table"),
    ({"table": "nope"}, "unknown_table"),
    ({"table": "todos", "columns": ["nope"]}, "unknown_column"),
    ({"table": "todos", "filter": "nope=eq.1"}, "unknown_column"),
    ({"table": "todos", "filter": "completed=oops.1"}, "bad_filter"),
    ({"table": "todos", "filter": ""}, "bad_filter"),
    ({"table": "todos", "since": "x"}, "bad_position"),
    ({"table": "todos", "since": -1}, "bad_position"),
    ({"table": "todos", "since": "a b:1"}, "bad_position"),
    ({"table": "todos", "since": 2**70}, "bad_position"),
    ({"table": "todos", "since": "9" * 4_000}, "bad_position"),
    ({"table": "todos", "room": "a"}, "no_room_column"),
    ({"table": "todos", "format": "xml"}, "validation_failed"),
    ({"table": "todos", "snapshot": 2}, "validation_failed"),
    ({"table": "todos", "conflate": -1}, "validation_failed"),
    ({"table": 7}, "bad_message"),
]


@pytest.mark.parametrize(("request_", "code"), LASTING, ids=lambda x: str(x)[:50])
def test_a_request_that_cannot_be_served(peer: Peer, request_: dict[str, Any], code: str) -> None:
    answer = peer.ask("subscribe", sub="s", **request_)
    assert (error_of(answer), answer["sub"]) == (code, "s")
    assert 0 < len(answer["message"]) < 500
    assert peer.ask("subscribe", sub="s", table="quiet")["type"] == "subscribed"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "null",
        '{"type":"ping"',
        '{"type":"nope"}',
        '{"type":"nope","id":1e400}',
        '{"type":"nope","id":"\\ud800"}',
        '{"type":"ping","x":' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"type":"ping","x":"' + "\\u0000" * 10_000 + '"',
    ],
    ids=lambda t: repr(t[:30]),
)
def test_what_is_malformed_is_answered_with_an_error(peer: Peer, text: str) -> None:
    peer.send(TEXT, text.encode())
    answer = peer.until("error")
    assert answer["code"] == "bad_message"
    assert answer["message"]
    assert peer.ask("ping")["type"] == "pong"


@pytest.mark.parametrize("id", [0, -1, 2**53, 2**64, 2**70, -(2**70), "", "x" * 10_000, "é😀\u0000"])
def test_ids_are_echoed(peer: Peer, id: int | str) -> None:
    peer.say("ping", id=id)
    assert peer.until("pong") == {"type": "pong", "id": id}
    peer.say("unsubscribe", sub="nope", id=id)
    assert peer.until("error")["id"] == id


def test_an_id_that_is_none_is_not_echoed(peer: Peer) -> None:
    peer.say("ping")
    assert peer.until("pong") == {"type": "pong"}
    peer.say("ping", id=None)
    assert "id" not in peer.until("pong")


def test_a_connection_has_so_many_subscriptions(shared: HubProcess, peer: Peer) -> None:
    for n in range(100):
        assert peer.ask("subscribe", sub=f"s{n}", table="quiet")["type"] == "subscribed"
    answer = peer.ask("subscribe", sub="more", table="quiet")
    assert (error_of(answer), answer["sub"]) == ("too_many_requests", "more")
    peer.ask("unsubscribe", sub="s7")
    assert peer.ask("subscribe", sub="more", table="quiet")["type"] == "subscribed"
