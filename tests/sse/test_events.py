"""Framing and parsing of event streams: what is framed is read back, cut anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdchub.position import Epoch, Lsn, Position
from cdchub.sse import Event, EventParser, SseFramer
from cdchub.sse.events import refusal
from cdchub.sse.parser import LINE_BYTES_MAX, StreamTooWide

HERE = Position(Epoch("epoch1"), Lsn(7))
FRAMER = SseFramer()


def read(data: bytes, last_id: str = "") -> tuple[list[Event], str]:
    parser = EventParser(last_id)
    return parser.feed(data), parser.last_id


def test_a_change_is_one_default_event_with_its_position() -> None:
    assert FRAMER.changes(HERE.epoch, [(7, b'{"a":1}')]) == [b'id: epoch1:7\ndata: {"a":1}\n\n']


def test_the_opening_has_a_position_and_fires_nothing() -> None:
    data = FRAMER.opening(HERE, retry_ms=4000)
    assert data.startswith(b": connected\nretry: 4000\n")
    assert read(data) == ([], "epoch1:7")
    assert read(FRAMER.opening(None, retry_ms=4000)) == ([], "")


def test_a_heartbeat_moves_the_id_and_fires_nothing() -> None:
    assert FRAMER.heartbeat(HERE) == b": ping\nid: epoch1:7\n\n"
    assert read(FRAMER.heartbeat(HERE)) == ([], "epoch1:7")
    assert read(FRAMER.heartbeat(None), "epoch1:3") == ([], "epoch1:3")


def test_a_heartbeat_may_be_an_event_for_who_wants_to_hear_it() -> None:
    framer = SseFramer(heartbeat_s=15)
    (event,), last_id = read(framer.heartbeat(HERE), "epoch1:3")
    assert (event.name, json.loads(event.data)) == (
        "heartbeat",
        {"position": "epoch1:7", "heartbeat": 15},
    )
    assert last_id == "epoch1:7"
    (event,), last_id = read(framer.heartbeat(None), "epoch1:3")
    assert (json.loads(event.data)["position"], last_id) == (None, "epoch1:3")
    # The first one says at once when the next is due.
    events, last_id = read(framer.opening(HERE, retry_ms=4000))
    assert [event.name for event in events] == ["heartbeat"]
    assert last_id == "epoch1:7"


def test_a_snapshot_has_no_position_until_its_last_row() -> None:
    begin = FRAMER.snapshot_begin(HERE, ["t"])
    rows = FRAMER.snapshot_rows(b'{"n":1}\n{"n":2}\n')
    events, last_id = read(begin + rows, "epoch1:3")
    assert [event.name for event in events] == ["snapshot", "message", "message"]
    assert last_id == "", "whoever is cut here must start the snapshot again"
    assert json.loads(events[0].data) == {"position": "epoch1:7", "tables": ["t"]}
    assert read(begin + rows + FRAMER.snapshot_end(HERE))[1] == "epoch1:7"


def test_the_end_of_a_transaction_is_an_event_with_its_position() -> None:
    (event,), last_id = read(FRAMER.transaction_end(HERE), "epoch1:3")
    assert (event.name, json.loads(event.data)) == ("transaction-end", {"position": "epoch1:7"})
    assert last_id == "epoch1:7"


@pytest.mark.parametrize(("resumable", "last_id"), [(True, "epoch1:7"), (False, "")])
def test_a_reset_names_its_position(resumable: bool, last_id: str) -> None:
    data = FRAMER.reset(reason="expired", tables=["t"], position=HERE, oldest=HERE, resumable=resumable)
    (event,), after = read(data, "epoch1:3")
    assert (event.name, after) == ("reset", last_id)
    assert json.loads(event.data) == {
        "reason": "expired",
        "tables": ["t"],
        "position": "epoch1:7",
        "oldest": "epoch1:7",
    }


def test_endings_say_when_to_come_back() -> None:
    for data in (
        FRAMER.closing(HERE, retry_ms=1234),
        FRAMER.fault(code="internal", message="m", retry_ms=1234),
        refusal(code="overloaded", message="m", retry_after_ms=1234),
    ):
        parser = EventParser()
        parser.feed(data)
        assert parser.retry_ms == 1234


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.dictionaries(TEXT, TEXT), max_size=5), st.lists(st.integers(1, 40)))
def test_changes_survive_any_cutting(documents: list[dict[str, str]], cuts: list[int]) -> None:
    data = b"".join(
        FRAMER.changes(
            Epoch("epoch1"),
            [(n, json.dumps(document).encode()) for n, document in enumerate(documents)],
        )
    )
    parser, events = EventParser(), []
    for size in [*cuts, len(data)]:
        events += parser.feed(data[:size])
        data = data[size:]
    assert [json.loads(event.data) for event in events] == documents
    assert [event.last_id for event in events] == [f"epoch1:{n}" for n in range(len(documents))]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\r\n\r\n", [Event("message", "a", "")]),
        (b"data: a\r\rdata: b\n\n", [Event("message", "a", ""), Event("message", "b", "")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("message", "a", "")]),
        (b"data:a\ndata:  b\n\n", [Event("message", "a\n b", "")]),
        (b"event: x\n\ndata: a\n\n", [Event("message", "a", "")]),
        (b"data\n\n", [Event("message", "", "")]),
        (b"id: a\x00b\ndata: a\n\n", [Event("message", "a", "")]),
        (b"id: 1\n\nid\ndata: a\n\n", [Event("message", "a", "")]),
        (b"retry: 1x\nunknown: y\n:comment\ndata: a\n\n", [Event("message", "a", "")]),
        (b"data: unfinished\n", []),
    ],
)
def test_the_parser_follows_the_specification(data: bytes, events: list[Event]) -> None:
    assert read(data)[0] == events
    parser = EventParser()
    assert [e for byte in data for e in parser.feed(bytes([byte]))] == events


def test_an_endless_line_is_refused() -> None:
    parser = EventParser()
    parser.feed(b"x" * LINE_BYTES_MAX)
    with pytest.raises(StreamTooWide):
        parser.feed(b"x")
