"""Reading the log: pages for those who catch up, narrowed by table and room to the blocks that
hold any of it, and base snapshots."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cdchub.change import Entry, as_commit, ends_transaction
from cdchub.log import bases
from cdchub.log.blocks import key_of
from cdchub.log.entries import read_entries
from cdchub.log.file import open_read_only, read_state
from cdchub.log.protocol import BaseInfo, Cursor, Expired, LogState, Narrowing, Page
from cdchub.log.replay import advance, replica_at
from cdchub.log.replica import Replica


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
        """The entries after a cursor, up to LSN `upto` of its epoch. Raises `Expired`."""
        db = self._connection()
        entries: list[Entry] = []
        size = 0
        db.execute("BEGIN")
        try:
            floor = db.execute(
                "SELECT floor_lsn FROM epochs WHERE number = ?", (after.epoch,)
            ).fetchone()
            if floor is None or after.lsn < floor[0]:
                raise Expired(f"the log begins after LSN {floor and floor[0]}")
            for entry in read_entries(db, after, upto, narrowing):
                entries.append(entry)
                size += len(entry.data)
                if size >= bytes_max or len(entries) >= rows_max:
                    return Page(entries, entry.lsn)
        finally:
            db.execute("COMMIT")
        return Page(entries, max(upto, after.lsn))

    def nonce_at(self, cursor: Cursor) -> int | None:
        """The nonce of the row at a cursor, if the log has kept it: it keeps each append's last."""
        row = (
            self._connection()
            .execute(
                "SELECT last_lsn, nonce FROM blocks WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
                (key_of(cursor.epoch, 0), key_of(cursor.epoch, cursor.lsn)),
            )
            .fetchone()
        )
        return row[1] if row is not None and row[0] == cursor.lsn else None

    def ends_transaction(self, cursor: Cursor) -> bool:
        """Whether a transaction ends at a cursor: an append that a crash cut short is continued."""
        before = Cursor(cursor.epoch, max(0, cursor.lsn - 1))
        entries = read_entries(self._connection(), before, cursor.lsn, Narrowing())
        return all(ends_transaction(entry) for entry in entries)

    def bases(self) -> list[BaseInfo]:
        """The complete base snapshots, oldest first."""
        return bases.read_bases(self._connection())

    def base_changes(
        self, base: BaseInfo, tables: Sequence[str], seen: Callable[[str, bytes], bytes | None]
    ) -> Iterator[bytes]:
        """A base's rows as SNAPSHOT changes, some lines at a time: one transaction.

        `seen`: what is to be shown of a table's row, a SNAPSHOT change, if anything. Raises `Expired`
        where retention has dropped the base. The log is held back while this is read.
        """
        db = self._connection()
        held: list[bytes] = []
        db.execute("BEGIN")
        try:
            if all(known.id != base.id for known in bases.read_bases(db)):
                raise Expired(f"the base snapshot at LSN {base.lsn} is gone")
            for table, lines in bases.read_chunks(db, base.id, tables):
                kept = [shown for line in lines if (shown := seen(table, line)) is not None]
                if kept:
                    yield b"\n".join([*held, *kept[:-1], b""])
                    held = kept[-1:]
            for line in held:
                yield as_commit(line) + b"\n"
        finally:
            db.execute("COMMIT")

    def replica(self, at: Cursor, *, tables: Sequence[str] | None = None) -> Replica | None:
        """The tables as they were at a cursor; None where no base snapshot reaches back so far."""
        db = self._connection()
        db.execute("BEGIN")
        try:
            return replica_at(db, at.epoch, at.lsn, tables=tables)
        finally:
            db.execute("COMMIT")

    def advance(self, replica: Replica, to: Cursor) -> None:
        """Applies to a replica what the log has after it, up to `to`. Raises `Expired`."""
        db = self._connection()
        db.execute("BEGIN")
        try:
            advance(db, replica, to.epoch, to.lsn)
        finally:
            db.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        inode = self._path.stat().st_ino if self._path.exists() else None
        if connection is not None and inode is not None and inode != self._local.inode:
            # The log was deleted, and begun anew.
            with self._lock:
                self._open.remove(connection)
            connection.close()
            connection = None
        if connection is None:
            connection = open_read_only(self._path)
            self._local.connection, self._local.inode = connection, inode
            with self._lock:
                self._open.append(connection)
        return connection
