"""Following a database file without a hub's help: the log, then the outbox above it. It only reads.

A hub may serve the file meanwhile, or not. While it does, rows move from the outbox into the log and
are pruned: if the outbox does not continue what was printed without a hole, the log has the rest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdchub.capture import install
from cdchub.capture.connection import (
    FileIdentity,
    SourcePaths,
    open_source,
    read_transaction,
    require_wal,
    translated,
)
from cdchub.capture.decode import Decoder
from cdchub.capture.driver import BadStatement
from cdchub.capture.outbox import LSN, NONCE, Anchor, HistoryBroken, outbox_head, read_rows
from cdchub.capture.snapshot import SnapshotStale, take_snapshot
from cdchub.capture.transactions import Transactions
from cdchub.capture.triggers import OUTBOX
from cdchub.capture.wake import Wake
from cdchub.catalog import Selection, SnapshotFormat
from cdchub.change import ChangeType, Entry
from cdchub.errors import NotCaptured, StartError
from cdchub.fanout import EntryRows, Gone, Matcher, View, resolve
from cdchub.log import LogReader
from cdchub.log.protocol import Cursor, Expired, LogState
from cdchub.position import Beginning, Epoch, Now, Since

_PAGE_ROWS = 1_000
_PAGE_BYTES = 4 * 2**20
_POLL_S = 0.1
_LOOK_S = 1.0
_SNAPSHOT_S = 3_600.0
# The commit may become visible a moment after the -wal was written.
_RECHECKS, _RECHECK_S = 10, 0.000_5


@dataclass(frozen=True, slots=True)
class Note:
    """Something about the stream that is no change: for standard error."""

    text: str


class Follower:
    """Reads one source for one selection. `items` yields the data of changes, and notes."""

    def __init__(self, paths: SourcePaths, tables: list[str], room: str | None) -> None:
        """Raises `StartError`, or `RequestError` for an unknown table or room."""
        self._paths = paths
        self._tables = tables
        self._room = room
        self._reader = LogReader(paths.log) if paths.log.exists() else None
        # Of the row at the cursor, where it is known: it must be the outbox's too.
        self._nonce: int | None = None
        # Whether the outbox did not continue from there when it was read last.
        self._broken = False
        # The log's last epoch, where that is not of this source: only the outbox tells of it then.
        self._foreign: int | None = None
        self._open()

    def close(self) -> None:
        self._connection.close()
        if self._reader is not None:
            self._reader.close()

    def items(self, since: Since, *, snapshot: bool, follow: bool) -> Iterator[bytes | Note]:
        """Changes as JSON, in order; ends at the present unless it is to follow. `snapshot`: the rows
        that are there come first, unless what follows a position can be told, as on a stream."""
        try:
            self._start(since)
        except StartError:
            if not snapshot:
                raise
            since = Now()
            self._start(since)
        if snapshot and isinstance(since, Now):
            yield from self._snapshot()
        elif isinstance(since, Beginning):
            yield from self._base()
        wake = Wake(self._paths.wal, poll_s=_POLL_S) if follow else None
        try:
            if wake is not None:
                wake.watch()
            while True:
                yield from self._read_all()
                if wake is None:
                    return
                wake.wait(_LOOK_S)
                if self._files.changed():
                    self._connection.close()
                    self._open()
                    wake.watch()
        finally:
            if wake is not None:
                wake.close()

    def _open(self) -> None:
        self._connection = open_source(self._paths, read_only=True)
        with translated(self._paths):
            require_wal(self._connection, self._paths)
            if not install.is_installed(self._connection):
                self._connection.close()
                raise NotCaptured(str(self._paths.database))
            self._load()
        self._files = FileIdentity(self._paths)

    def _load(self) -> None:
        captured = install.load(self._connection)
        catalog = self._catalog = captured.catalog()
        self._selection: Selection = catalog.select(catalog.names(self._tables or ["*"]), self._room)
        self._matcher = Matcher(self._selection, catalog)
        self._decoder = Decoder(captured)
        self._schema_version = self._connection.pragma("schema_version")

    def _start(self, since: Since) -> None:
        """Finds the cursor. Raises `StartError` for a position that can't be served."""
        head = outbox_head(self._connection)
        state = self._log_state()
        if state is None:
            # No hub has run yet: the outbox is all there is.
            oldest = self._connection.value(f"SELECT min(lsn) FROM {OUTBOX}")
            first = head.lsn if oldest is None else oldest - 1
            lsn = {Now: head.lsn, Beginning: first}.get(type(since), getattr(since, "lsn", first))
            if not first <= lsn <= head.lsn:
                raise StartError(f"position {lsn} is not in the outbox ({first} to {head.lsn})")
            self._cursor = Cursor(0, lsn)
            return
        source_head = max(head.lsn, state.present.head_lsn)
        view = View(state, source_head, source_head, source_head)
        found = resolve(since, view)
        if isinstance(found, Gone):
            raise StartError(f"this position can't be served ({found.reason}): use --snapshot")
        self._cursor = found

    @property
    def epoch(self) -> Epoch:
        """The history that the last item belongs to."""
        state = self._log_state()
        known = state is not None and self._foreign is None
        info = state.by_number(self._cursor.epoch) if state is not None and known else None
        # Before a hub has begun it there is only the outbox, and its history has no name.
        return Epoch("outbox") if info is None else info.epoch

    def _log_state(self) -> LogState | None:
        if self._reader is None and self._paths.log.exists():
            self._reader = LogReader(self._paths.log)
        state = None if self._reader is None else self._reader.state()
        return state if state is not None and state.epochs else None

    def _snapshot(self) -> Iterator[bytes | Note]:
        anchor = Anchor(self._cursor.lsn, None)
        folder = Path(tempfile.gettempdir())
        try:
            spool = take_snapshot(
                self._paths,
                self._selection,
                format=SnapshotFormat.CHANGES,
                anchor=anchor,
                timeout_s=_SNAPSHOT_S,
                folder=folder,
            )
        except SnapshotStale as error:
            raise NotCaptured(str(self._paths.database)) from error
        try:
            spool.file.seek(0)
            for line in spool.file:
                yield line.rstrip(b"\n")
        finally:
            spool.close()
        self._cursor, self._nonce = Cursor(self._cursor.epoch, spool.lsn), None

    def _base(self) -> Iterator[bytes | Note]:
        """The log's base snapshot, where it has one."""
        state = self._log_state()
        if state is None or self._reader is None or state.present.base_lsn is None:
            return
        bases = [base for base in self._reader.bases() if base.epoch == state.present.number]
        tables = [table.name for table in self._catalog.chosen(self._selection)]
        for lines in self._reader.base_changes(bases[0], tables, self._matcher.snapshot_row):
            yield from lines.splitlines()
        self._cursor, self._nonce = Cursor(state.present.number, bases[0].lsn), None

    def _read_all(self) -> Iterator[bytes | Note]:
        """Everything from the cursor to the present."""
        empty = 0
        while empty <= _RECHECKS:
            before = self._cursor
            yield from self._read_log()
            yield from self._read_outbox()
            if self._cursor == before:
                empty += 1
                time.sleep(_RECHECK_S)
            else:
                empty = 0
        if self._broken:
            yield from self._begin_anew()

    def _begin_anew(self) -> Iterator[Note]:
        """The source is not the one that the log tells of, and no hub has begun its history yet."""
        yield Note(
            "reset: the source was restored or replaced, and no hub has begun its new history yet"
            " (epoch); what is there now is left to a snapshot"
        )
        head = outbox_head(self._connection)
        state = self._log_state()
        self._foreign = None if state is None else state.present.number
        self._cursor = Cursor(self._cursor.epoch, head.lsn)
        self._nonce, self._broken = head.nonce, False

    def _read_log(self) -> Iterator[bytes | Note]:
        state = self._log_state()
        if state is None or self._reader is None:
            return
        if self._foreign is not None:
            begun = state.present.number != self._foreign
            if not begun or self._cursor.lsn < state.present.floor_lsn:
                return
            # A hub has begun the new history, with what the outbox had told by then.
            self._cursor, self._foreign = Cursor(state.present.number, self._cursor.lsn), None
        if self._cursor.epoch == 0:
            # The hub's first start: its first epoch begins with the outbox that we are reading.
            self._cursor = Cursor(state.epochs[0].number, self._cursor.lsn)
        while True:
            info = state.by_number(self._cursor.epoch)
            head = 0 if info is None else info.head_lsn
            if self._cursor.lsn >= head:
                if self._cursor.epoch == state.present.number:
                    if self._nonce is None:
                        self._nonce = self._reader.nonce_at(self._cursor)
                    return
                yield Note("reset: the source was restored or replaced (epoch)")
                self._cursor = Cursor(state.present.number, state.present.floor_lsn)
                self._nonce = None
                continue
            try:
                page = self._reader.read(
                    self._cursor,
                    upto=head,
                    narrowing=self._matcher.narrowing(),
                    rows_max=_PAGE_ROWS,
                    bytes_max=_PAGE_BYTES,
                )
            except Expired:
                yield Note("reset: the log no longer holds this position (expired)")
                self._cursor = Cursor(state.present.number, state.present.floor_lsn)
                continue
            yield from self._print(page.entries)
            self._cursor = Cursor(self._cursor.epoch, page.scanned_to)
            self._nonce = None

    def _read_outbox(self) -> Iterator[bytes | Note]:
        with translated(self._paths):
            try:
                with read_transaction(self._connection):
                    if self._connection.pragma("schema_version") != self._schema_version:
                        self._load()
                    rows = read_rows(
                        self._connection,
                        after=Anchor(self._cursor.lsn, self._nonce),
                        captured=self._decoder.captured,
                        limit=_PAGE_ROWS,
                    )
                    head_lsn = outbox_head(self._connection).lsn
            except HistoryBroken:
                # A hub has taken these rows into the log, or the source was replaced: look there.
                self._broken = True
                return
            except BadStatement as error:
                raise NotCaptured(str(self._paths.database)) from error
        self._broken = False
        if not rows:
            return
        txids, commits = self._transactions(rows[0][LSN], rows[-1][LSN], head_lsn)
        yield from self._print(self._decoder.entries(rows, txids, commits))
        self._cursor = Cursor(self._cursor.epoch, rows[-1][LSN])
        self._nonce = rows[-1][NONCE]

    @staticmethod
    def _transactions(first: int, last: int, head_lsn: int) -> tuple[list[int], list[bool]]:
        """Rows of one snapshot are one transaction, up to its head."""
        transactions = Transactions(head_lsn=first - 1)
        transactions.learn(None, head_lsn=head_lsn)
        return transactions.marks(first, last)

    def _print(self, entries: Sequence[Entry]) -> Iterator[bytes | Note]:
        for entry in entries:
            if entry.type is ChangeType.BREAK:
                if self._matcher.covers(entry.table):
                    yield Note(f"reset: table {entry.table} changed (schema)")
            elif (data := self._matcher.data(EntryRows(entry))) is not None:
                yield data
