"""The two SQLite libraries behind one face: the standard library's and APSW's.

A process must use one library per database file: each has POSIX locks of its own, and the first that
closes the file drops the other's (sqlite.org/howtocorrupt.html §2.2). So a hub inside somebody's
application takes the library that the application uses, and `cdchub serve` takes APSW. Beyond this
module nothing knows which one it is: rows are tuples, and errors are `SqliteFault`s by kind.

What it does *not* do: open anything by itself; only `connection` does.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import sqlite3
import sys
import time
from collections.abc import Generator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from urllib.parse import quote

import apsw

from cdchub.change import SqliteValue
from cdchub.errors import CdchubError, DriverConflict, LibraryTooOld

Row = tuple[Any, ...]


class Driver(Enum):
    """Which library opens the source."""

    SQLITE3 = "sqlite3"
    APSW = "apsw"


class SqliteFault(CdchubError):
    """What SQLite refused. `code` is its primary result code (sqlite.org/rescode.html)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Busy(SqliteFault):
    """Somebody else holds the lock."""

    retryable: ClassVar[bool] = True


class ConstraintFailed(SqliteFault):
    pass


class Damaged(SqliteFault):
    """No database, a corrupt page, or a disk that can't be read."""


class Unwritable(SqliteFault):
    """A full disk, or a file that may not be opened or written."""


class BadStatement(SqliteFault):
    """The statement doesn't fit the database: a table or a column is not there."""


_KINDS: dict[int, type[SqliteFault]] = {
    1: BadStatement,
    3: Unwritable,
    5: Busy,
    6: Busy,
    8: Unwritable,
    10: Damaged,
    11: Damaged,
    13: Unwritable,
    14: Unwritable,
    19: ConstraintFailed,
    26: Damaged,
}
NOT_A_DATABASE = 26
DISK_FULL = 13


def _raise(error: Exception) -> NoReturn:
    """The same fault, whichever library said it."""
    # APSW has the primary code in `result`, sqlite3 the extended one: its low byte is the primary.
    code = int(getattr(error, "result", 0) or getattr(error, "sqlite_errorcode", 1)) & 0xFF
    raise _KINDS.get(code, SqliteFault)(str(error), code) from error


_FAULTS = (apsw.Error, sqlite3.Error)


class Connection:
    """A connection to the source. Every method raises `SqliteFault`.

    TEXT that is not UTF-8 can't be read as text: reading it raises `UnicodeDecodeError`.
    """

    def __init__(self, path: str, driver: Driver, *, read_only: bool) -> None:
        self.driver = driver
        try:
            self._raw: Any = _OPENERS[driver](path, read_only=read_only)
        except _FAULTS as error:
            _raise(error)

    def execute(self, sql: str, parameters: Sequence[SqliteValue] = ()) -> list[Row]:
        """All rows of a statement."""
        try:
            return self._raw.execute(sql, parameters).fetchall()  # type: ignore[no-any-return]
        except _FAULTS as error:
            _reject_broken_text(error)
            _raise(error)

    def iterate(self, sql: str, parameters: Sequence[SqliteValue] = ()) -> Generator[Row]:
        """The rows of a statement, as they are asked for."""
        try:
            yield from self._raw.execute(sql, parameters)
        except _FAULTS as error:
            _reject_broken_text(error)
            _raise(error)

    def value(self, sql: str, parameters: Sequence[SqliteValue] = ()) -> Any:
        """The first value of the first row, or None where there is no row."""
        rows = self.execute(sql, parameters)
        return rows[0][0] if rows else None

    def pragma(self, name: str, setting: str | int | None = None) -> Any:
        return self.value(f"PRAGMA {name}" if setting is None else f"PRAGMA {name} = {setting}")

    def set_busy_timeout(self, timeout_s: float) -> None:
        self.pragma("busy_timeout", int(timeout_s * 1000))

    def changes(self) -> int:
        """How many rows the last statement changed."""
        return int(self.value("SELECT changes()"))

    @property
    def in_transaction(self) -> bool:
        return bool(self._raw.in_transaction)

    def close(self) -> None:
        self._raw.close()

    def abandon(self) -> None:
        """Closes a connection whose files were replaced or deleted under it.

        An ordinary close may be the last one of its -wal: SQLite would then write the old -wal's
        pages into the database, and delete what lies under its name now, which is somebody else's.
        """
        if self.driver is Driver.APSW:
            self._raw.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        elif sys.version_info >= (3, 12):
            self._raw.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        else:
            _set_config(self._raw, apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
        self._raw.close()


def _set_config(raw: sqlite3.Connection, option: int) -> None:
    """`setconfig` of Python 3.12, for 3.11: there a connection's first field is its `sqlite3 *`
    (Modules/_sqlite/connection.h)."""
    handle = ctypes.c_void_p.from_address(id(raw) + object.__basicsize__)
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    if library.sqlite3_db_config(handle, option, ctypes.c_int(1), ctypes.c_void_p(None)) != 0:
        raise SqliteFault("the connection can't be closed without a checkpoint", 1)


def _reject_broken_text(error: Exception) -> None:
    # sqlite3 has no error of its own for it (Modules/_sqlite/cursor.c, "Could not decode to UTF-8").
    if isinstance(error, sqlite3.OperationalError) and "Could not decode" in str(error):
        raise UnicodeDecodeError("utf-8", b"", 0, 0, str(error)) from error


def _open_apsw(path: str, *, read_only: bool) -> apsw.Connection:
    return apsw.Connection(path, apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE)


def _open_sqlite3(path: str, *, read_only: bool) -> sqlite3.Connection:
    uri = f"file:{quote(path)}?mode={'ro' if read_only else 'rw'}"
    # Threads hand a connection on, but never share it.
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


# `PRAGMA table_list` came with it: it alone tells a shadow table from a user's.
_VERSION_MIN = (3, 37, 0)


def require_recent_library(path: str, driver: Driver) -> None:
    """Raises `LibraryTooOld` where Python's SQLite can't be a hub's. APSW brings a recent one."""
    if driver is Driver.SQLITE3 and sqlite3.sqlite_version_info < _VERSION_MIN:
        needed = ".".join(map(str, _VERSION_MIN[:2]))
        raise LibraryTooOld(path, found=sqlite3.sqlite_version, needed=needed)


_OPENERS = {Driver.APSW: _open_apsw, Driver.SQLITE3: _open_sqlite3}


def require_one_library(path: str, driver: Driver) -> None:
    """Raises `DriverConflict` where the other library has this file open in this process.

    APSW lists its connections; the standard library doesn't, but the system lists the descriptors.
    """
    by_apsw = any(_is_open_on(connection, path) for connection in apsw.connections())
    if driver is Driver.SQLITE3 and by_apsw:
        raise DriverConflict(path, wanted="sqlite3", found="apsw")
    if driver is Driver.APSW and not by_apsw and _descriptors_of(path):
        raise DriverConflict(path, wanted="apsw", found="sqlite3")


def _is_open_on(connection: apsw.Connection, path: str) -> bool:
    for _ in range(_ASK_TIMES):
        try:
            return bool(connection.filename) and _same_file(connection.filename, path)
        except apsw.ThreadingViolationError:
            # Another thread is in the middle of a call on it.
            time.sleep(_ASK_AGAIN_S)
        except apsw.ConnectionClosedError:
            return False
    return False


# How often, and after what pauses, a connection is asked that another thread is using.
_ASK_TIMES, _ASK_AGAIN_S = 100, 0.001


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _descriptors_of(path: str) -> int:
    """How many descriptors of this process are open on the file; 0 where the system can't tell."""
    try:
        descriptors = list(Path("/proc/self/fd").iterdir())
    except OSError:
        return 0
    return sum(_same_file(os.fspath(descriptor), path) for descriptor in descriptors)
