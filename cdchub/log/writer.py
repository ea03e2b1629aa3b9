"""Writing the log: appends, epochs, retention. One writer, the tailer's thread.

Commits are not fsynced one by one (synchronous NORMAL); after `sync` everything so far is, and only
that far may the outbox be pruned. A second row under a key is refused (`LogConflict`): it would be
another history under the same names.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cdchub.catalog import TableSchema
from cdchub.change import Entry
from cdchub.errors import ForeignLog, LogUnusable
from cdchub.log import bases, retention
from cdchub.log.blocks import LSN_MAX, Block, key_of, pack
from cdchub.log.file import mark_of, open_to_write, read_state
from cdchub.log.protocol import (
    BaseChunk,
    BaseInfo,
    KnownRows,
    LogConflict,
    LogState,
    Retention,
    SourceMark,
    Tail,
)
from cdchub.log.replay import GaveUp, advance, replica_at
from cdchub.log.replica import Replica
from cdchub.position import Epoch, new_epoch


class LogWriter:
    """The one writer. Every method is called on the thread that made it."""

    def __init__(
        self,
        path: Path,
        *,
        database: Path,
        left: str = "",
        reached_lsn: int = 0,
        last_number: int = 0,
        note: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Opens or creates the log. Raises `LogUnusable`.

        `left` is the file's mark at its last clean stop (`mark_of`), `reached_lsn` what `note` was told
        last by a writer that was killed; as far as they are known. `last_number`: of the epochs that
        this hub knows.
        """
        self._path = path
        self._stopped_cleanly = bool(left)
        # An older copy of log and database together fits in all else.
        self.is_copy = bool(left) and left != mark_of(path)
        self._reached_lsn = reached_lsn
        self._note = note
        self._database = database
        # Epochs are told apart by their numbers while a hub runs, also those of a log that is gone.
        self._last_number = last_number
        self._open()

    def _open(self) -> None:
        try:
            self._db = open_to_write(self._path, self._database)
            self._inode = self._path.stat().st_ino
            self._tables: dict[str, int] = dict(self._db.execute("SELECT name, id FROM tables"))
            (number,) = self._db.execute("SELECT coalesce(max(number), 0) FROM epochs").fetchone()
            self._last_number = max(self._last_number, number)
        except sqlite3.Error as error:
            raise LogUnusable(os.fspath(self._path), str(error)) from error

    def close(self) -> None:
        self._db.close()

    def is_gone(self) -> bool:
        """Whether the file was deleted, or another one is in its place."""
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def begin_anew(self) -> None:
        """After the file was deleted: begins a new one, or takes up the one in its place.

        Raises `LogUnusable`; to be tried again then.
        """
        # First: SQLite deletes the -wal of its name when it closes, and a new log's has the same.
        self.close()
        self._open()

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
            if just_installed or known.get("expected_id") == mark.install_id:
                return "restored"
            raise ForeignLog(os.fspath(self._database), os.fspath(self._path))
        if known["inode"] != mark.inode:
            return "replaced"
        if known["boot_id"] != mark.boot_id and known["clean"] != 1:
            return "unclean"
        if self.is_copy or (self._stopped_cleanly and known["clean"] != 1):
            # Another file than the one that was left, or a copy that was taken while a hub ran.
            return "restored"
        if self._head_lsn() < self._reached_lsn:
            return "restored"
        return None

    def expect(self, install_id: str) -> None:
        """The source is about to get capture anew, under this id."""
        self._set_meta("expected_id", install_id)

    def adopt(self, mark: SourceMark) -> None:
        """Takes note of the source; from here on a stop is unclean until `close_cleanly`."""
        self._stopped_cleanly = self.is_copy = False
        self._reached_lsn = 0
        self._note(self._head_lsn())
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

    def close_as_found(self, left: str) -> str:
        """Closes a log that was opened for nothing. Returns its mark, which was `left`; empty where it
        can't be left in order."""
        if not left or self.is_copy:
            self.close()
            return left
        try:
            self.close_cleanly()
        except sqlite3.Error:
            self.close()
            return ""
        return mark_of(self._path)

    # History.

    def start_epoch(self, *, base_lsn: int, base_nonce: int | None, now_ms: int, reason: str) -> Epoch:
        """Begins a new history: the first entry in it will have LSN `base_lsn` + 1."""
        epoch = new_epoch()
        with self._transaction():
            self._db.execute(
                "INSERT INTO epochs VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self._last_number + 1, epoch, base_lsn, base_nonce, base_lsn, now_ms, reason),
            )
        self._last_number += 1
        return epoch

    def state(self) -> LogState:
        return read_state(self._db)

    def _head_lsn(self) -> int:
        state = self.state()
        return state.present.head_lsn if state.epochs else 0

    def tail(self) -> Tail:
        """The end of the present epoch; there must be one."""
        number, base_lsn, base_nonce = self._db.execute(
            "SELECT number, base_lsn, base_nonce FROM epochs ORDER BY number DESC LIMIT 1"
        ).fetchone()
        row = self._db.execute(
            "SELECT last_lsn, nonce, data FROM blocks WHERE id >= ? ORDER BY id DESC LIMIT 1",
            (key_of(number, 0),),
        ).fetchone()
        if row is None:
            return Tail(base_lsn, base_nonce, None)
        return Tail(row[0], row[1], row[2].rpartition(b"\n")[2])

    def append(
        self, epoch_number: int, entries: Sequence[Entry], *, nonce: int, timestamp_ms: int
    ) -> None:
        """Appends entries in one commit. `nonce` is that of the last one's row.

        Raises `LogConflict` where they don't follow what is there; then nothing was written.
        """
        first, last = entries[0].lsn, entries[-1].lsn
        if [entry.lsn for entry in entries] != list(range(first, last + 1)):
            raise LogConflict(f"the LSNs from {first} to {last} are not all there, in order")
        with self._transaction():
            self._check_follows(epoch_number, first)
            for table in {entry.table for entry in entries} - self._tables.keys():
                self._add_table(table)
            for block in pack(entries, self._tables):
                last_nonce = nonce if block.last_lsn == last else None
                self._write(key_of(epoch_number, block.first_lsn), block, last_nonce, timestamp_ms)
        self._note(last)

    def _check_follows(self, epoch_number: int, first_lsn: int) -> None:
        newest = self._db.execute("SELECT id, last_lsn FROM blocks ORDER BY id DESC LIMIT 1").fetchone()
        if newest is None:
            return
        number = newest[0] >> LSN_MAX.bit_length()
        if key_of(epoch_number, first_lsn) <= key_of(number, newest[1]):
            raise LogConflict(f"LSN {first_lsn} is in the log already, which has {newest[1]}")
        if number == epoch_number and first_lsn != newest[1] + 1:
            raise LogConflict(f"LSN {first_lsn} doesn't follow {newest[1]}, the log's last one")

    def _write(self, key: int, block: Block, nonce: int | None, timestamp_ms: int) -> None:
        self._db.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
            (key, block.last_lsn, nonce, timestamp_ms, block.index, block.data),
        )
        for table in block.tables:
            self._db.execute("INSERT INTO block_tables VALUES (?, ?)", (table, key))
        for table in block.breaks:
            self._db.execute("INSERT INTO block_breaks VALUES (?, ?)", (table, key))
        if block.rooms:
            self._db.executemany(
                "INSERT INTO block_rooms VALUES (?, ?, ?)",
                [(table, room, key) for table, room in block.rooms],
            )

    def bytes_since(self, epoch_number: int, lsn: int) -> int:
        """How many bytes of changes the log holds after `lsn`, about."""
        (size,) = self._db.execute(
            "SELECT coalesce(sum(length(data)), 0) FROM blocks WHERE id > ?",
            (key_of(epoch_number, lsn),),
        ).fetchone()
        return int(size)

    # Base snapshots.

    def bases(self) -> list[BaseInfo]:
        return bases.read_bases(self._db)

    def begin_base(
        self, epoch_number: int, lsn: int, tables: Sequence[TableSchema], *, now_ms: int
    ) -> int:
        with self._transaction():
            return bases.begin(self._db, epoch_number, lsn, tables, now_ms=now_ms)

    def add_to_base(self, base_id: int, chunks: Sequence[BaseChunk]) -> None:
        with self._transaction():
            bases.add(self._db, base_id, chunks)

    def finish_base(self, base_id: int, *, rows: int, bytes: int) -> None:
        with self._transaction():
            bases.finish(self._db, base_id, rows=rows, bytes=bytes)

    def drop_unfinished_base(self) -> None:
        with self._transaction():
            bases.drop_unfinished(self._db)

    def known_rows(
        self,
        tables: Sequence[str],
        *,
        rows_max: int,
        as_told: bool = False,
        give_up: Callable[[], bool] = lambda: False,
    ) -> Replica | None:
        """What these tables hold by the log, at its head; None where there is no base snapshot.

        A table with more than `rows_max` rows may count as unknown. `as_told`: as followers were
        told by changes, from the oldest base that will do: a later one may hold what escaped capture.
        None also when `give_up` says that nobody can wait longer.
        """
        present = self.state().present
        number, head_lsn = present.number, present.head_lsn
        usable = [each for each in self.bases() if each.epoch == number and each.lsn <= head_lsn]
        known = None
        for base in range(len(usable)) if as_told else (-1,):
            if known is not None:
                known.close()
            try:
                known = replica_at(
                    self._db,
                    number,
                    head_lsn,
                    tables=tables,
                    rows_max=rows_max,
                    base=base,
                    give_up=give_up,
                )
            except GaveUp:
                return None
            if known is None or all(map(known.knows, tables)):
                break
        return known

    def catch_up(self, known: KnownRows) -> None:
        """Brings what `known_rows` gave to the log's present head."""
        assert isinstance(known, Replica)
        present = self.state().present
        advance(self._db, known, present.number, present.head_lsn)

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

    def retain(self, bounds: Retention, *, now_ms: int) -> int:
        """Lets go of what the bounds no longer cover, a slice at a time.

        Returns 0 when there is nothing left to do; call again until then. An epoch goes with its
        last entry.
        """
        state = self.state()
        with self._transaction():
            gone = retention.sweep(self._db, state)
            if gone:
                return gone
            wanted_lsn = self._wanted_floor(state, bounds, now_ms)
            floor = retention.floor_for(self._db, state, wanted_lsn, to_bases=bounds.to_bases)
            if floor is None:
                return 0
            oldest = state.epochs[0]
            if oldest is not state.present and floor >= oldest.head_lsn:
                self._db.execute("DELETE FROM epochs WHERE number = ?", (oldest.number,))
                bases.discard(self._db, "epoch = ?", (oldest.number,))
            else:
                self._db.execute(
                    "UPDATE epochs SET floor_lsn = ? WHERE number = ?", (floor, oldest.number)
                )
                bases.discard(self._db, "epoch = ? AND lsn < ?", (oldest.number, floor))
            return 1

    def overdue(self, bounds: Retention, *, now_ms: int) -> bool:
        """Whether a bound is exceeded, which only a newer base snapshot would let be met."""
        state = self.state()
        return self._wanted_floor(state, bounds, now_ms) > state.epochs[0].floor_lsn

    def _wanted_floor(self, state: LogState, bounds: Retention, now_ms: int) -> int:
        return retention.wanted_floor(
            self._db, state, bounds, now_ms=now_ms, size_bytes=self.size_bytes()
        )

    def _add_table(self, name: str) -> None:
        cursor = self._db.execute("INSERT INTO tables(name) VALUES (?)", (name,))
        assert cursor.lastrowid is not None
        self._tables[name] = cursor.lastrowid

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
