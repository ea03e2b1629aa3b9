"""Outbox rows as log entries, under the shapes that they were written with. Pure.

Rows of one table and kind are encoded together, column by column, and put back into LSN order; so
a batch costs little more than what SQLite and the JSON encoder do in C.

The kinds of rows: `c`, `u` and `d` are the triggers'; `m` is a row that a schema change has given
another shape (its first value is the id of the old one); `b` and `s` are notes, of a break in a
table's history and of its shape from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec

from cdchub.capture.encode import Columns, RowEncoder
from cdchub.capture.install import Captured
from cdchub.capture.outbox import LSN, OP, ROWID, TABLE, TIMESTAMP, VALUES, OutboxRow
from cdchub.change import ChangeType, Entry, SqliteValue, WireChange, WireNote, encode_lines

_TYPES = {
    "c": ChangeType.INSERT,
    "u": ChangeType.UPDATE,
    "d": ChangeType.DELETE,
    "m": ChangeType.UPDATE,
    "b": ChangeType.BREAK,
    "s": ChangeType.SCHEMA,
}
_Made = tuple[WireChange | WireNote, Entry]


class Decoder:
    """Makes entries of rows, under the shapes that are captured."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self._encoders: dict[int, RowEncoder] = {}

    def entries(
        self, rows: Sequence[OutboxRow], txids: Iterable[int], commits: Iterable[bool]
    ) -> list[Entry]:
        """The rows as entries; `txids` and `commits` tell by row which transaction it is in."""
        groups: dict[tuple[int, str, int | None], list[OutboxRow]] = {}
        for row in rows:
            op = row[OP]
            groups.setdefault((row[TABLE], op, row[VALUES] if op == "m" else None), []).append(row)
        if len(groups) == 1:
            # Most batches of a bulk write: nothing has to be put back into order.
            ((table_id, op, old_id),) = groups
            made = self._made(table_id, op, old_id, rows)
        else:
            first_lsn = rows[0][LSN] if rows else 0
            places: list[Any] = [None] * len(rows)
            for (table_id, op, old_id), group in groups.items():
                for row, pair in zip(group, self._made(table_id, op, old_id, group), strict=True):
                    places[row[LSN] - first_lsn] = pair
            made = places
        for (change, _), txid, commit in zip(made, txids, commits, strict=True):
            change.txid, change.commit = txid, commit
        lines = encode_lines([change for change, _ in made])
        for (_, entry), line in zip(made, lines, strict=True):
            entry.data = line
        return [entry for _, entry in made]

    def _made(
        self, table_id: int, op: str, old_id: int | None, group: Sequence[OutboxRow]
    ) -> Sequence[_Made]:
        """The changes of one kind in one table; transactions and JSON are put in later."""
        if op in "bs":
            return [_note(row) for row in group]
        encoder = self._encoder(table_id)
        old_encoder = encoder if old_id is None else self._encoder(old_id)
        columns = list(zip(*group, strict=True))
        start = VALUES if old_id is None else VALUES + 1
        middle = start + len(old_encoder.shape.captured)
        olds, news = columns[start:middle], columns[middle : middle + len(encoder.shape.captured)]
        kind, table = _TYPES[op], encoder.shape.name
        name = kind.name
        return [
            (
                WireChange(lsn, name, table, key, old, new, timestamp_ms, 0, commit=False),
                Entry(lsn, kind, table, room_old, room_new, b""),
            )
            for lsn, timestamp_ms, key, old, new, room_old, room_new in zip(
                columns[LSN],
                columns[TIMESTAMP],
                encoder.keys(olds if op == "d" else news, columns[ROWID]),
                repeat(None) if op == "c" else old_encoder.rows(olds),
                repeat(None) if op == "d" else encoder.rows(news),
                repeat(None) if op == "c" else _rooms(old_encoder, olds),
                repeat(None) if op == "d" else _rooms(encoder, news),
                strict=False,
            )
        ]

    def _encoder(self, table_id: int) -> RowEncoder:
        encoder = self._encoders.get(table_id)
        if encoder is None:
            encoder = self._encoders[table_id] = RowEncoder(self.captured.shapes[table_id])
        return encoder


def _rooms(encoder: RowEncoder, columns: Columns) -> Iterable[SqliteValue]:
    shape = encoder.shape
    return repeat(None) if shape.room is None else columns[shape.captured.index(shape.room)]


def _note(row: OutboxRow) -> _Made:
    kind, table = _TYPES[row[OP]], str(row[VALUES])
    schema = row[VALUES + 1]
    raw = None if schema is None else msgspec.Raw(schema.encode())
    note = WireNote(row[LSN], kind.name, table, row[TIMESTAMP], 0, commit=False, schema=raw)
    return note, Entry(row[LSN], kind, table, None, None, b"")
