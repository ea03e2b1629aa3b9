"""Reading the outbox: rows that writers' triggers left there, in LSN order, as log entries.

One `read` is one SELECT, hence one snapshot: it sees whole commits only. It starts at the anchor,
the last row that was copied before, which the hub never prunes: if the anchor's nonce is another,
or the row is gone, the source is not the one that was read before (`HistoryBroken`). SQLite has one
writer, and a new LSN is one above the newest row's, so there are no holes; a hole is lost history
too, never skipped over.

It does not know where commits end inside a snapshot: the rows of one snapshot, possibly several
commits, are one transaction (INTERFACE §2, `txid`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apsw

from cdchub.capture.install import Captured
from cdchub.capture.table import Shape
from cdchub.capture.triggers import OUTBOX, value_columns
from cdchub.change import (
    ChangeType,
    Entry,
    InvalidText,
    SqliteValue,
    WireValue,
    encode_break,
    encode_change,
    wire_key,
    wire_row,
)
from cdchub.errors import CdchubError

Row = tuple[SqliteValue, ...]

_EXACT_COLUMNS_MAX = 900


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last outbox row that was copied. `nonce` is None where no row was copied yet."""

    lsn: int
    nonce: int | None


class HistoryBroken(CdchubError):
    """The outbox does not continue the log: the source was restored, replaced, or rows are gone."""


@dataclass(frozen=True, slots=True)
class RawRow:
    lsn: int
    table_id: int
    op: str
    rowid: int | None
    timestamp_ms: int
    nonce: int
    values: Row


def outbox_head(connection: apsw.Connection) -> Anchor:
    """The newest row there is. Without any there never was one, since pruning leaves the newest."""
    row = next(
        iter(connection.execute(f"SELECT lsn, nonce FROM {OUTBOX} ORDER BY lsn DESC LIMIT 1")), None
    )
    return Anchor(0, None) if row is None else Anchor(*row)


def read_rows(connection: apsw.Connection, *, after: Anchor, width: int, limit: int) -> list[RawRow]:
    """The committed rows after the anchor, at most `limit`. Raises `HistoryBroken`."""
    rows = _rows_from(connection, after.lsn, width, limit + 1)
    if rows and rows[0].lsn == after.lsn:
        if after.nonce is not None and rows[0].nonce != after.nonce:
            raise HistoryBroken(f"LSN {after.lsn} is another row than the one that was copied")
        rows = rows[1:]
    elif after.nonce is not None:
        raise HistoryBroken(f"LSN {after.lsn}, the last one that was copied, is gone")
    else:
        rows = rows[:limit]
    for expected, row in enumerate(rows, after.lsn + 1):
        if row.lsn != expected:
            raise HistoryBroken(f"LSN {expected} is missing, {row.lsn} is there")
    return rows


def _rows_from(connection: apsw.Connection, first: int, width: int, limit: int) -> list[RawRow]:
    head = "SELECT lsn, tbl, op, rid, ts, nonce"
    tail = f"FROM {OUTBOX} WHERE lsn >= ? ORDER BY lsn LIMIT ?"
    columns = value_columns(width)
    try:
        found = _fetch(connection, f"{head}, {', '.join(columns)} {tail}", first, limit)
        return [RawRow(r[0], r[1], r[2], r[3], r[4], r[5], r[6:]) for r in found]
    except UnicodeDecodeError:
        # Reading exactly takes two columns a value, and SQLite has a limit of columns.
        rows: list[RawRow] = []
        for start in range(0, len(columns), _EXACT_COLUMNS_MAX):
            part = exact_columns(columns[start : start + _EXACT_COLUMNS_MAX])
            found = _fetch(connection, f"{head}, {part} {tail}", first, limit)
            values = [decode_exact(r[6:]) for r in found]
            if start == 0:
                rows = [
                    RawRow(r[0], r[1], r[2], r[3], r[4], r[5], v)
                    for r, v in zip(found, values, strict=True)
                ]
            else:
                rows = [
                    replace(row, values=row.values + v) for row, v in zip(rows, values, strict=True)
                ]
        return rows


def _fetch(connection: apsw.Connection, sql: str, first: int, limit: int) -> list[Any]:
    # What SQLite returns is untyped; the outbox's own columns are what its triggers wrote.
    return connection.execute(sql, (first, limit)).fetchall()


def exact_columns(columns: Sequence[str]) -> str:
    """A select list that reads TEXT as bytes with a mark, for rows that hold invalid UTF-8."""
    return ", ".join(
        f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END, typeof({c}) = 'text'"
        for c in columns
    )


def decode_exact(pairs: Sequence[SqliteValue]) -> Row:
    """What `exact_columns` selected, as values: TEXT that is not UTF-8 becomes `InvalidText`."""
    return tuple(
        _text(value) if is_text and isinstance(value, bytes) else value
        for value, is_text in zip(pairs[::2], pairs[1::2], strict=True)
    )


def _text(raw: bytes) -> str | InvalidText:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return InvalidText(raw)


def row_key(shape: Shape, row: dict[str, SqliteValue], rowid: int | None) -> dict[str, WireValue]:
    """The key of a row as INTERFACE §2 has it: a key with a NULL in it has the rowid too."""
    if not shape.key:
        return {"rowid": rowid}
    values = [row[name] for name in shape.key]
    key = wire_key(shape.key, values)
    if rowid is not None and any(value is None for value in values):
        key["rowid"] = rowid
    return key


class Decoder:
    """Turns raw outbox rows into log entries, under the shapes that are captured."""

    def __init__(self, captured: Captured) -> None:
        self._shapes = captured.shapes
        self.width = max([1, *(2 * len(shape.captured) for shape in captured.shapes.values())])

    def entries(self, rows: Sequence[RawRow], *, txid: int, commit_lsn: int) -> Iterator[Entry]:
        """The entries of one transaction, or a part of one; its last row is at `commit_lsn`."""
        for row in rows:
            commit = row.lsn == commit_lsn
            entry = self._break if row.op == "b" else self._change
            yield entry(row, txid, commit=commit)

    def _break(self, row: RawRow, txid: int, *, commit: bool) -> Entry:
        table = str(row.values[0])
        data = encode_break(
            lsn=row.lsn, table=table, timestamp_ms=row.timestamp_ms, txid=txid, commit=commit
        )
        return Entry(row.lsn, row.nonce, ChangeType.BREAK, table, None, None, row.timestamp_ms, data)

    def _change(self, row: RawRow, txid: int, *, commit: bool) -> Entry:
        shape = self._shapes[row.table_id]
        names = shape.captured
        width = len(names)
        old = None if row.op == "c" else dict(zip(names, row.values[:width], strict=True))
        new = None if row.op == "d" else dict(zip(names, row.values[width : 2 * width], strict=True))
        image = new if old is None else old
        assert image is not None, "every op has an image"
        kind = _TYPES[row.op]
        data = encode_change(
            lsn=row.lsn,
            type=kind,
            table=shape.name,
            key=row_key(shape, image, row.rowid),
            old=None if old is None else wire_row(names, tuple(old.values())),
            new=None if new is None else wire_row(names, tuple(new.values())),
            timestamp_ms=row.timestamp_ms,
            txid=txid,
            commit=commit,
        )
        room = shape.room
        return Entry(
            row.lsn,
            row.nonce,
            kind,
            shape.name,
            None if room is None or old is None else old[room],
            None if room is None or new is None else new[room],
            row.timestamp_ms,
            data,
        )


_TYPES = {"c": ChangeType.INSERT, "u": ChangeType.UPDATE, "d": ChangeType.DELETE}


def prune(connection: apsw.Connection, *, below: int, limit: int) -> int:
    """Deletes the oldest rows below LSN `below`, at most `limit`. Returns how many went.

    One short transaction of its own; the caller sees to it that the log has fsynced them.
    """
    connection.execute(
        f"DELETE FROM {OUTBOX} WHERE lsn < ? AND lsn < (SELECT min(lsn) FROM {OUTBOX}) + ?",
        (below, limit),
    )
    return connection.changes()
