"""Writing the log: appends, epochs, retention. One writer, the tailer's thread.

Commits are not fsynced one by one (synchronous NORMAL); after `sync` everything so far is, and only
that far may the outbox be pruned. A second row under a key is refused (`LogConflict`): it would be
another history under the same names.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cdchub.change import Entry
from cdchub.errors import ForeignLog, LogUnusable
from cdchub.log.file import open_to_write, read_state
from cdchub.log.protocol import EpochInfo, LogConflict, LogState, Retention, SourceMark, Tail
from cdchub.position import Epoch, new_epoch

# Deleted in one go by retention: some milliseconds of the log's writer, so that an append never
# waits longer than that.
RETAIN_ROWS_MAX = 2_000


class LogWriter:
    """The one writer. Every method is called on the thread that made it."""

    def __init__(self, path: Path, *, database: Path) -> None:
        """Opens or creates the log. Raises `LogUnusable`."""
        self._path = path
        self._database = database
        try:
            self._db = open_to_write(path, database)
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
            # A commit that changes nothing would write nothing, and sync nothing.
            self._set_meta("synced_ns", time.time_ns())
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
