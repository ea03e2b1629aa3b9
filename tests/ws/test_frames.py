"""What the hub says, as bytes: frames, notices and chat messages."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from cdchub.position import Epoch, Position
from cdchub.ws.direct import whole_frames
from cdchub.ws.frames import Framers, encoded, line, text_frame
from tests.ws_client import frame

AT = Position(Epoch("Epoch001"), 7)


def heard(data: bytes) -> Iterator[Frame]:
    """The frames in these bytes, as a library reads them that a client could be using."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=OPEN, max_size=None)
    client.receive_data(data)
    for event in client.events_received():
        assert isinstance(event, Frame)
        yield event
    assert client.parser_exc is None


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 10**6])
def test_a_text_frame(size: int) -> None:
    (found,) = heard(text_frame(b"x" * size))
    assert found == Frame(1, b"x" * size, fin=True)


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_frames_follow_one_another(payloads: list[bytes]) -> None:
    assert [f.data for f in heard(b"".join(map(text_frame, payloads)))] == payloads


def test_a_line_holds_one_message() -> None:
    said = encoded("message", content="a\nb\r\u2028\u0085\x0c", lsn=1)
    assert line(said).splitlines() == [said]


def test_what_is_none_is_left_out_but_for_a_position() -> None:
    assert json.loads(encoded("x", a=None, b=0, c="", d=[])) == {"type": "x", "b": 0, "c": "", "d": []}
    assert json.loads(encoded("x", position=None)) == {"type": "x", "position": None}


NAMES = ["s", "é😀", 'a"\\\n', "x" * 32, "\u0000"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_notice_of_a_subscription_has_its_name(name: str) -> None:
    framer = Framers(text_frame).subscription(name)
    said = [
        framer.heartbeat(AT),
        framer.transaction_end(AT),
        framer.caught_up(AT),
        framer.snapshot_begin(AT, ["t"]),
        framer.snapshot_rows(b'{"a":1}\n{"a":2}\n'),
        framer.snapshot_end(AT),
        framer.reset(reason="epoch", tables=["t"], position=AT, oldest=AT, resumable=True),
        framer.closing(AT, retry_ms=5),
        framer.closing(None, retry_ms=5),
        framer.fault(code="internal", message="m", retry_ms=5),
    ]
    messages = [json.loads(f.data) for f in heard(b"".join(said))]
    assert [m["type"] for m in messages] == [
        "heartbeat",
        "heartbeat",
        "caught-up",
        "snapshot",
        "change",
        "change",
        "snapshot-end",
        "reset",
        "unsubscribed",
        "unsubscribed",
        "error",
        "unsubscribed",
    ]
    assert {m["sub"] for m in messages} == {name}
    assert [m["change"] for m in messages if m["type"] == "change"] == [{"a": 1}, {"a": 2}]
    assert framer.heartbeat(None) == framer.opening(AT, retry_ms=5) == b""


def test_framers_of_one_name_are_one() -> None:
    framers, others = Framers(text_frame), Framers(line)
    one = framers.subscription("s")
    assert framers.subscription("s") is one
    assert framers.subscription("t") is not one
    assert others.subscription("s") is not one
    assert framers.room("s") is framers.room("s")


ROW = '{"id":"m","room":"r","user_id":"u","content":"c","created_at":1700000000123}'


def told(type: str, old: str, new: str) -> dict[str, object]:
    change = (
        f'{{"lsn":7,"type":"{type}","table":"messages","key":{{}},"oldValue":{old},"newValue":{new}}}'
    )
    (found,) = heard(Framers(text_frame).room("r").changes_without_position([change.encode()]))
    message: dict[str, object] = json.loads(found.data)
    return message


def test_the_changes_of_a_room() -> None:
    message = {
        "type": "message",
        "room": "r",
        "userId": "u",
        "content": "c",
        "timestamp": "2023-11-14T22:13:20.123Z",
        "lsn": 7,
        "messageId": "m",
    }
    assert told("INSERT", "null", ROW) == message
    assert told("UPDATE", ROW, ROW) == {**message, "type": "message-updated"}
    deleted = {"type": "message-deleted", "room": "r", "messageId": "m", "lsn": 7}
    assert told("DELETE", ROW, "null") == deleted


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        ("0", "1970-01-01T00:00:00.000Z"),
        ("253402300799999", "9999-12-31T23:59:59.999Z"),
        ("253402300800000", None),
        ("-1", None),
        ("null", None),
        ('"soon"', None),
        ("1.5", None),
        ('{"$int":"9223372036854775807"}', None),
    ],
)
def test_any_time_will_do(at: str, shown: str | None) -> None:
    row = ROW.replace("1700000000123", at)
    assert told("INSERT", "null", row).get("timestamp") == shown


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=6), st.data())
def test_whole_frames_are_those_that_are_there(payloads: list[bytes], draw: st.DataObject) -> None:
    frames = [frame(1, payload) for payload in payloads]
    data = b"".join(frames)
    cut = draw.draw(st.integers(0, len(data)))
    whole = 0
    for each in frames:
        if whole + len(each) > cut:
            break
        whole += len(each)
    assert whole_frames(data[:cut], frame_bytes_max=10_000) == whole


@given(st.binary(max_size=100))
def test_any_bytes_have_whole_frames(data: bytes) -> None:
    """What it leaves for later is the beginning of one frame, so it does not grow without bound."""
    assert 0 <= whole_frames(data, frame_bytes_max=50) <= len(data)
    assert len(data) - whole_frames(data, frame_bytes_max=50) < 2 + 8 + 4 + 50


@pytest.mark.parametrize("refused", [b"\x81\xff" + (10**9).to_bytes(8, "big"), b"\x81\x05"])
def test_a_frame_that_is_refused_is_passed_on_at_once(refused: bytes) -> None:
    """It is too long, or it is not masked."""
    data = frame(1, b"abc") + refused
    assert whole_frames(data, frame_bytes_max=10_000) == len(data)
