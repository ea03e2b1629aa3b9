"""Reading the outbox: rows that writers' triggers left there, in LSN order.

One `read` is one SELECT, hence one snapshot: it sees whole commits only. It starts at the anchor,
the last row that was copied before, which the hub never prunes: if the anchor's nonce is another,
or the row is gone, the source is not the one that was read before (`HistoryBroken`). SQLite has one
writer and AUTOINCREMENT, so LSNs have no holes; a hole is lost history too, never skipped over.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cdchub.capture.driver import Connection
from cdchub.capture.install import Captured
from cdchub.capture.scan import decode_exact, exact_columns, take, text_codec
from cdchub.capture.triggers import OUTBOX, value_columns
from cdchub.errors import CdchubError

# What SQLite returns is untyped; the outbox's own columns are what its triggers wrote:
# lsn, table id, op, rowid, timestamp in ms, nonce, and the values (see `VALUES`).
OutboxRow = tuple[Any, ...]
LSN, TABLE, OP, ROWID, TIMESTAMP, NONCE, VALUES = range(7)

_HEAD = "SELECT lsn, tbl, op, rid, ts, nonce"
_EXACT_COLUMNS_MAX = 900


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last outbox row that was copied. `nonce` is None where no row was copied yet."""

    lsn: int
    nonce: int | None


class HistoryBroken(CdchubError):
    """The outbox does not continue the log: the source was restored, replaced, or rows are gone."""


def outbox_head(connection: Connection) -> Anchor:
    """The newest row there is; before the first row, the last LSN that was ever given out."""
    rows = connection.execute(f"SELECT lsn, nonce FROM {OUTBOX} ORDER BY lsn DESC LIMIT 1")
    if rows:
        return Anchor(*rows[0])
    sequence = connection.value("SELECT seq FROM sqlite_sequence WHERE name = ?", (OUTBOX,))
    return Anchor(sequence or 0, None)


def check_anchor(connection: Connection, anchor: Anchor) -> None:
    """Raises `HistoryBroken` where the outbox doesn't continue from the anchor."""
    rows = connection.execute(
        f"SELECT lsn, nonce FROM {OUTBOX} WHERE lsn >= ? ORDER BY lsn LIMIT 2", (anchor.lsn,)
    )
    _after_anchor(rows, anchor, nonce=1)
    if anchor.nonce is None:
        check_empty(connection, anchor)


def check_empty(connection: Connection, anchor: Anchor) -> None:
    """Raises `HistoryBroken` where the outbox, which had no row at the anchor, is another one now."""
    head_lsn = outbox_head(connection).lsn
    if head_lsn < anchor.lsn:
        raise HistoryBroken(f"LSN {anchor.lsn} was given out, and the last one now is {head_lsn}")
    if connection.value(f"SELECT 1 FROM {OUTBOX} WHERE lsn = ?", (anchor.lsn,)):
        raise HistoryBroken(f"LSN {anchor.lsn} was gone, and is there again")


def read_rows(
    connection: Connection, *, after: Anchor, captured: Captured, limit: int, width: int = 2
) -> list[OutboxRow]:
    """The committed rows after the anchor, at most `limit`, and fewer where they are large (see
    `scan.take`), but not none. Raises `HistoryBroken`.

    To be called in a read transaction. Each has `width` values, or as many more as the widest shape
    among them needs: whoever expects the shapes that came last time saves a second query.
    """
    rows = _after_anchor(_rows_from(connection, after.lsn, width, limit + 1), after, nonce=NONCE)
    kinds = {(row[TABLE], row[OP] == "m") for row in rows}
    needed = max((captured.width_of(table_id, moved=moved) for table_id, moved in kinds), default=0)
    if needed > width:
        rows = _after_anchor(_rows_from(connection, after.lsn, needed, limit + 1), after, nonce=NONCE)
    return rows[:limit]


def _after_anchor(rows: list[OutboxRow], anchor: Anchor, *, nonce: int) -> list[OutboxRow]:
    """The rows without the anchor's own, which must be the first; `nonce` is its place in a row."""
    if rows and rows[0][LSN] == anchor.lsn:
        if anchor.nonce is not None and rows[0][nonce] != anchor.nonce:
            raise HistoryBroken(f"LSN {anchor.lsn} is another row than the one that was copied")
        rows = rows[1:]
    elif anchor.nonce is not None:
        raise HistoryBroken(f"LSN {anchor.lsn}, the last one that was copied, is gone")
    if rows and rows[-1][LSN] - anchor.lsn != len(rows):
        # LSNs ascend, so that the numbers alone tell of a hole.
        missing = next(n for n, row in enumerate(rows, anchor.lsn + 1) if row[LSN] != n)
        raise HistoryBroken(f"LSN {missing} is missing, a later one is there")
    return rows


def _rows_from(connection: Connection, first: int, width: int, limit: int) -> list[OutboxRow]:
    tail = f"FROM {OUTBOX} WHERE lsn >= ? ORDER BY lsn LIMIT ?"
    columns = value_columns(width)

    def read(values: str, limit: int) -> list[OutboxRow]:
        with closing(connection.iterate(f"{_HEAD}, {values} {tail}", (first, limit))) as rows:
            # The first one may be the anchor, which is none of what is wanted.
            return [*islice(rows, 1), *take(rows, limit - 1)]

    try:
        return read(", ".join(columns), limit)
    except UnicodeDecodeError:
        # Reading exactly takes two columns a value, and SQLite has a limit of columns.
        codec = text_codec(connection)
        rows: list[OutboxRow] = []
        for start in range(0, len(columns), _EXACT_COLUMNS_MAX):
            part = exact_columns(columns[start : start + _EXACT_COLUMNS_MAX])
            found = read(part, limit if start == 0 else len(rows))
            exact = [decode_exact(row[VALUES:], codec) for row in found]
            known = [row[:VALUES] for row in found] if start == 0 else rows
            # Of the further columns fewer rows may have been taken.
            rows = [row + values for row, values in zip(known, exact, strict=False)]
        return rows


def prune(connection: Connection, *, below: int, limit: int) -> int:
    """Deletes the oldest rows below LSN `below`, at most `limit`. Returns how many went.

    One short transaction of its own; the caller sees to it that the log has fsynced them.
    """
    connection.execute(
        f"DELETE FROM {OUTBOX} WHERE lsn < ? AND lsn < (SELECT min(lsn) FROM {OUTBOX}) + ?",
        (below, limit),
    )
    return connection.changes()
