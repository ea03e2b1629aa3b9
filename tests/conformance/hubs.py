"""What stands between a source and its subscribers: the real pipeline, stepped by hand.

`MemoryHub` has the source in memory, on the writer's own connection, and does with the product's
parts what the tailer does. `FileHub` is the tailer itself on a file in WAL mode, without its thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cdchub.capture import install
from cdchub.capture.base_reader import read_base
from cdchub.capture.choice import Choice
from cdchub.capture.connection import (
    SourcePaths,
    read_transaction,
    source_paths,
    write_transaction,
)
from cdchub.capture.decode import Decoder
from cdchub.capture.driver import Connection, Driver
from cdchub.capture.install import Captured
from cdchub.capture.outbox import LSN, NONCE, TIMESTAMP, Anchor, outbox_head, prune, read_rows
from cdchub.capture.snapshot import Pace, rows_of, snapshot_changes, take_snapshot
from cdchub.capture.table import quote
from cdchub.capture.tailer import Tailer
from cdchub.capture.transactions import Transactions
from cdchub.capture.triggers import OUTBOX
from cdchub.catalog import Catalog, Selection, SnapshotFormat
from cdchub.change import encode_lines
from cdchub.config import BaseConfig, CaptureConfig, Config, LogConfig
from cdchub.fanout import Matcher
from cdchub.log import LogReader, LogWriter
from cdchub.log.protocol import Appended, Delivery
from tests.harness import wait_for

_BATCHES = [1, 2, 3, 7, 1000]
_ROWS_MAX = 10**6
# Each is an epoch of the log, and the state of a log tells all of its epochs.
_PROGRAMS_PER_LOG = 40
_SNAPSHOT_TIMEOUT_S = 60.0


class Logs:
    """A log file that many programs write to, each an epoch of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._programs = 0
        self._writer: LogWriter | None = None
        self.path = folder

    def writer(self) -> LogWriter:
        self._programs += 1
        if self._writer is None or self._programs % 200 == 0:
            self.close()
            self._number += 1
            source = self._folder / "memory"
            source.touch()
            self.path = self._folder / f"memory-{self._number}"
            self._writer = LogWriter(self.path, database=source)
        return self._writer

    def new_folder(self) -> Path:
        """Where a source on a file and its log can lie."""
        self._number += 1
        folder = self._folder / f"file-{self._number}"
        folder.mkdir()
        return folder

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self.path.unlink()


class MemoryHub:
    """Capture and log of a source in memory. `ends`: where the writer's commits ended, if that is
    to be known; otherwise what is read together counts as one transaction."""

    def __init__(self, library: str, logs: Logs, rng: random.Random) -> None:
        self.connection = Connection(":memory:", Driver(library), read_only=False)
        self._log = logs.writer()
        self.log_path = logs.path
        self._folder = logs.path.parent
        self._rng = rng
        self._knows_ends = rng.random() < 0.5
        self.ends: list[int] = []

    @property
    def writer(self) -> Any:
        return self.connection._raw

    def close(self) -> None:
        self.connection.close()

    def install(self, choice: Choice) -> None:
        with write_transaction(self.connection):
            outcome = install.reconcile(self.connection, choice, strict=True, silent=True)
            head = outbox_head(self.connection)
        self._take(outcome.captured)
        self._anchor = head
        self._transactions = Transactions(head_lsn=head.lsn)
        self._log.start_epoch(base_lsn=head.lsn, base_nonce=head.nonce, now_ms=_now_ms(), reason="new")
        self.epoch = self._log.state().present.number
        self.take_base()

    def _take(self, captured: Captured) -> None:
        self.captured = captured
        self._decoder = Decoder(captured)
        self._schema_version = self.connection.pragma("schema_version")

    def catalog(self) -> Catalog:
        return self.captured.catalog()

    def settled(self) -> bool:
        """Whether the source can be read now as it is captured."""
        if self.connection.in_transaction:
            return False
        return bool(self._schema_version == self.connection.pragma("schema_version"))

    def look(self) -> None:
        """Reads all there is, as `Tailer._look` does."""
        if self.connection.in_transaction:
            return
        moved = True
        while moved:
            with read_transaction(self.connection):
                changed = self._schema_version != self.connection.pragma("schema_version")
                if changed:
                    self._take(install.load(self.connection))
                rows = self._read()
            self._append(rows)
            if changed:
                self._reconcile()
                self._audit()
            moved = changed or bool(rows)

    def _read(self) -> list[Any]:
        limit = self._rng.choice(_BATCHES)
        rows = read_rows(self.connection, after=self._anchor, captured=self.captured, limit=limit)
        if rows:
            head = rows[-1][LSN] if len(rows) < limit else outbox_head(self.connection).lsn
            known = self._transactions.known_lsn
            ends = [end for end in self.ends if known < end <= head]
            self._transactions.learn(ends if self._knows_ends else None, head_lsn=head)
        return rows

    def _append(self, rows: list[Any]) -> None:
        if not rows:
            return
        txids, commits = self._transactions.marks(rows[0][LSN], rows[-1][LSN])
        entries = self._decoder.entries(rows, txids, commits)
        last = rows[-1]
        self._log.append(self.epoch, entries, nonce=last[NONCE], timestamp_ms=last[TIMESTAMP])
        self._anchor = Anchor(last[LSN], last[NONCE])

    def _audit(self) -> None:
        """Rows that vanished while a unique index came and went unseen, as the tailer's audit after a
        schema change finds them: by their number."""
        names = [self.captured.shapes[table_id].name for table_id in self.captured.active]
        known = self._log.known_rows(names, rows_max=_ROWS_MAX)
        if known is None:
            return
        missed = []
        for name in filter(known.knows, names):
            rows = self.connection.value(f"SELECT count(*) FROM {quote(name)}")
            if rows != known.count(name):
                missed.append(name)
        known.close()
        if missed:
            self._reconcile(missed)

    def _reconcile(self, escaped: Sequence[str] = ()) -> None:
        """`Tailer._reconcile`, without anybody who could write in between."""
        with read_transaction(self.connection):
            names = [*(install.suspects(self.connection) or []), *escaped]
        # Without it followers are told of a break, as by a hub whose log has no base snapshot.
        names = names if self._rng.random() < 0.8 else []
        known = self._log.known_rows(names, rows_max=_ROWS_MAX) if names else None
        try:
            with write_transaction(self.connection):
                rows = self._read()
                while rows:
                    self._append(rows)
                    rows = self._read()
                if known is not None:
                    self._log.catch_up(known)
                outcome = install.reconcile(self.connection, known=known, escaped=escaped)
        finally:
            if known is not None:
                known.close()
        self._take(outcome.captured)
        head = outbox_head(self.connection).lsn
        if head > self._anchor.lsn:
            self.ends.append(head)

    def take_base(self) -> None:
        """A base snapshot of what the log has, if the source is there too."""
        if not self.settled() or outbox_head(self.connection).lsn > self._head_lsn():
            return
        shapes = [self.captured.shapes[table_id] for table_id in sorted(self.captured.active)]
        spool = read_base(
            SourcePaths(self._folder / "memory"),
            self.connection,
            self._anchor.lsn,
            shapes,
            timeout_s=_SNAPSHOT_TIMEOUT_S,
            stop=threading.Event(),
        )
        base = self._log.begin_base(self.epoch, spool.lsn, spool.tables, now_ms=_now_ms())
        for part in spool.slices():
            self._log.add_to_base(base, part)
        self._log.finish_base(base, rows=spool.rows, bytes=spool.bytes)
        spool.close()

    def prune(self) -> None:
        if not self.connection.in_transaction:
            prune(self.connection, below=self._anchor.lsn, limit=self._rng.choice([1, 1000]))

    def _head_lsn(self) -> int:
        return self._log.state().present.head_lsn

    def snapshot(self, selection: Selection) -> tuple[int, list[bytes]]:
        """The present rows as SNAPSHOT changes, and the LSN at which they are so."""
        lsn = outbox_head(self.connection).lsn
        catalog = self.catalog()
        shapes = {
            shape.name: shape for shape in map(self.captured.shapes.get, self.captured.active) if shape
        }
        lines: list[bytes] = []
        for info in catalog.chosen(selection):
            rows = rows_of(selection, catalog, shapes[info.name])
            pace = Pace(_SNAPSHOT_TIMEOUT_S, None)
            for changes in snapshot_changes(self.connection, rows, lsn, pace):
                lines += encode_lines(changes)
        return lsn, lines


class FileHub:
    """The tailer on a file, in the caller's thread. The writer has a connection of its own."""

    def __init__(self, library: Driver, path: Path, writer: Any, rng: random.Random) -> None:
        self.writer = writer
        self.ends: list[int] = []
        self._paths = source_paths(path, library)
        self.log_path = self._paths.log
        self._rng = rng
        self._tailer: Tailer | None = None

    def install(self, choice: Choice) -> None:
        self._log = LogWriter(self._paths.log, database=self._paths.database)
        self._tailer = Tailer(
            self._paths,
            self._log,
            choice=choice,
            config=Config(
                capture=CaptureConfig(
                    batch_rows=self._rng.choice(_BATCHES), prune_soft_rows=3, prune_quiet_s=1e-6
                ),
                base=BaseConfig(bytes_min=1),
                log=LogConfig(retain_age_s=1e9, retain_every_s=1e9),
            ),
            deliver=self._deliver,
        )
        history, _ = self._tailer.open()
        self.epoch = history.state.present.number
        self.take_base()

    def close(self) -> None:
        if self._tailer is not None:
            self._tailer.stop()

    def _deliver(self, delivery: Delivery) -> None:
        assert self._tailer is not None
        if isinstance(delivery, Appended):
            self._tailer.accepted()

    @property
    def tailer(self) -> Tailer:
        assert self._tailer is not None
        return self._tailer

    @property
    def captured(self) -> Captured:
        return self.tailer._source.captured

    def catalog(self) -> Catalog:
        return self.captured.catalog()

    def settled(self) -> bool:
        source = self.tailer._source
        return bool(source.schema_version == source.connection.pragma("schema_version"))

    def look(self) -> None:
        tailer = self.tailer
        while tailer._look():
            pass
        if not self.writer.in_transaction:
            tailer._audit()
            while tailer._auditor.busy:
                tailer._look()
                tailer._audit()

    def take_base(self) -> None:
        """Waits for the base that the tailer begins with; further ones come when they are due."""
        if self.writer.in_transaction:
            # The upkeep would prune too, and give way to the writer.
            return

        def there() -> bool:
            self.tailer._keep_up(quiet=True)
            return bool(self._log.bases())

        wait_for(there, "a base snapshot")

    def prune(self) -> None:
        if not self.writer.in_transaction:
            self.tailer._keep_up(quiet=True)

    def snapshot(self, selection: Selection) -> tuple[int, list[bytes]]:
        tail = self._log.tail()
        spool = take_snapshot(
            self._paths,
            selection,
            format=SnapshotFormat.CHANGES,
            anchor=Anchor(tail.lsn, tail.nonce),
            timeout_s=_SNAPSHOT_TIMEOUT_S,
        )
        spool.file.seek(0)
        lines = spool.file.read().splitlines()
        spool.close()
        return spool.lsn, lines


Hub = MemoryHub | FileHub


def head_of(writer: Any) -> int:
    """The newest LSN that the writer sees."""
    ((lsn,),) = writer.execute(f"SELECT max(lsn) FROM {OUTBOX}")
    return lsn or 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def base_lines(reader: LogReader, epoch: int, selection: Selection, catalog: Catalog) -> Any:
    """The newest base of an epoch: its LSN, and what a subscriber gets of it."""
    base = [base for base in reader.bases() if base.epoch == epoch][-1]
    tables = [info.name for info in catalog.chosen(selection)]
    seen = Matcher(selection, catalog).snapshot_row
    parts: Iterator[bytes] = reader.base_changes(base, tables, seen)
    return base.lsn, b"".join(parts).splitlines()
