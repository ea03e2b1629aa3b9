"""One committed row change: its JSON on the wire, and the log entry that carries it.

Values are exact (INTERFACE §2). JSON can't tell every SQLite value apart, so the ones it would
damage travel in an object with one key: `$int` beyond ±(2^53-1) (RFC 8259 §6), `$real` for the
infinities, `$blob`, and `$text` for TEXT that is not valid UTF-8. Reals always show that they are
reals (`1.0`), because 1 and 1.0 are different values, and different keys, in SQLite.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Container, Mapping, Sequence, Set
from enum import Enum
from typing import Any, NamedTuple

import msgspec

INT_EXACT_MAX = 2**53 - 1


class ChangeType(Enum):
    """What a log entry says. The number is its form in the log, the name its form on the wire."""

    INSERT = 1
    UPDATE = 2
    DELETE = 3
    SNAPSHOT = 4
    # No change of a row: capture of this table was interrupted, its history has a hole here.
    BREAK = 5
    # No change of a row either: from here on the table has this shape, or is gone.
    SCHEMA = 6


class InvalidText(bytes):
    """The bytes of a TEXT value that are not UTF-8, so that no str can hold them."""


# What SQLite can store, as Python sees it.
SqliteValue = None | int | float | str | bytes
WireValue = None | int | float | str | dict[str, str]
WireRow = Mapping[str, WireValue]


# What stands in the log for its own use, and is no change that a subscriber sees.
NOTES = frozenset({ChangeType.BREAK, ChangeType.SCHEMA})


class Entry(msgspec.Struct, gc=False):
    """One line of the log: what is needed to route a change, and the change as JSON bytes.

    `room_old` and `room_new` are the room column's values before and after.
    """

    lsn: int
    type: ChangeType
    table: str
    room_old: SqliteValue
    room_new: SqliteValue
    data: bytes


class WireChange(msgspec.Struct, gc=False):
    """The change as INTERFACE §2 shows it, in that order of fields.

    `key`, `oldValue` and `newValue` are JSON objects: mappings, or structs made of a table's columns.
    """

    lsn: int
    type: str
    table: str
    key: object
    oldValue: object
    newValue: object
    timestamp: int
    txid: int
    commit: bool


class WireNote(msgspec.Struct, omit_defaults=True):
    """What the log notes for itself, in the form of a change without a row.

    A BREAK says that the history of `table` has a hole at `lsn`; a SCHEMA which shape the table has
    from there on: `schema` is JSON (`catalog.TableSchema`), None where the table is gone.
    """

    lsn: int
    type: str
    table: str
    timestamp: int
    txid: int
    commit: bool
    schema: msgspec.Raw | None = None


class RawChange(msgspec.Struct, omit_defaults=True):
    """A change whose rows are left as JSON text: for rewriting only what is around them."""

    lsn: int
    type: str
    table: str
    key: msgspec.Raw
    oldValue: msgspec.Raw
    newValue: msgspec.Raw
    timestamp: int
    txid: int
    commit: bool
    conflated: bool = False


class _RawKey(msgspec.Struct):
    table: str
    key: msgspec.Raw


class _RawKeyedRow(msgspec.Struct):
    lsn: int
    table: str
    key: msgspec.Raw
    newValue: msgspec.Raw


class KeyedRow(NamedTuple):
    """What a change says of the row under its key: whoever applies it needs no more.

    Key and row are JSON bytes, exact and comparable; `row` is None where there is none.
    """

    lsn: int
    table: str
    key: bytes
    row: bytes | None


class _TransactionMark(msgspec.Struct):
    txid: int
    commit: bool


class _Stamp(msgspec.Struct):
    timestamp: int


class _NewRow(msgspec.Struct):
    newValue: dict[str, Any] | None


class _BothRows(msgspec.Struct):
    oldValue: dict[str, Any] | None
    newValue: dict[str, Any] | None


_encoder = msgspec.json.Encoder()
_row_decoder = msgspec.json.Decoder(_NewRow)
_raw_decoder = msgspec.json.Decoder(RawChange)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_rows_decoder = msgspec.json.Decoder(_BothRows)
_keyed_decoder = msgspec.json.Decoder(_RawKeyedRow)
_key_decoder = msgspec.json.Decoder(_RawKey)
_stamp_decoder = msgspec.json.Decoder(_Stamp)
_mark_decoder = msgspec.json.Decoder(_TransactionMark)
_NULL = msgspec.Raw(b"null")
# How the JSON of a change ends that is the last of its transaction; `conflated` ones are none.
_COMMIT = b',"commit":true}'


def wire_value(value: SqliteValue) -> WireValue:
    """A SQLite value as JSON can carry it exactly."""
    if isinstance(value, int):
        return value if -INT_EXACT_MAX <= value <= INT_EXACT_MAX else {"$int": str(value)}
    if isinstance(value, float):
        if math.isinf(value):
            return {"$real": "Infinity" if value > 0 else "-Infinity"}
        return value
    if isinstance(value, InvalidText):
        return {"$text": b64encode(value).decode("ascii")}
    if isinstance(value, bytes):
        return {"$blob": b64encode(value).decode("ascii")}
    return value


def wire_column(values: Sequence[SqliteValue]) -> Sequence[WireValue]:
    """`wire_value` of each value of one column. Most columns need nothing, and that is found out
    without a look at each of them in Python."""
    kinds = set(map(type, values))
    if kinds <= _PLAIN:
        return values  # type: ignore[return-value]
    if not kinds <= _NUMBERS_TOO or (float in kinds and (math.inf in values or -math.inf in values)):
        return [wire_value(value) for value in values]
    integers = [value for value in values if type(value) is int]
    if integers and (max(integers) > INT_EXACT_MAX or min(integers) < -INT_EXACT_MAX):
        return [wire_value(value) for value in values]
    return values  # type: ignore[return-value]


_PLAIN = frozenset({str, type(None)})
_NUMBERS_TOO = _PLAIN | {int, float}


def from_wire(value: WireValue) -> SqliteValue:
    """A value of a change as SQLite has it. Raises ValueError for what is none."""
    match value:
        case None | str() | int() | float() if not isinstance(value, bool):
            return value
        case {"$int": str(digits)}:
            return int(digits)
        case {"$real": str(name)}:
            return float(name)
        case {"$blob": str(text)}:
            return b64decode(text, validate=True)
        case {"$text": str(text)}:
            return InvalidText(b64decode(text, validate=True))
    raise ValueError(f"{value!r} is no value of SQLite")


def wire_row(names: Sequence[str], values: Sequence[SqliteValue]) -> dict[str, WireValue]:
    """A row as a JSON object, its columns in the order of `names`."""
    row: dict[str, WireValue] = {}
    for name, value in zip(names, values, strict=True):
        # Strings and NULL, most of what tables hold, need no look inside.
        row[name] = value if value is None or type(value) is str else wire_value(value)
    return row


def wire_key(names: Sequence[str], values: Sequence[SqliteValue]) -> dict[str, WireValue]:
    """The key of a row. -0.0 is written 0.0: SQLite takes both for the same key."""
    return wire_row(names, [0.0 if value == 0 and type(value) is float else value for value in values])


def encode_row(row: Mapping[str, WireValue]) -> bytes:
    return _encoder.encode(row)


def encode_change(
    *,
    lsn: int,
    type: ChangeType,
    table: str,
    key: Mapping[str, WireValue],
    old: Mapping[str, WireValue] | None,
    new: Mapping[str, WireValue] | None,
    timestamp_ms: int,
    txid: int,
    commit: bool,
) -> bytes:
    """The change as one line of JSON."""
    return _encoder.encode(WireChange(lsn, type.name, table, key, old, new, timestamp_ms, txid, commit))


def encode_lines(changes: Sequence[object]) -> list[bytes]:
    """Changes (`WireChange`, or JSON that is there already) as lines, in one call."""
    # JSON has no raw line feed: in a string it is written \\n (RFC 8259 §7).
    return _encoder.encode_lines(changes).split(b"\n")[:-1]


def as_commit(data: bytes) -> bytes:
    """A change as the last one of its transaction."""
    change = _raw_decoder.decode(data)
    change.commit = True
    return _encoder.encode(change)


def new_value(data: bytes, column: str) -> SqliteValue:
    """One column of a change's `newValue`; NULL where it has none."""
    row = _row_decoder.decode(data).newValue or {}
    return from_wire(row.get(column))


def rewritten(data: bytes, type: ChangeType, columns: Set[str] | None) -> bytes:
    """A change as a view sees it: an UPDATE that a row enters it by is an INSERT, one that it leaves
    by a DELETE. `columns`: only these of its rows, and those of its key, whatever their names were
    when the others were asked for."""
    change = _raw_decoder.decode(data)
    change.type = type.name
    if type is ChangeType.INSERT:
        change.oldValue = _NULL
    elif type is ChangeType.DELETE:
        change.newValue = _NULL
    if columns is not None:
        columns = columns | _members_decoder.decode(change.key).keys()
        change.oldValue = only_columns(change.oldValue, columns)
        change.newValue = only_columns(change.newValue, columns)
    return _encoder.encode(change)


def as_conflated(data: bytes) -> bytes:
    """A change that stands for all earlier ones of its key: what the row was is left out."""
    change = _raw_decoder.decode(data)
    change.oldValue = _NULL
    change.conflated = True
    return _encoder.encode(change)


def key_of(data: bytes) -> tuple[str, bytes]:
    """The table and the key of a change; keys are equal when their bytes are."""
    change = _key_decoder.decode(data)
    return change.table, bytes(change.key)


def only_columns(row: msgspec.Raw, columns: Container[str]) -> msgspec.Raw:
    """A row, a JSON object or null, with only these members."""
    if row == _NULL:
        return row
    members = _members_decoder.decode(row)
    return msgspec.Raw(_encoder.encode({n: v for n, v in members.items() if n in columns}))


def both_rows(data: bytes) -> tuple[WireRow | None, WireRow | None]:
    """`oldValue` and `newValue` of a change; their values are as on the wire."""
    rows = _rows_decoder.decode(data)
    return rows.oldValue, rows.newValue


def raw_change(data: bytes) -> RawChange:
    return _raw_decoder.decode(data)


def keyed_row(data: bytes) -> KeyedRow:
    change = _keyed_decoder.decode(data)
    row = bytes(change.newValue)
    return KeyedRow(change.lsn, change.table, bytes(change.key), None if row == b"null" else row)


def transaction_mark(data: bytes) -> tuple[int, bool]:
    """`(txid, commit)` of a change or a break, for continuing a transaction after a crash."""
    mark = _mark_decoder.decode(data)
    return mark.txid, mark.commit


def is_commit(data: bytes) -> bool:
    """Whether a change is the last one of its transaction, in the log or as a view sees it."""
    return data.endswith(_COMMIT)


def ends_transaction(entry: Entry) -> bool:
    """Whether a transaction ends with this entry, a note perhaps."""
    return transaction_mark(entry.data)[1] if entry.type in NOTES else is_commit(entry.data)


def as_break(entry: Entry) -> Entry:
    """What stands for a change that can't be told: a hole in its table's history."""
    txid, commit = transaction_mark(entry.data)
    at_ms = _stamp_decoder.decode(entry.data).timestamp
    note = WireNote(entry.lsn, ChangeType.BREAK.name, entry.table, at_ms, txid, commit)
    return Entry(entry.lsn, ChangeType.BREAK, entry.table, None, None, encode_note(note))


def encode_note(note: WireNote) -> bytes:
    return _encoder.encode(note)
