"""The log's file: a SQLite database of its own beside the source.

Invariants: the key is (epoch number, LSN), joined into one integer (`blocks.key_of`); within an
epoch LSNs are contiguous from its first to its head; an entry is never changed. The standard
library's sqlite3 is used for the log and only here: the source has its own driver, and no file is
opened by both.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from cdchub.errors import LogUnusable
from cdchub.log.blocks import LSN_MAX
from cdchub.log.protocol import EpochInfo, LogState

# Marks the file as a change log of ours ("CDCL"), see sqlite.org/pragma.html#pragma_application_id.
APPLICATION_ID = 0x4344434C
SCHEMA_VERSION = 2

# The WAL is checkpointed when the writer is idle; this bound (16 MiB) is for a writer that never is.
WAL_PAGES_MAX = 4_096

_SCHEMA = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE epochs(
    number INTEGER PRIMARY KEY, epoch TEXT NOT NULL UNIQUE, base_lsn INTEGER NOT NULL,
    base_nonce INTEGER, floor_lsn INTEGER NOT NULL, started_ms INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE tables(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE blocks(
    id INTEGER PRIMARY KEY, last_lsn INTEGER NOT NULL, nonce INTEGER, ts INTEGER NOT NULL,
    entries BLOB NOT NULL, data BLOB NOT NULL);
CREATE TABLE block_tables(tbl INTEGER, block INTEGER, PRIMARY KEY(tbl, block)) WITHOUT ROWID;
CREATE TABLE block_rooms(tbl INTEGER, room, block INTEGER, PRIMARY KEY(tbl, room, block))
    WITHOUT ROWID;
CREATE TABLE block_breaks(tbl INTEGER, block INTEGER, PRIMARY KEY(tbl, block)) WITHOUT ROWID;
CREATE TABLE bases(
    id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, lsn INTEGER NOT NULL, complete INTEGER NOT NULL,
    taken_ms INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, tables TEXT NOT NULL);
CREATE TABLE base_chunks(
    id INTEGER PRIMARY KEY, base INTEGER NOT NULL, tbl TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX chunks_by_base ON base_chunks(base, tbl);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


def mark_of(path: Path) -> str:
    """Tells this file, as it is now, from every copy of it, in whichever way it was put back; empty
    where there is none. Nobody can set a ctime back (inode(7))."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ""
    return f"{status.st_ino} {status.st_ctime_ns}"


def open_to_write(path: Path, database: Path) -> sqlite3.Connection:
    """The log, created if it isn't there, with the mode and owner of `database`.

    Raises `LogUnusable` or sqlite3's errors.
    """
    if not path.exists():
        _create(path, database)
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
    try:
        _check_is_log(connection, path)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES_MAX}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, database: Path) -> None:
    """Makes the log under another name and renames it, so that nobody meets half of one."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    status = database.stat()
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, status.st_mode & 0o777))
    new.chmod(status.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(new, status.st_uid, status.st_gid)
    connection = sqlite3.connect(new, isolation_level=None)
    try:
        connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
    finally:
        connection.close()
    for suffix in ("-wal", "-shm"):
        # What is left of a log that was deleted would be taken for this one's.
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    new.rename(path)


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
        "SELECT number, epoch, floor_lsn, coalesce((SELECT last_lsn FROM blocks"
        " WHERE id BETWEEN (number << 48) AND (number << 48) + ? ORDER BY id DESC LIMIT 1), base_lsn),"
        " (SELECT min(lsn) FROM bases WHERE epoch = number AND complete = 1 AND lsn >= floor_lsn)"
        " FROM epochs ORDER BY number",
        (LSN_MAX,),
    )
    return LogState(tuple(EpochInfo(*row) for row in rows))


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
