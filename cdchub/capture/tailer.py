"""The thread that carries committed changes from the outbox into the log, and then to the loop.

Its order of work makes the promises: a change is delivered only after it is in the log, and pruned
from the outbox only after the log has fsynced it. So a crash at any moment loses nothing: whatever
the log lacks is still in the outbox, and whatever both have is recognised by LSN and nonce.

Every error of a disk, a lock or a file is retried here for as long as the hub runs, with a counter
and a line in the log; the source and the log are left as they were.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from cdchub.capture import install
from cdchub.capture.choice import Choice
from cdchub.capture.connection import (
    FileIdentity,
    SourcePaths,
    open_source,
    read_transaction,
    require_wal,
    transaction,
    translated,
    write_transaction,
)
from cdchub.capture.driver import BadStatement, Busy
from cdchub.capture.epoch import break_in_history, source_mark, start_epoch
from cdchub.capture.outbox import (
    Anchor,
    Decoder,
    HistoryBroken,
    RawRow,
    outbox_head,
    read_rows,
)
from cdchub.capture.progress import CaptureCounters, Progress
from cdchub.capture.triggers import OUTBOX
from cdchub.capture.upkeep import Upkeep
from cdchub.capture.wake import Hint, Wake
from cdchub.catalog import Catalog
from cdchub.change import transaction_mark
from cdchub.config import CaptureConfig
from cdchub.errors import CdchubError, StartError
from cdchub.log.protocol import (
    Appended,
    AppendLog,
    Delivery,
    HistoryChanged,
    LogConflict,
    Retention,
    SchemaChanged,
)

logger = logging.getLogger("cdchub.capture")

# poll(2) counts in milliseconds; a shorter wait than one is a sleep.
_WAIT_S_MIN = 0.001

_FAULTS = (sqlite3.Error, OSError, CdchubError, LogConflict)


class Tailer:
    """Owns the source's tailing connection and the thread that reads it and writes the log."""

    def __init__(
        self,
        paths: SourcePaths,
        log: AppendLog,
        *,
        choice: Choice | None,
        capture: CaptureConfig,
        retention: Retention,
        retain_every_s: float,
        deliver: Callable[[Delivery], None],
    ) -> None:
        self._paths = paths
        self._log = log
        self._choice = choice
        self._config = capture
        self._upkeep = Upkeep(log, retention, retain_every_s=retain_every_s, config=capture)
        self._deliver = deliver
        self._stop = threading.Event()
        self._handover = threading.BoundedSemaphore(capture.handover_batches)
        self._thread = threading.Thread(target=self._run, name="cdchub-tailer")
        self._reconcile_busy = False
        self._closed = True
        self.counters = CaptureCounters()
        self._progress = Progress(Anchor(0, None), pruned_lsn=0, now_s=0.0)

    # Called from outside.

    def open(self) -> tuple[HistoryChanged, Catalog]:
        """Installs capture and finds where the log goes on. Raises `StartError`.

        Returns what the log holds and what is captured at this moment; deliveries continue it.
        """
        with translated(self._paths):
            self._open(first=True)
        self._wake = Wake(self._paths, poll_s=self._config.poll_s)
        return self._history(), self._captured.catalog()

    def start(self) -> None:
        """Starts the thread, and with it the deliveries."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its present batch; the log gets the mark of a clean stop."""
        self._stop.set()
        self._wake.kick()
        if self._thread.is_alive():
            self._thread.join()
        self._connection.close()
        self._log.close_cleanly()
        self._wake.close()

    def kick(self) -> None:
        """Somebody in this process has committed: look now."""
        self._wake.kick()

    def accepted(self) -> None:
        """The loop has taken one delivery of changes."""
        self._handover.release()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def uses_inotify(self) -> bool:
        return self._wake.uses_inotify

    # The thread.

    def _run(self) -> None:
        hint = Hint.WRITTEN
        while not self._stop.is_set():
            try:
                self._step(hint)
                self._recovered()
                hint = self._wake.wait(self._patience_s())
                if self._files.changed():
                    self._reopen()
            except Busy:
                # Only reading and pruning happen here, so there is nothing to undo.
                self.counters.busy += 1
                hint = self._wake.wait(self._config.poll_s)
            except HistoryBroken as broken:
                logger.warning("the source is not the one that was read before (%s)", broken)
                hint = self._attempt(self._break_history)
            except Exception as fault:
                # Also what nobody foresaw: a thread that ends would be silence.
                self._failed(fault)
                self._stop.wait(self._config.retry_s)
                hint = self._attempt(self._reopen)

    def _attempt(self, action: Callable[[], None]) -> Hint:
        """Runs a recovery; if it fails too, the main loop comes back to it."""
        try:
            action()
        except Exception as fault:
            self._failed(fault)
            self._stop.wait(self._config.retry_s)
        return Hint.WRITTEN

    def _failed(self, fault: Exception) -> None:
        self.counters.faults += 1
        if self.counters.failing is None:
            foreseen = isinstance(fault, _FAULTS)
            logger.error(
                "capture is interrupted, nothing is lost, retrying: %s",
                fault,
                exc_info=None if foreseen else fault,
            )
        self.counters.failing = str(fault)

    def _recovered(self) -> None:
        if self.counters.failing is not None:
            logger.info("capture goes on")
            self.counters.failing = None

    def _step(self, hint: Hint) -> None:
        """Reads all there is, then looks after outbox and log."""
        moved = self._look()
        if not moved and hint is Hint.WRITTEN:
            moved = self._look_again()
        while moved and not self._stop.is_set():
            self._recovered()
            self._keep_up(quiet=False)
            moved = self._look()
        self._keep_up(quiet=True)

    def _keep_up(self, *, quiet: bool) -> None:
        state = self._upkeep.turn(self._connection, self._progress, self.counters, quiet=quiet)
        if state is not None:
            self._log_state = state
            self._deliver(self._history())

    def _look_again(self) -> bool:
        """Looks until the commit that woke us is visible, or nothing came of it."""
        config = self._config
        gaps_s = config.recheck_gaps_s
        place = 0
        while place < len(gaps_s) and not self._stop.is_set():
            if gaps_s[place] < _WAIT_S_MIN:
                time.sleep(gaps_s[place])
                place += 1
            else:
                # Another write in the meantime begins the wait for its own commit.
                place = 0 if self._wake.wait(gaps_s[place]) is Hint.WRITTEN else place + 1
            if self._look():
                return True
        return False

    def _patience_s(self) -> float:
        now_s, config = time.monotonic(), self._config
        if not self._progress.prune_wanted(config, now_s):
            return config.safety_look_s
        # A prune waits for a pause, and so does its next slice.
        return max(0.0, self._progress.moved_s + config.prune_quiet_s - now_s)

    # Reading.

    def _look(self) -> bool:
        """Reads one batch, appends it to the log and delivers it. False if there was nothing."""
        try:
            with read_transaction(self._connection):
                version = self._connection.pragma("schema_version")
                if version != self._schema_version:
                    self._load_shapes()
                rows, head_lsn = self._read_batch()
        except BadStatement as error:
            if install.is_installed(self._connection):
                raise
            raise HistoryBroken("capture is no longer installed") from error
        if rows:
            self._append(rows, head_lsn)
        if version != self._schema_version:
            self._reconcile()
            return True
        return bool(rows)

    def _load_shapes(self) -> None:
        self._captured = install.load(self._connection)
        self._decoder = Decoder(self._captured)

    def _read_batch(self) -> tuple[list[RawRow], int]:
        limit = self._config.batch_rows
        rows = read_rows(
            self._connection, after=self._progress.anchor, width=self._decoder.width, limit=limit
        )
        if len(rows) < limit:
            return rows, rows[-1].lsn if rows else self._progress.anchor.lsn
        return rows, outbox_head(self._connection).lsn

    def _append(self, rows: list[RawRow], head_lsn: int) -> None:
        entries = self._progress.entries(rows, head_lsn, self._decoder)
        self._log.append(self._log_state.present.number, entries)
        self._progress.moved_to(rows[-1], now_s=time.monotonic())
        self._progress.outbox_bytes += sum(len(entry.data) for entry in entries)
        self.counters.changes += len(entries)
        self.counters.batches += 1
        self.counters.last_commit_ms = rows[-1].timestamp_ms
        self._upkeep.log_dirty = True
        while not self._handover.acquire(timeout=self._config.safety_look_s):
            if self._stop.is_set():
                # The loop is gone; what is in the log will be read from there.
                return
        self._deliver(Appended(entries, head_lsn))

    # Schema and history.

    def _reconcile(self) -> None:
        """Brings capture in line with the schema. Commits only if something has to change."""
        # Under a writer that never pauses the lock is not to be had late; then it is taken first.
        begin = "BEGIN IMMEDIATE" if self._reconcile_busy else "BEGIN"
        self._reconcile_busy = True
        with transaction(self._connection, begin):
            outcome = install.reconcile(self._connection)
            version = self._connection.pragma("schema_version")
        self._schema_version = version
        self._reconcile_busy = False
        self._take(outcome)
        self._deliver(SchemaChanged(self._captured.catalog()))

    def _take(self, outcome: install.Outcome) -> None:
        self._captured = outcome.captured
        self._decoder = Decoder(self._captured)
        self.counters.breaks += len(outcome.broken)
        for line in outcome.warnings:
            if line not in self.counters.warnings:
                self.counters.warnings.append(line)
                logger.warning("%s", line)
        for name in outcome.entered:
            logger.info("table %r is captured from now on, its rows came in as INSERTs", name)
        for name in outcome.broken:
            logger.warning("table %r changed shape or capture: its subscribers are reset", name)

    def _open(self, *, first: bool = False) -> None:
        """Opens the source, installs or mends capture, and finds where the log goes on."""
        opened = self._paths.database.stat().st_ino
        self._connection = open_source(self._paths)
        self._closed = False
        try:
            require_wal(self._connection, self._paths)
            # A prune need not be durable, and must not hold the write lock for an fsync.
            self._connection.pragma("synchronous", "normal")
            self._attach(None, first=first)
            # Now that SQLite has opened the -wal too, these are the files we are reading.
            self._files = FileIdentity(self._paths)
            if self._paths.database.stat().st_ino != opened:
                raise StartError(f"{self._paths.database} was replaced while it was being opened")
        except BaseException:
            self._connection.close()
            self._closed = True
            raise

    def _reopen(self) -> None:
        """The database or its -wal is another file now, or could not be read."""
        if not self._closed:
            self._connection.abandon()
            self._closed = True
        while not self._paths.database.exists():
            if self.counters.failing is None:
                self._failed(StartError(f"{self._paths.database} is gone"))
            if self._stop.wait(self._config.retry_s):
                break
        self._open()
        self._wake.rewatch()
        self._deliver(self._history())
        self._deliver(SchemaChanged(self._captured.catalog()))

    def _history(self) -> HistoryChanged:
        return HistoryChanged(self._log_state, self._progress.anchor.nonce)

    def _break_history(self) -> None:
        self._attach("restored")
        self._deliver(self._history())
        self._deliver(SchemaChanged(self._captured.catalog()))

    def _attach(self, reason: str | None, *, first: bool = False) -> None:
        """Installs capture, and continues the log's history or begins another one.

        `reason`: why the history is known to be broken, if it is. `first`: the hub is starting, so
        that what it was asked for must be there.
        """
        connection = self._connection
        with write_transaction(connection):
            outcome = install.reconcile(connection, self._choice, strict=first)
            self._schema_version = connection.pragma("schema_version")
        self._take(outcome)
        mark = source_mark(self._paths, outcome.captured.install_id)
        found = break_in_history(connection, self._log, mark, just_installed=outcome.fresh)
        reason = found or reason
        if reason is not None:
            start_epoch(connection, self._log, reason, now_ms=_now_ms())
            self.counters.epochs_started += 1
        self._log.adopt(mark)
        self._log_state = self._log.state()
        tail = self._log.tail()
        oldest = connection.value(f"SELECT min(lsn) FROM {OUTBOX}")
        self._progress = Progress(
            Anchor(tail.lsn, tail.nonce),
            pruned_lsn=tail.lsn if oldest is None else oldest - 1,
            now_s=time.monotonic(),
        )
        if tail.data is not None:
            txid, commit = transaction_mark(tail.data)
            self._progress.resume(txid, commit=commit)
        self._upkeep.log_dirty = True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
