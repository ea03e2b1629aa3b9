"""Reading the log: pages for those who catch up, narrowed by table and room through its indexes."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from cdchub.change import ChangeType, Entry, SqliteValue
from cdchub.log.file import open_read_only, read_state
from cdchub.log.protocol import Cursor, Expired, LogState, Narrowing, Page

_COLUMNS = "e.lsn, e.nonce, e.type, t.name, e.room_old, e.room_new, e.ts, e.data"


class LogReader:
    """Reads the log from any thread; each thread gets a connection of its own, read-only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []

    def close(self) -> None:
        """Closes every thread's connection; no thread may be reading."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def state(self) -> LogState:
        return read_state(self._connection())

    def read(
        self, after: Cursor, *, upto: int, narrowing: Narrowing, rows_max: int, bytes_max: int
    ) -> Page:
        db = self._connection()
        sql, parameters = _page_query(after, upto, narrowing, rows_max)
        entries: list[Entry] = []
        size = 0
        db.execute("BEGIN")
        try:
            floor = db.execute(
                "SELECT floor_lsn FROM epochs WHERE number = ?", (after.epoch,)
            ).fetchone()
            if floor is None or after.lsn < floor[0]:
                raise Expired(f"the log begins after LSN {floor and floor[0]}")
            for row in db.execute(sql, parameters):
                entries.append(_entry(row))
                size += len(row[7])
                if size >= bytes_max:
                    return Page(entries, entries[-1].lsn)
        finally:
            db.execute("COMMIT")
        return Page(entries, entries[-1].lsn if len(entries) >= rows_max else max(upto, after.lsn))

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = open_read_only(self._path)
            self._local.connection = connection
            with self._lock:
                self._open.append(connection)
        return connection


def _entry(row: tuple[int, int, int, str, SqliteValue, SqliteValue, int, bytes]) -> Entry:
    lsn, nonce, kind, table, room_old, room_new, timestamp_ms, data = row
    return Entry(lsn, nonce, ChangeType(kind), table, room_old, room_new, timestamp_ms, data)


def _page_query(
    after: Cursor, upto: int, narrowing: Narrowing, rows_max: int
) -> tuple[str, list[SqliteValue]]:
    """One arm per index that is used; SQLite merges the sorted arms without collecting them."""
    span: list[SqliteValue] = [after.epoch, after.lsn, upto]
    arms: list[tuple[str, list[SqliteValue]]] = []
    if narrowing.tables is None:
        arms.append(("", []))
    elif narrowing.room is not None and len(narrowing.tables) == 1:
        table, room = narrowing.tables[0], narrowing.room
        here = "AND e.tbl = (SELECT id FROM tables WHERE name = ?) AND "
        arms.append((here + "e.room_new = ? AND e.room_new IS NOT NULL", [table, room]))
        left = "e.room_old = ? AND e.room_old IS NOT NULL AND e.room_old IS NOT e.room_new"
        arms.append((here + left, [table, room]))
        arms.append((here + f"e.type = {ChangeType.BREAK.value}", [table]))
    else:
        here = "AND e.tbl = (SELECT id FROM tables WHERE name = ?)"
        arms.extend((here, [table]) for table in narrowing.tables)
    sql = " UNION ALL ".join(
        f"SELECT {_COLUMNS} FROM entries e JOIN tables t ON t.id = e.tbl"
        f" WHERE e.epoch = ? AND e.lsn > ? AND e.lsn <= ? {condition}"
        for condition, _ in arms
    )
    parameters = [value for _, more in arms for value in [*span, *more]]
    return f"{sql} ORDER BY 1 LIMIT ?", [*parameters, rows_max]
