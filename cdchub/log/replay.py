"""Rebuilding tables from the log: the newest base snapshot at or before an LSN, then the changes."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from cdchub.change import Entry
from cdchub.log.bases import read_bases, read_chunks
from cdchub.log.entries import read_entries
from cdchub.log.protocol import Cursor, Narrowing
from cdchub.log.replica import Replica

# So many changes are applied before anybody is asked whether to go on: some 5 ms.
_ASK_EVERY = 1_000


class GaveUp(Exception):
    """Whoever wanted it can wait no longer."""


def replica_at(
    db: sqlite3.Connection,
    epoch_number: int,
    lsn: int,
    *,
    tables: Sequence[str] | None = None,
    rows_max: int | None = None,
    base: int = -1,
    give_up: Callable[[], bool] = lambda: False,
) -> Replica | None:
    """The tables as they were at `lsn`, or None where no base snapshot reaches back so far.

    `rows_max`: a table that had so many rows in the base counts as unknown, for the sake of time.
    `base`: which one to begin with; by itself the newest. Raises `GaveUp` when `give_up` says so.
    """
    usable = [each for each in read_bases(db) if each.epoch == epoch_number and each.lsn <= lsn]
    if not usable:
        return None
    begin = usable[base]
    schemas = [schema for schema in begin.tables if tables is None or schema.table in tables]
    replica = Replica(schemas, lsn=begin.lsn)
    try:
        loaded: Counter[str] = Counter()
        for table, lines in read_chunks(db, begin.id, tables):
            loaded[table] += len(lines)
            if rows_max is not None and loaded[table] > rows_max:
                replica.forget(table)
            else:
                replica.load(table, lines)
        advance(db, replica, epoch_number, lsn, tables=tables, give_up=give_up)
    except BaseException:
        replica.close()
        raise
    return replica


def advance(
    db: sqlite3.Connection,
    replica: Replica,
    epoch_number: int,
    lsn: int,
    *,
    tables: Sequence[str] | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> None:
    """Applies what the log has after the replica, up to `lsn`. Raises `GaveUp`."""
    narrowing = Narrowing(None if tables is None else tuple(tables))
    entries = read_entries(db, Cursor(epoch_number, replica.lsn), lsn, narrowing)
    replica.apply(_as_long_as_wanted(entries, give_up))
    replica.lsn = lsn


def _as_long_as_wanted(entries: Iterable[Entry], give_up: Callable[[], bool]) -> Iterator[Entry]:
    for place, entry in enumerate(entries):
        if place % _ASK_EVERY == 0 and give_up():
            raise GaveUp
        yield entry
