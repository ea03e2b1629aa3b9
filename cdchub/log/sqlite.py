"""The log as a SQLite file of its own beside the source, written by one thread.

Invariants: the key is (epoch number, LSN); within an epoch LSNs are contiguous from its base; an
entry is never changed. A second row under a key is refused (`LogConflict`): it would be another
history under the same names.

Commits are not fsynced one by one (synchronous NORMAL); `sync` says up to where they are, and only
that far may the outbox be pruned. The standard library's sqlite3 is used here and only here: the
source is APSW's, and no file is opened by both.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cdchub.change import ChangeType, Entry, SqliteValue
from cdchub.errors import ForeignLog, LogUnusable
from cdchub.log.protocol import (
    Cursor,
    EpochInfo,
    Expired,
    LogConflict,
    LogState,
    Narrowing,
    Page,
    Retention,
    SourceMark,
    Tail,
)
from cdchub.position import Epoch, new_epoch

# Marks the file as a change log of ours ("CDCL"), see sqlite.org/pragma.html#pragma_application_id.
APPLICATION_ID = 0x4344434C
SCHEMA_VERSION = 1

# Deleted in one go by retention: some milliseconds of the log's writer, so that an append never
# waits longer than that.
RETAIN_ROWS_MAX = 2_000

# The WAL is checkpointed when the writer is idle; this bound (16 MiB) is for a writer that never is.
WAL_PAGES_MAX = 4_096

_SCHEMA = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE epochs(
    number INTEGER PRIMARY KEY, epoch TEXT NOT NULL UNIQUE, base_lsn INTEGER NOT NULL,
    base_nonce INTEGER, floor_lsn INTEGER NOT NULL, started_ms INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE tables(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE entries(
    epoch INTEGER NOT NULL, lsn INTEGER NOT NULL, nonce INTEGER NOT NULL, type INTEGER NOT NULL,
    tbl INTEGER NOT NULL, room_old, room_new, ts INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY(epoch, lsn)) WITHOUT ROWID;
CREATE INDEX entries_by_table ON entries(tbl, epoch, lsn);
CREATE INDEX entries_by_room ON entries(tbl, room_new, epoch, lsn) WHERE room_new IS NOT NULL;
CREATE INDEX entries_by_room_left ON entries(tbl, room_old, epoch, lsn)
    WHERE room_old IS NOT NULL AND room_old IS NOT room_new;
CREATE INDEX breaks_by_table ON entries(tbl, epoch, lsn) WHERE type = {ChangeType.BREAK.value};
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

_COLUMNS = "e.lsn, e.nonce, e.type, t.name, e.room_old, e.room_new, e.ts, e.data"


class LogWriter:
    """The one writer. Every method is called on the thread that made it."""

    def __init__(self, path: Path, *, database: Path) -> None:
        """Opens or creates the log. Raises `LogUnusable`."""
        self._path = path
        self._database = database
        created = not path.exists()
        try:
            self._db = _connect(path, database, created=created)
            self._tables: dict[str, int] = dict(self._db.execute("SELECT name, id FROM tables"))
        except sqlite3.Error as error:
            raise LogUnusable(os.fspath(path), str(error)) from error

    def close(self) -> None:
        self._db.close()

    # What the log knows of its source.

    def belongs_to(self, mark: SourceMark, *, just_installed: bool) -> str | None:
        """Why the history can't go on from `mark`, in a word, or None where it can.

        `just_installed`: the source held no capture, as a copy from before its first time does.
        Raises `ForeignLog` where the log is another database's.
        """
        known = dict(self._db.execute("SELECT key, value FROM meta"))
        if "install_id" not in known:
            return "new"
        if known["install_id"] != mark.install_id:
            if just_installed:
                return "restored"
            raise ForeignLog(os.fspath(self._database), os.fspath(self._path))
        if known["inode"] != mark.inode:
            return "replaced"
        if known["boot_id"] != mark.boot_id and known["clean"] != 1:
            return "unclean"
        return None

    def adopt(self, mark: SourceMark) -> None:
        """Takes note of the source; from here on a stop is unclean until `close_cleanly`."""
        with self._transaction():
            self._set_meta("install_id", mark.install_id)
            self._set_meta("inode", mark.inode)
            self._set_meta("boot_id", mark.boot_id)
            self._set_meta("clean", 0)

    def close_cleanly(self) -> None:
        """Writes the mark of a clean stop, fsynced, and closes the log."""
        self._db.execute("PRAGMA synchronous = FULL")
        self._set_meta("clean", 1)
        self.close()

    # History.

    def start_epoch(self, *, base_lsn: int, base_nonce: int | None, now_ms: int, reason: str) -> Epoch:
        """Begins a new history: the first entry in it will have LSN `base_lsn` + 1."""
        epoch = new_epoch()
        with self._transaction():
            self._db.execute(
                "INSERT INTO epochs(epoch, base_lsn, base_nonce, floor_lsn, started_ms, reason)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (epoch, base_lsn, base_nonce, base_lsn, now_ms, reason),
            )
        return epoch

    def state(self) -> LogState:
        return read_state(self._db)

    def tail(self) -> Tail:
        """The end of the present epoch; there must be one."""
        row = self._db.execute(
            "SELECT e.lsn, e.nonce, e.data FROM entries e"
            " WHERE e.epoch = (SELECT max(number) FROM epochs) ORDER BY e.lsn DESC LIMIT 1"
        ).fetchone()
        if row is not None:
            return Tail(*row)
        base = self._db.execute(
            "SELECT base_lsn, base_nonce FROM epochs ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return Tail(base[0], base[1], None)

    def append(self, epoch_number: int, entries: Sequence[Entry]) -> None:
        """Appends entries in one commit. Raises `LogConflict`; then nothing was written."""
        with self._transaction():
            rows = [
                (
                    epoch_number,
                    e.lsn,
                    e.nonce,
                    e.type.value,
                    self._table_id(e.table),
                    e.room_old,
                    e.room_new,
                    e.timestamp_ms,
                    e.data,
                )
                for e in entries
            ]
            try:
                self._db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.IntegrityError as error:
                raise LogConflict(f"an LSN from {entries[0].lsn} on is in the log already") from error

    def sync(self) -> None:
        """Returns when every entry so far is on the disk."""
        # A commit under FULL fsyncs the WAL, and with it all commits before
        # (sqlite.org/pragma.html#pragma_synchronous).
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._set_meta("synced_lsn", self.tail().lsn)
        finally:
            self._db.execute("PRAGMA synchronous = NORMAL")

    def checkpoint(self) -> None:
        """Moves the WAL into the database file, as far as readers allow. For idle moments."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def size_bytes(self) -> int:
        """What the entries take on disk: pages in use, without those that retention freed."""
        pages: int
        free: int
        size: int
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return (pages - free) * size

    def retain(self, retention: Retention, *, now_ms: int) -> int:
        """Deletes the oldest entries that a bound no longer covers, at most `RETAIN_ROWS_MAX`.

        Returns how many went; call again while it is not 0. An epoch goes with its last entry.
        """
        state = self.state()
        oldest = state.epochs[0]
        present = state.present
        kept_min = 1 if oldest is present else 0
        held = oldest.head_lsn - oldest.floor_lsn
        if held == kept_min or held == 0:
            return self._drop_epoch(oldest) if oldest is not present else 0
        entries = sum(info.head_lsn - info.floor_lsn for info in state.epochs)
        surplus = max(0, entries - retention.changes_max)
        if self.size_bytes() > retention.bytes_max:
            surplus = RETAIN_ROWS_MAX
        aged = self._aged(oldest, int(now_ms - retention.age_s * 1000))
        count = min(max(surplus, aged), RETAIN_ROWS_MAX, held - kept_min)
        if count <= 0:
            return 0
        floor = oldest.floor_lsn + count
        with self._transaction():
            self._db.execute("DELETE FROM entries WHERE epoch = ? AND lsn <= ?", (oldest.number, floor))
            self._db.execute("UPDATE epochs SET floor_lsn = ? WHERE number = ?", (floor, oldest.number))
        return count

    def _aged(self, oldest: EpochInfo, before_ms: int) -> int:
        """How many of the oldest entries were committed before `before_ms`."""
        # The first one that is young enough ends the count: writers' clocks may step back, and an
        # entry is never let go before all that precede it.
        row = self._db.execute(
            "SELECT lsn FROM (SELECT lsn, ts FROM entries WHERE epoch = ? ORDER BY lsn LIMIT ?)"
            " WHERE ts >= ? ORDER BY lsn LIMIT 1",
            (oldest.number, RETAIN_ROWS_MAX, before_ms),
        ).fetchone()
        return RETAIN_ROWS_MAX if row is None else int(row[0] - oldest.floor_lsn - 1)

    def _drop_epoch(self, info: EpochInfo) -> int:
        with self._transaction():
            self._db.execute("DELETE FROM epochs WHERE number = ?", (info.number,))
        return 1

    def _table_id(self, name: str) -> int:
        if name not in self._tables:
            cursor = self._db.execute("INSERT INTO tables(name) VALUES (?)", (name,))
            assert cursor.lastrowid is not None
            self._tables[name] = cursor.lastrowid
        return self._tables[name]

    def _set_meta(self, key: str, value: str | int) -> None:
        self._db.execute(
            "INSERT INTO meta(key, value) VALUES (?, ?)"
            " ON CONFLICT(key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        tables = dict(self._tables)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._tables = tables
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


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


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that can't change the log. Raises `LogUnusable`."""
    try:
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        _check_is_log(connection, path)
    except sqlite3.Error as error:
        raise LogUnusable(os.fspath(path), str(error)) from error
    return connection


def read_state(db: sqlite3.Connection) -> LogState:
    """The epochs and their bounds, each found at an end of the key: quick for any size of log."""
    rows = db.execute(
        "SELECT number, epoch, floor_lsn,"
        " coalesce((SELECT max(lsn) FROM entries WHERE epoch = number), floor_lsn)"
        " FROM epochs ORDER BY number"
    )
    return LogState(tuple(EpochInfo(*row) for row in rows))


def _connect(path: Path, database: Path, *, created: bool) -> sqlite3.Connection:
    if created:
        status = database.stat()
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, status.st_mode & 0o777))
        path.chmod(status.st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(path, status.st_uid, status.st_gid)
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES_MAX}").fetchall()
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
            # A crash between creation and here leaves an empty file, which is completed.
            connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
        _check_is_log(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_is_log(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        connection.close()
        raise LogUnusable(os.fspath(path), "it is not a change log")
    if version != SCHEMA_VERSION:
        connection.close()
        raise LogUnusable(
            os.fspath(path), f"its format is {version}, this cdchub reads {SCHEMA_VERSION}"
        )


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
