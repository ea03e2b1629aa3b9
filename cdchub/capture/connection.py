"""The only module that opens the source, and the lock that makes it one hub's own.

Everything here goes through one SQLite library, the source's `driver`. A second library on the same
file in the same process would drop the first one's POSIX locks when it closes the file
(sqlite.org/howtocorrupt.html §2.2), and so would a plain `open()` of the database or its `-shm`: so
nothing in cdchub opens either by hand, and file identity comes from `stat`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdchub.capture.driver import (
    NOT_A_DATABASE,
    Busy,
    Connection,
    Damaged,
    Driver,
    Unwritable,
    require_one_library,
    require_recent_library,
)
from cdchub.errors import (
    NotADatabase,
    SourceBusy,
    SourceMissing,
    SourceNotWal,
    SourceOwned,
    SourceReadOnly,
)

# How long a command waits for a writer before it gives up; the usual web request is far shorter.
BUSY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class SourcePaths:
    """The source, the library that opens it, and the files that cdchub keeps beside it, which are
    named like SQLite's own `-wal`."""

    database: Path
    driver: Driver = Driver.APSW

    @property
    def wal(self) -> Path:
        return self._beside("-wal")

    @property
    def log(self) -> Path:
        return self._beside("-cdchub")

    @property
    def log_wal(self) -> Path:
        return self._beside("-cdchub-wal")

    @property
    def lock(self) -> Path:
        return self._beside("-cdchub.lock")

    def _beside(self, suffix: str) -> Path:
        return self.database.with_name(self.database.name + suffix)


def source_paths(database: str | os.PathLike[str], driver: Driver = Driver.APSW) -> SourcePaths:
    """The paths of a source. Symbolic links are followed, so that one file has one owner.

    Raises `SourceMissing`; `NotADatabase` for what is no regular file; `DriverConflict` where the
    other library has it open in this process; `LibraryTooOld`.
    """
    path = Path(os.path.realpath(database))
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SourceMissing(os.fspath(database)) from error
    if not stat.S_ISREG(mode):
        raise NotADatabase(os.fspath(database), "it is not a regular file")
    require_recent_library(os.fspath(path), driver)
    require_one_library(os.fspath(path), driver)
    return SourcePaths(path, driver)


def open_source(paths: SourcePaths, *, read_only: bool = False) -> Connection:
    """A connection to the source, which is checked to be a database.

    Raises `NotADatabase`, `SourceReadOnly` or `SourceBusy`.
    """
    name = os.fspath(paths.database)
    if not read_only and not os.access(paths.database.parent, os.W_OK):
        raise SourceReadOnly(name, "its folder is read-only")
    with translated(paths):
        connection = Connection(name, paths.driver, read_only=read_only)
        try:
            connection.set_busy_timeout(BUSY_TIMEOUT_S)
            connection.execute("SELECT count(*) FROM sqlite_schema")
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def translated(paths: SourcePaths) -> Iterator[None]:
    """Turns what SQLite says of an unusable source into our own errors, in one line each."""
    name = os.fspath(paths.database)
    try:
        yield
    except Busy as error:
        raise SourceBusy(name, BUSY_TIMEOUT_S) from error
    except Unwritable as error:
        raise SourceReadOnly(name, str(error)) from error
    except Damaged as error:
        foreign = error.code == NOT_A_DATABASE
        why = "it has no SQLite header, or is encrypted" if foreign else str(error)
        raise NotADatabase(name, why) from error


def journal_mode(connection: Connection) -> str:
    return str(connection.pragma("journal_mode"))


def require_wal(connection: Connection, paths: SourcePaths) -> None:
    """Raises `SourceNotWal` unless the source is in WAL mode; nothing switches it unasked."""
    mode = journal_mode(connection)
    if mode != "wal":
        raise SourceNotWal(os.fspath(paths.database), mode)


def check_source(paths: SourcePaths) -> None:
    """Raises `StartError` where this can't be served, before anything is written beside it."""
    connection = open_source(paths)
    try:
        require_wal(connection, paths)
    finally:
        connection.close()


@contextlib.contextmanager
def transaction(connection: Connection, begin: str = "BEGIN") -> Iterator[None]:
    """BEGIN … COMMIT, rolled back on any error. A plain BEGIN takes the write lock only to write."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def write_transaction(connection: Connection) -> contextlib.AbstractContextManager[None]:
    """A transaction that holds the write lock from its beginning."""
    return transaction(connection, "BEGIN IMMEDIATE")


@contextlib.contextmanager
def read_transaction(connection: Connection) -> Iterator[None]:
    """One snapshot for several reads. Keep it short: a held snapshot makes the WAL grow."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


class FileIdentity:
    """Which files the paths name: it changes when the database or its `-wal` is replaced."""

    def __init__(self, paths: SourcePaths) -> None:
        self._paths = paths
        self.seen = self._look()

    def _look(self) -> tuple[int, int]:
        return _inode(self._paths.database), _inode(self._paths.wal)

    def changed(self) -> bool:
        return self._look() != self.seen


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


class Owner:
    """The lock on a source: held by one process, which leaves its pid in the lock file and how far the
    log has come, and after a clean stop the log's mark: beside the log, because no file can tell of
    itself that it is a copy.

    It is a file of its own, because a lock on the database file would be SQLite's.
    """

    def __init__(self, paths: SourcePaths) -> None:
        self._paths = paths
        self._descriptor: int | None = None
        # What the last owner left there: the log's mark, or the last LSN that it had put there.
        self.left = ""
        self.reached_lsn = 0

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> None:
        """Raises `SourceOwned` with the owner's pid, or `SourceReadOnly`."""
        try:
            descriptor = os.open(self._paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SourceReadOnly(os.fspath(self._paths.database), error.strerror or "") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner, _ = _owner_in(descriptor)
            os.close(descriptor)
            raise SourceOwned(os.fspath(self._paths.database), owner) from error
        try:
            killed, reached_lsn = _owner_in(descriptor)
            left = "" if killed is not None else os.pread(descriptor, _LOCK_BYTES, 0).decode().strip()
            like_database(self._paths, self._paths.lock)
            _write_owner(descriptor, reached_lsn)
        except BaseException:
            # Left open it would be a lock that nobody holds, and nobody gives back.
            os.close(descriptor)
            raise
        self.left, self.reached_lsn = left, reached_lsn
        self._descriptor = descriptor
        _owners().add(self)

    def note(self, lsn: int) -> None:
        """The log has come as far as this. Where that can't be written (a full disk), the last note
        stays, which says less and nothing wrong."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                _write_owner(self._descriptor, lsn)

    def release(self, leave: str = "") -> None:
        """Gives the lock back. The file stays: removing it would let two owners lock two files."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{leave}\n".encode() if leave else b"", 0)
            self.forget()

    def forget(self) -> None:
        """Closes the lock file as it is."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@functools.cache
def _owners() -> weakref.WeakSet[Owner]:
    """The locks of this process. A child that is forked without exec (`multiprocessing` can) would
    have them too, and keep them when this process has been killed."""
    owners: weakref.WeakSet[Owner] = weakref.WeakSet()

    def forget() -> None:
        for owner in owners:
            owner.forget()

    os.register_at_fork(after_in_child=forget)
    return owners


def owner_pid(paths: SourcePaths) -> int | None:
    """The pid of the hub that serves this source now, or None. Nothing is created."""
    try:
        descriptor = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner_in(descriptor)[0]
    finally:
        os.close(descriptor)
    return None


# The most that is in a lock file; it is always written as a whole.
_LOCK_BYTES = 100


def _owner_in(descriptor: int) -> tuple[int | None, int]:
    """The pid in a lock file and the LSN behind it; None and 0 where the last owner has stopped."""
    words = os.pread(descriptor, _LOCK_BYTES, 0).split()
    if len(words) == 3 and words[1] == b"at" and words[0].isdigit() and words[2].isdigit():
        return int(words[0]), int(words[2])
    return None, 0


def _write_owner(descriptor: int, lsn: int) -> None:
    text = f"{os.getpid()} at {lsn}"
    os.pwrite(descriptor, f"{text:<{_LOCK_BYTES - 1}}\n".encode(), 0)


def like_database(paths: SourcePaths, path: Path) -> None:
    """Gives a file beside the source the source's mode, and its owner where we may.

    A file that another user made already stays as that user made it.
    """
    status = paths.database.stat()
    if os.geteuid() in (0, path.stat().st_uid):
        path.chmod(stat.S_IMODE(status.st_mode))
    if os.geteuid() == 0:
        os.chown(path, status.st_uid, status.st_gid)
