"""The tables as the log knows them: a base snapshot and the changes after it, applied by key.

This is the promise of INTERFACE §2 as code: whoever applies the changes by key, in order, has the
rows. Rows are kept as their JSON bytes, which are exact and comparable, in a private temporary
database, so that memory stays flat whatever the size.

A table is *known* from a base or from its own beginning on, until a break: from there on nobody
can tell what it holds before a newer base.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from cdchub.catalog import TableSchema
from cdchub.change import ChangeType, Entry, keyed_row

# Applied in one go: large enough that the cost per statement vanishes, small enough for memory.
_BATCH_ROWS = 2_000
_DELETE = "DELETE FROM rows WHERE tbl = ? AND key = ?"


class _Note(msgspec.Struct):
    schema: TableSchema | None = None


_note_decoder = msgspec.json.Decoder(_Note)


class Replica:
    """Tables by name, and their rows by key, both as JSON. `lsn`: everything up to it is applied."""

    def __init__(self, tables: Iterable[TableSchema], *, lsn: int) -> None:
        # An empty name is a private database on disk, deleted at close (sqlite.org/inmemorydb.html).
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = OFF").fetchall()
        self._db.execute(
            "CREATE TABLE rows(tbl TEXT, key BLOB, row BLOB, PRIMARY KEY(tbl, key)) WITHOUT ROWID"
        )
        self.schemas = {schema.table: schema for schema in tables}
        # Those that are not known since a break in their history.
        self.lost: set[str] = set()
        self._pending: dict[tuple[str, bytes], bytes | None] = {}
        # Keys whose first change among those is an INSERT, by table; and tables where one found a row.
        self._inserted: dict[str, list[bytes]] = {}
        self._overwritten: set[str] = set()
        self.lsn = lsn

    def close(self) -> None:
        self._db.close()

    # Filling it.

    def load(self, table: str, lines: Sequence[bytes]) -> None:
        """Takes in rows of a base: SNAPSHOT changes as lines."""
        if table in self.schemas:
            for line in lines:
                self._put(table, line, inserted=False)

    def apply(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            table = entry.table
            if entry.type is ChangeType.SCHEMA:
                self._take_schema(table, entry.data)
            elif entry.type is ChangeType.BREAK:
                self.forget(table)
                self.lost.add(table)
            elif table in self.schemas:
                self._put(table, entry.data, inserted=entry.type is ChangeType.INSERT)
            self.lsn = entry.lsn

    def _take_schema(self, table: str, data: bytes) -> None:
        schema = _note_decoder.decode(data).schema
        if schema is None:
            self.forget(table)
            self.lost.discard(table)
        elif schema.begins or table in self.schemas:
            self.schemas[table] = schema
            self.lost.discard(table)

    def forget(self, table: str) -> None:
        """From here on the table is unknown."""
        self._flush()
        self.schemas.pop(table, None)
        self._overwritten.discard(table)
        self._db.execute("DELETE FROM rows WHERE tbl = ?", (table,))

    def _put(self, table: str, line: bytes, *, inserted: bool) -> None:
        change = keyed_row(line)
        place = table, change.key
        if inserted:
            if place not in self._pending:
                self._inserted.setdefault(table, []).append(change.key)
            elif self._pending[place] is not None:
                self._overwritten.add(table)
        self._pending[place] = change.row
        if len(self._pending) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        kept = [(table, key, row) for (table, key), row in self._pending.items() if row is not None]
        gone = [place for place, row in self._pending.items() if row is None]
        self._pending.clear()
        self._db.execute("BEGIN")
        for table, keys in self._inserted.items():
            found = self._db.executemany(_DELETE, [(table, key) for key in keys])
            if found.rowcount > 0:
                self._overwritten.add(table)
        self._inserted.clear()
        self._db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", kept)
        self._db.executemany(_DELETE, gone)
        self._db.execute("COMMIT")

    # Asking it.

    def knows(self, table: str) -> bool:
        return table in self.schemas

    def overwritten(self, table: str) -> bool:
        """Whether an INSERT took the place of a row whose end was never told.

        Such a row has escaped capture. Whoever holds all rows has let go of it by its key; whoever
        asked for a room or with a filter may hold it still, because the INSERT was not for them.
        """
        self._flush()
        return table in self._overwritten

    def count(self, table: str) -> int:
        self._flush()
        (count,) = self._db.execute("SELECT count(*) FROM rows WHERE tbl = ?", (table,)).fetchone()
        return int(count)

    def find(self, table: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The rows under some keys; a key without a row is not in the answer."""
        self._flush()
        marks = ", ".join("?" * len(keys))
        sql = f"SELECT key, row FROM rows WHERE tbl = ? AND key IN ({marks})"
        return dict(self._db.execute(sql, (table, *keys)))

    def take(self, table: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Like `find`; afterwards these rows are no longer in here."""
        found = self.find(table, keys)
        self._db.executemany(_DELETE, [(table, key) for key in found])
        return found

    def rows(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a table: key and row, ordered by the key's bytes."""
        self._flush()
        return iter(self._db.execute("SELECT key, row FROM rows WHERE tbl = ? ORDER BY key", (table,)))
