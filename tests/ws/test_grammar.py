"""What a client may say, by table and at random: understood, or refused in words with its address."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdchub.ws.grammar import (
    BROADCAST_BYTES_MAX,
    CONTENT_CHARS_MAX,
    MESSAGE_ID_CHARS_MAX,
    ROOM_CHARS_MAX,
    SUB_CHARS_MAX,
    Addressed,
    BadMessage,
    Broadcast,
    History,
    Join,
    Leave,
    Ping,
    SendMessage,
    Subscribe,
    Unsubscribe,
    address_of,
    addressed,
    parse,
)

UNDERSTOOD = [
    ({"type": "subscribe", "sub": "s"}, Subscribe(sub="s")),
    ({"type": "subscribe", "sub": "s", "table": "a,b"}, Subscribe(sub="s", table="a,b")),
    ({"type": "subscribe", "sub": "s", "table": ["a", "b"]}, Subscribe(sub="s", table=["a", "b"])),
    ({"type": "subscribe", "sub": "s", "since": "Epoch1:7"}, Subscribe(sub="s", since="Epoch1:7")),
    ({"type": "subscribe", "sub": "s", "since": 7}, Subscribe(sub="s", since=7)),
    ({"type": "subscribe", "sub": "s", "snapshot": 1}, Subscribe(sub="s", snapshot=1)),
    ({"type": "subscribe", "sub": "s", "snapshot": True}, Subscribe(sub="s", snapshot=True)),
    ({"type": "subscribe", "sub": "é" * SUB_CHARS_MAX}, Subscribe(sub="é" * SUB_CHARS_MAX)),
    ({"type": "unsubscribe", "sub": "s", "id": "x"}, Unsubscribe(sub="s", id="x")),
    ({"type": "join", "room": "r"}, Join(room="r")),
    ({"type": "join", "room": "😀" * ROOM_CHARS_MAX}, Join(room="😀" * ROOM_CHARS_MAX)),
    ({"type": "join", "room": "r", "history": 10**9}, Join(room="r", history=10**9)),
    ({"type": "message", "content": "hi"}, SendMessage(content="hi")),
    ({"type": "message", "content": "a\u0000\n"}, SendMessage(content="a\u0000\n")),
    (
        {"type": "message", "content": "hi", "room": "r", "messageId": "m", "id": 1},
        SendMessage(content="hi", room="r", message_id="m", id=1),
    ),
    ({"type": "history", "room": "r"}, History(room="r", limit=50)),
    ({"type": "history", "before": 0, "beforeId": "m"}, History(before=0, before_id="m")),
    ({"type": "leave", "room": None}, Leave()),
    ({"type": "ping", "id": 2**63}, Ping(id=2**63)),
    ({"type": "ping", "unheard": {"of": []}}, Ping()),
]

REFUSED: list[Any] = [
    None,
    7,
    "ping",
    [],
    {},
    {"type": None},
    {"type": ["ping"]},
    {"type": {"ping": 1}},
    {"type": "PING"},
    {"type": ""},
    {"type": "x" * 100_000},
    {"Type": "ping"},
    {"type": "ping", "id": 1.5},
    {"type": "ping", "id": True},
    {"type": "ping", "id": {}},
    {"type": "subscribe"},
    {"type": "subscribe", "sub": ""},
    {"type": "subscribe", "sub": "é" * (SUB_CHARS_MAX + 1)},
    {"type": "subscribe", "sub": 1},
    {"type": "subscribe", "sub": "s", "table": [1]},
    {"type": "subscribe", "sub": "s", "table": {"a": 1}},
    {"type": "subscribe", "sub": "s", "since": True},
    {"type": "subscribe", "sub": "s", "since": 1.5},
    {"type": "subscribe", "sub": "s", "snapshot": "1"},
    {"type": "subscribe", "sub": "s", "filter": [["a"]]},
    {"type": "subscribe", "sub": "s", "columns": 1},
    {"type": "subscribe", "sub": "s", "format": 1},
    {"type": "unsubscribe"},
    {"type": "join"},
    {"type": "join", "room": ""},
    {"type": "join", "room": 1},
    {"type": "join", "room": "x" * (ROOM_CHARS_MAX + 1)},
    {"type": "join", "room": "r", "history": -1},
    {"type": "join", "room": "r", "history": "50"},
    {"type": "message"},
    {"type": "message", "content": ""},
    {"type": "message", "content": None},
    {"type": "message", "content": "x" * (CONTENT_CHARS_MAX + 1)},
    {"type": "message", "content": "x", "messageId": ""},
    {"type": "message", "content": "x", "messageId": "m" * (MESSAGE_ID_CHARS_MAX + 1)},
    {"type": "message", "content": "x", "room": ""},
    {"type": "history", "limit": -1},
    {"type": "history", "before": "7"},
    {"type": "history", "before": -1},
    {"type": "broadcast"},
    {"type": "broadcast", "data": "x" * BROADCAST_BYTES_MAX},
    {"type": "leave", "room": []},
]

NOT_JSON = [
    b"",
    b" ",
    b"{",
    b'{"type":"ping"',
    b'{"type":"ping"}}',
    b'{"type":"ping"}{"type":"ping"}',
    b"{'type':'ping'}",
    b"\xef\xbb\xbf" + b'{"type":"ping"}',
    b'{"type":"ping","id":01}',
    b'{"type":"ping","id":NaN}',
    b'{"type":"ping","x":' + b"[" * 100_000,
    b'{"type":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    b'{"type":"nope","id":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    b'{"type":"ping","id":1e400}',
    b'{"type":"nope","id":1e400}',
    b'{"type":"nope","id":-1e999}',
    b'{"type":"nope","sub":1e400,"room":1e400}',
    b'{"type":"nope","id":"\\ud800"}',
    b'{"type":"nope","id":"\\x"}',
    b'{"type":"join","room":"\\ud83d"}',
]


@pytest.mark.parametrize(("document", "request_"), UNDERSTOOD)
def test_what_is_understood(document: dict[str, Any], request_: object) -> None:
    assert parse(json.dumps(document).encode()) == request_
    assert parse(json.dumps(document, ensure_ascii=False).encode()) == request_


@pytest.mark.parametrize("document", REFUSED, ids=lambda d: str(d)[:60])
def test_what_is_refused(document: object) -> None:
    with pytest.raises(BadMessage) as refused:
        parse(json.dumps(document).encode())
    assert 0 < len(str(refused.value)) < 500
    addressed(json.dumps(document).encode())


@pytest.mark.parametrize("text", NOT_JSON, ids=lambda t: repr(t[:40]))
def test_what_is_not_json(text: bytes) -> None:
    """Whatever it is: refused, and its address is looked for without a fault."""
    with pytest.raises(BadMessage):
        parse(text)
    told = addressed(text)
    # It has to fit into an answer.
    msgspec.json.encode(told)


def test_a_broadcast_is_one_line() -> None:
    """Its bytes go on to the others, some of them line by line."""
    data = b'{"a" :\r\n[1,\r"x\\n  y"\n,\t1e400]}'
    said = parse(b'{"type":"broadcast","room":"r","data":' + data + b"}")
    assert isinstance(said, Broadcast)
    assert bytes(said.data) == b'{"a":[1,"x\\n  y",1e400]}'


def test_a_broadcast_may_carry_any_json() -> None:
    for data in (
        "null",
        "1",
        '"x"',
        "[1,2]",
        '{"a":{"b":[]}}',
        '"' + "x" * (BROADCAST_BYTES_MAX - 2) + '"',
    ):
        said = parse(b'{"type":"broadcast","room":"r","data":' + data.encode() + b"}")
        assert isinstance(said, Broadcast)
        assert bytes(said.data) == data.encode()


@pytest.mark.parametrize("type", ["nope", "join"])
def test_the_address_of_a_refused_message(type: str) -> None:
    text = json.dumps({"type": type, "id": 7, "sub": "s", "room": "r" * 200, "messageId": "m"}).encode()
    assert addressed(text) == Addressed(id=7, sub="s", room="r" * 200, message_id="m")
    text = json.dumps({"type": type, "id": [7], "sub": 1, "room": None, "messageId": {}}).encode()
    assert addressed(text) == Addressed()


def test_the_address_of_a_request() -> None:
    assert address_of(SendMessage(content="x", id="i", room="r", message_id="m")) == Addressed(
        id="i", room="r", message_id="m"
    )
    assert address_of(Subscribe(sub="s", id=1)) == Addressed(id=1, sub="s")


json_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
json_values = json_scalars | st.lists(json_scalars, max_size=2)
KINDS = ["subscribe", "unsubscribe", "join", "message", "history", "broadcast", "leave", "ping", "nope"]
MEMBERS = ["id", "sub", "table", "since", "snapshot", "room", "filter", "columns", "conflate", "format"]
MEMBERS += ["history", "content", "messageId", "before", "beforeId", "limit", "data", "other"]


members_ = st.dictionaries(st.sampled_from(MEMBERS), json_values, max_size=4)


def never_a_fault(text: bytes) -> None:
    # A connection takes no text that is not UTF-8 (RFC 6455 §8.1), so the grammar never sees any.
    text = text.decode(errors="replace").encode()
    with contextlib.suppress(BadMessage):
        msgspec.json.encode(address_of(parse(text)))
    msgspec.json.encode(addressed(text))


@given(st.sampled_from(KINDS), members_)
def test_any_members_are_understood_or_refused(kind: str, members: dict[str, Any]) -> None:
    never_a_fault(json.dumps({"type": kind, **members}).encode())


@given(st.text(max_size=200))
def test_any_text_is_understood_or_refused(text: str) -> None:
    never_a_fault(text.encode(errors="replace"))


@given(st.sampled_from(KINDS), members_, st.data())
def test_a_damaged_message_is_understood_or_refused(
    kind: str, members: dict[str, Any], data: st.DataObject
) -> None:
    text = bytearray(json.dumps({"type": kind, **members}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not text:
            break
    never_a_fault(bytes(text))
