"""An open source: the tailing connection, what is captured, and where reading has got to.

It is made anew when the database is replaced under the hub. It only reads, beyond what `install`
does in the tailer's transactions.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from cdchub.capture import install
from cdchub.capture.commits import CommitEnds
from cdchub.capture.connection import FileIdentity, SourcePaths, open_source, require_wal
from cdchub.capture.decode import Decoder
from cdchub.capture.outbox import (
    LSN,
    VALUES,
    Anchor,
    HistoryBroken,
    OutboxRow,
    check_empty,
    outbox_head,
    read_rows,
)
from cdchub.capture.progress import CaptureCounters, Progress
from cdchub.capture.transactions import Transactions
from cdchub.capture.triggers import OUTBOX
from cdchub.change import Entry, as_break, transaction_mark
from cdchub.errors import StartError
from cdchub.log.protocol import SourceMark, Tail

logger = logging.getLogger("cdchub.capture")

_TOO_LARGE = (
    "a change of table %r, LSN %d, has %d bytes as JSON, which is too much to log and stream: the "
    "table's followers are reset; keep such a column out with --exclude %s.COLUMN"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one read snapshot, whose newest row is at `head_lsn`."""

    rows: list[OutboxRow]
    head_lsn: int

    @property
    def is_cut(self) -> bool:
        """Whether the snapshot has more."""
        return bool(self.rows) and self.rows[-1][LSN] < self.head_lsn


class Source:
    """Raises `StartError` where it can't be opened."""

    def __init__(self, paths: SourcePaths, counters: CaptureCounters) -> None:
        self.paths = paths
        self._counters = counters
        self._inode = paths.database.stat().st_ino
        self.connection = open_source(paths)
        self._commit_ends = CommitEnds(paths.wal)
        self._files: FileIdentity | None = None
        self._closed = False
        try:
            require_wal(self.connection, paths)
            # A prune need not be durable, and must not hold the write lock for an fsync.
            self.connection.pragma("synchronous", "normal")
        except BaseException:
            self.close()
            raise
        self.schema_version = -1
        self.begin(Tail(0, None, None))

    def check_not_replaced(self) -> None:
        """Raises `StartError` where the file was replaced while it was being opened."""
        # Now that SQLite has opened the -wal too, these are the files we are reading.
        self._files = FileIdentity(self.paths)
        if self.paths.database.stat().st_ino != self._inode:
            raise StartError(f"{self.paths.database} was replaced while it was being opened")

    def replaced(self) -> bool:
        """Whether the database or its -wal is another file now."""
        return self._files is not None and self._files.changed()

    def close(self) -> None:
        """Closes, without touching the files where they are somebody else's by now."""
        if not self._closed:
            self._closed = True
            if self.replaced():
                self.connection.abandon()
            else:
                self.connection.close()
            self._commit_ends.close()

    # What is captured.

    def load(self) -> None:
        """Reads what is installed. The source must have capture."""
        self.take(install.load(self.connection))

    def take(self, captured: install.Captured) -> None:
        self.captured = captured
        self._width = 2
        self._decoder = Decoder(captured)
        self._sequence_page = self.connection.value(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_sequence'"
        )

    def mark(self) -> SourceMark:
        """What the log shall remember of the source as it is now."""
        return SourceMark(self.captured.install_id, self.paths.database.stat().st_ino, _boot_id())

    def schema_changed(self) -> bool:
        """Whether the schema is another one than at the last reconciliation. Raises `HistoryBroken`."""
        if self.connection.pragma("schema_version") == self.schema_version:
            return False
        before = self.captured.install_id
        self.load()
        if self.captured.install_id != before:
            raise HistoryBroken("it was captured elsewhere")
        return True

    # Reading.

    def begin(self, tail: Tail) -> None:
        """Reading goes on behind the log's tail."""
        # Of another history it would tell wrong ends.
        self._commit_ends.close()
        self._commit_ends = CommitEnds(self.paths.wal)
        self._transactions = Transactions(head_lsn=tail.lsn)
        pruned_lsn = tail.lsn
        if tail.data is not None:
            txid, commit = transaction_mark(tail.data)
            self._transactions = Transactions(head_lsn=tail.lsn, open_txid=None if commit else txid)
        if tail.lsn:
            oldest = self.connection.value(f"SELECT min(lsn) FROM {OUTBOX}")
            pruned_lsn = tail.lsn if oldest is None else oldest - 1
        anchor = Anchor(tail.lsn, tail.nonce)
        self.progress = Progress(anchor, pruned_lsn=pruned_lsn, now_s=time.monotonic())

    def read_batch(self, limit: int) -> Batch:
        """The next rows. To be called in a transaction. Raises `HistoryBroken`."""
        anchor = self.progress.anchor
        if anchor.nonce is None:
            check_empty(self.connection, anchor)
        rows = read_rows(
            self.connection,
            after=anchor,
            captured=self.captured,
            limit=limit,
            width=self._width,
        )
        if not rows:
            return Batch(rows, anchor.lsn)
        self._width = len(rows[0]) - VALUES
        # Large rows make a short batch.
        head_lsn = outbox_head(self.connection).lsn
        self._learn_ends(head_lsn)
        return Batch(rows, head_lsn)

    def _learn_ends(self, head_lsn: int) -> None:
        known_lsn = self._transactions.known_lsn
        if head_lsn <= known_lsn:
            return
        ends = self._commit_ends.upto(
            after=known_lsn, head=head_lsn, root_page=self._sequence_page, held=True
        )
        if ends is None:
            self._counters.commits_merged += 1
        else:
            self._counters.commits_exact += len(ends)
        self._transactions.learn(ends, head_lsn=head_lsn)

    def entries(self, batch: Batch, *, change_bytes_max: int) -> list[Entry]:
        """The rows as entries; one that is larger is a break in its table's history instead."""
        rows = batch.rows
        txids, commits = self._transactions.marks(rows[0][LSN], rows[-1][LSN])
        entries = self._decoder.entries(rows, txids, commits)
        if max([len(entry.data) for entry in entries]) <= change_bytes_max:
            return entries
        for place, entry in enumerate(entries):
            if len(entry.data) > change_bytes_max:
                self._counters.changes_too_large += 1
                logger.warning(_TOO_LARGE, entry.table, entry.lsn, len(entry.data), entry.table)
                entries[place] = as_break(entry)
        return entries


def _boot_id() -> str:
    """Names the present run of the operating system; empty where it can't be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
