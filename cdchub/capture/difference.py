"""The difference between what the log knows of a table and what the table holds, as changes.

After a schema change, or where capture was interrupted, nobody saw what happened to the rows. What
is known by the log is compared with what is there, key by key, and the difference is written to the
outbox like any change: so a subscriber who applies it has the table again, without a reset.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from cdchub.capture.encode import RowEncoder
from cdchub.capture.scan import ScannedRow, castable, scan, text_codec
from cdchub.capture.schema import Database
from cdchub.capture.table import Shape
from cdchub.capture.triggers import OUTBOX, value_columns
from cdchub.change import InvalidText, SqliteValue, encode_lines, from_wire
from cdchub.log.protocol import KnownRows


@dataclass(frozen=True, slots=True)
class ShapeVersion:
    """A shape and the id that its outbox rows carry."""

    id: int
    shape: Shape


def write_difference(db: Database, known: KnownRows, *, old: ShapeVersion, new: ShapeVersion) -> int:
    """Writes what has happened to a table since the log's last word. Returns how many changes.

    `old` is the shape that the known rows have, `new` the table's present one.
    """
    count = 0
    seen: set[bytes] = set()
    for batch, keys, lines in _present(db, new.shape):
        held = known.find(old.shape.name, keys)
        seen.update(held)
        for row, key, line in zip(batch, keys, lines, strict=True):
            before = held.get(key)
            if before == line:
                continue
            if before is None:
                values = [None] * len(row[1:]) + list(row[1:])
                _write(db, new.id, "c", row[0], values)
            else:
                _write(db, new.id, "m", row[0], [old.id, *_values(old.shape, before), *row[1:]])
            count += 1
    return count + _write_gone(db, known, old, seen)


def write_removal(db: Database, known: KnownRows, *, old: ShapeVersion) -> int:
    """Writes a DELETE for each row that is known of a table which is gone. Returns how many."""
    return _write_gone(db, known, old, frozenset())


def differs(db: Database, known: KnownRows, shape: Shape) -> bool:
    """Whether a table holds anything else than what is known of it."""
    count = 0
    for _, keys, lines in _present(db, shape):
        held = known.find(shape.name, keys)
        if [held.get(key) for key in keys] != lines:
            return True
        count += len(keys)
    return count != known.count(shape.name)


def _present(db: Database, shape: Shape) -> Iterator[tuple[list[ScannedRow], list[bytes], list[bytes]]]:
    """The table's rows in batches, with their keys and their values as JSON."""
    encoder = RowEncoder(shape)
    for batch in scan(db, shape):
        rowids, *columns = zip(*batch, strict=True)
        keys = encode_lines(list(encoder.keys(columns, rowids)))
        lines = encode_lines(list(encoder.rows(columns)))
        yield batch, keys, lines


def _write_gone(
    db: Database, known: KnownRows, old: ShapeVersion, seen: set[bytes] | frozenset[bytes]
) -> int:
    count = 0
    for key, line in known.rows(old.shape.name):
        if key not in seen:
            _write(db, old.id, "d", _rowid(old.shape, key), _values(old.shape, line))
            count += 1
    return count


def _rowid(shape: Shape, key: bytes) -> SqliteValue:
    """The rowid that is in a key because the declared one does not tell rows apart."""
    if shape.rowid is None or "rowid" in shape.key:
        return None
    return from_wire(msgspec.json.decode(key).get("rowid"))


def _values(shape: Shape, line: bytes) -> list[SqliteValue]:
    """A known row as values in the order of a shape's captured columns."""
    row = msgspec.json.decode(line)
    return [from_wire(row.get(name)) for name in shape.captured]


def _write(db: Database, table_id: int, op: str, rowid: object, values: Sequence[SqliteValue]) -> None:
    broken = tuple(n for n, value in enumerate(values) if isinstance(value, InvalidText))
    plain = values
    if broken:
        codec = text_codec(db)
        plain = [castable(v, codec) if isinstance(v, InvalidText) else v for v in values]
    db.execute(_insert(len(values), broken), (table_id, op, rowid, *plain))


@functools.lru_cache(maxsize=64)
def _insert(width: int, broken: tuple[int, ...]) -> str:
    """The statement for so many values. Broken text is bound as its bytes, and made TEXT again."""
    columns = ", ".join(["tbl", "op", "rid", *value_columns(width)])
    marks = ", ".join("CAST(? AS TEXT)" if place in broken else "?" for place in range(width))
    return f"INSERT INTO {OUTBOX}({columns}) VALUES (?, ?, ?, {marks})"
