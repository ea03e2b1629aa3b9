"""The words that everything speaks: positions, changes and their values, catalogs, configuration."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdchub.catalog import Affinity, Catalog, ColumnInfo, Selection, TableInfo, affinity_of
from cdchub.change import (
    ChangeType,
    InvalidText,
    encode_change,
    rewritten,
    transaction_mark,
    wire_key,
    wire_row,
    wire_value,
)
from cdchub.config import CaptureConfig, Config, HttpConfig, StreamConfig
from cdchub.errors import BadPosition, MissingTable, NoRoomColumn, UnknownTable, UsageError
from cdchub.position import (
    EPOCH_PATTERN,
    AtLsn,
    Beginning,
    Epoch,
    Lsn,
    Now,
    Position,
    new_epoch,
    parse_position,
    parse_since,
)


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("now", Now()),
        ("beginning", Beginning()),
        ("0", Beginning()),
        ("17", AtLsn(Lsn(17))),
        ("abcdef:0", Position(Epoch("abcdef"), Lsn(0))),
        ("a_-DEF9:9223372036854775807", Position(Epoch("a_-DEF9"), Lsn(2**63 - 1))),
    ],
)
def test_since_has_four_forms(text: str, since: object) -> None:
    assert parse_since(text) == since


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", "x", "abc:1", "abcdef:", ":1", "abcdef:-1", "9223372036854775808",
             "abcdef:9223372036854775808", "a b c d:1", "٣", "1 ", "abcdef:1:2", "é" * 8 + ":1"]
)  # fmt: skip
def test_since_refuses_everything_else(text: str) -> None:
    with pytest.raises(BadPosition):
        parse_since(text)


@given(st.from_regex(EPOCH_PATTERN, fullmatch=True), st.integers(0, 2**63 - 1))
def test_positions_survive_their_text(epoch: str, lsn: int) -> None:
    position = Position(Epoch(epoch), Lsn(lsn))
    assert parse_position(str(position)) == position


def test_new_epochs_are_valid_and_differ() -> None:
    epochs = {new_epoch() for _ in range(1_000)}
    assert len(epochs) == 1_000
    assert all(EPOCH_PATTERN.fullmatch(epoch) for epoch in epochs)
    # A command line takes such a word for an option; one in 64 would begin so.
    assert not any(epoch.startswith("-") for epoch in epochs)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (1, "1"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (1e22, "1e22"),
        (0.1 + 0.2, "0.30000000000000004"),
        (5e-324, "5e-324"),
        (2**53 - 1, "9007199254740991"),
        (2**53, '{"$int":"9007199254740992"}'),
        (-(2**53), '{"$int":"-9007199254740992"}'),
        (-(2**63), '{"$int":"-9223372036854775808"}'),
        (math.inf, '{"$real":"Infinity"}'),
        (-math.inf, '{"$real":"-Infinity"}'),
        (b"\x00\xff", '{"$blob":"AP8="}'),
        (b"", '{"$blob":""}'),
        (InvalidText(b"a\xff"), '{"$text":"Yf8="}'),
        ("a\0b", '"a\\u0000b"'),
        ("\U0001f600", '"\U0001f600"'),
        ("", '""'),
    ],
)
def test_values_have_one_exact_form(value: Any, text: str) -> None:
    assert msgspec.json.encode(wire_row(("v",), (value,))).decode() == f'{{"v":{text}}}'


def unwire(value: Any) -> Any:
    """What a careful client makes of a value."""
    if not isinstance(value, dict):
        return value
    ((mark, text),) = value.items()
    match mark:
        case "$int":
            return int(text)
        case "$real":
            return math.inf if text == "Infinity" else -math.inf
        case "$blob":
            return base64.b64decode(text)
    return InvalidText(base64.b64decode(text))


SQLITE_VALUES = (
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)


@given(SQLITE_VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    back = unwire(json.loads(msgspec.json.encode(wire_value(value))))
    assert type(back) is type(value)
    assert back == value
    if isinstance(value, float):
        assert math.copysign(1, back) == math.copysign(1, value)


def test_a_key_has_no_negative_zero() -> None:
    assert msgspec.json.encode(wire_key(("k",), (-0.0,))) == b'{"k":0.0}'
    assert msgspec.json.encode(wire_key(("k",), (0,))) == b'{"k":0}'


def change() -> bytes:
    return encode_change(
        lsn=7,
        type=ChangeType.UPDATE,
        table="t",
        key={"id": 1},
        old={"id": 1, "v": 1.0},
        new={"id": 1, "v": 2.0},
        timestamp_ms=5,
        txid=6,
        commit=True,
    )


def test_a_change_has_the_fields_of_the_contract_in_order() -> None:
    assert change() == (
        b'{"lsn":7,"type":"UPDATE","table":"t","key":{"id":1},"oldValue":{"id":1,"v":1.0},'
        b'"newValue":{"id":1,"v":2.0},"timestamp":5,"txid":6,"commit":true}'
    )
    assert transaction_mark(change()) == (6, True)


def test_moves_change_only_what_they_must() -> None:
    moved_in = rewritten(change(), ChangeType.INSERT, None)
    entered, left = json.loads(moved_in), json.loads(rewritten(change(), ChangeType.DELETE, None))
    whole = json.loads(change())
    assert entered == {**whole, "type": "INSERT", "oldValue": None}
    assert left == {**whole, "type": "DELETE", "newValue": None}
    assert b'"v":2.0' in moved_in, "a real still shows that it is one"


@pytest.mark.parametrize(
    ("declared", "affinity"),
    [
        ("INTEGER", Affinity.NUMERIC),
        ("FLOATING POINT", Affinity.NUMERIC),
        ("VARCHAR(10)", Affinity.TEXT),
        ("BLOB", Affinity.BLOB),
        ("", Affinity.BLOB),
        ("REAL", Affinity.NUMERIC),
        ("STRING", Affinity.NUMERIC),
        ("ANY", Affinity.NUMERIC),
    ],
)
def test_affinity_follows_sqlite(declared: str, affinity: Affinity) -> None:
    assert affinity_of(declared) is affinity


def table(name: str, room: str | None = None, affinity: Affinity = Affinity.TEXT) -> TableInfo:
    columns = [ColumnInfo("id", "", Affinity.BLOB)]
    columns += [ColumnInfo(room, "", affinity)] if room else []
    return TableInfo(name, ("id",), tuple(columns), room)


CATALOG = Catalog(
    [table("todos"), table("chat", "room"), table("n", "r", Affinity.NUMERIC), table("a,b")]
)


def test_tables_are_found_as_sqlite_folds_names() -> None:
    assert CATALOG.find("TODOS").name == "todos"
    with pytest.raises(UnknownTable, match="captured: a,b, chat, n, todos"):
        CATALOG.find("tödos")


def test_names_are_split_at_commas_unless_a_table_is_called_so() -> None:
    assert CATALOG.names(["todos,chat", "n"]) == ["todos", "chat", "n"]
    assert CATALOG.names(["a,b"]) == ["a,b"]


def test_equal_selections_are_equal_whatever_their_order() -> None:
    assert CATALOG.select(["chat", "todos", "chat"], None) == CATALOG.select(["Todos", "chat"], None)
    assert CATALOG.select(["*", "todos"], None) == Selection(None)
    with pytest.raises(MissingTable):
        CATALOG.select(["", ""], None)


def test_a_room_binds_only_tables_that_have_one() -> None:
    assert CATALOG.rooms(CATALOG.select(["todos", "chat"], "x")) == {"chat": "x"}
    assert CATALOG.rooms(CATALOG.select(["*"], "5")) == {"chat": "5", "n": 5}
    assert CATALOG.rooms(CATALOG.select(["n"], "5.0")) == {"n": 5.0}
    assert CATALOG.rooms(CATALOG.select(["n"], "five")) == {"n": "five"}
    with pytest.raises(NoRoomColumn):
        CATALOG.select(["todos"], "x")


@pytest.mark.parametrize(
    "config",
    [
        Config(stream=StreamConfig(heartbeat_s=0)),
        Config(stream=StreamConfig(retry_spread=1.5)),
        Config(capture=CaptureConfig(batch_rows=-1)),
        Config(http=HttpConfig(port=70_000)),
        Config(http=HttpConfig(port=-1)),
    ],
)
def test_configuration_is_checked_in_one_go(config: Config) -> None:
    with pytest.raises(UsageError):
        config.checked()


def test_the_defaults_are_a_valid_configuration() -> None:
    assert Config().checked() == Config()
