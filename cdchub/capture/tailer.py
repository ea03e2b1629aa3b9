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
from collections.abc import Callable, Sequence

from cdchub.capture import install
from cdchub.capture.audit import CANNOT_COMPARE, Auditor
from cdchub.capture.base_keeper import BaseKeeper
from cdchub.capture.choice import Choice, warnings_for
from cdchub.capture.connection import SourcePaths, read_transaction, translated
from cdchub.capture.driver import BadStatement, Busy
from cdchub.capture.handover import Handover
from cdchub.capture.history import begin_history, break_in_history, continue_history
from cdchub.capture.mending import Finding, Mender
from cdchub.capture.outbox import LSN, NONCE, TIMESTAMP, Anchor, HistoryBroken
from cdchub.capture.progress import CaptureCounters
from cdchub.capture.source import Batch, Source
from cdchub.capture.upkeep import Upkeep
from cdchub.capture.wake import Hint, Wake
from cdchub.catalog import Catalog
from cdchub.change import ChangeType
from cdchub.config import Config
from cdchub.errors import CdchubError, LogUnusable, StartError
from cdchub.log.protocol import (
    Appended,
    AppendLog,
    Delivery,
    HistoryChanged,
    LogConflict,
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
        config: Config,
        deliver: Callable[[Delivery], None],
    ) -> None:
        self._paths = paths
        self._log = log
        self._choice = choice
        self._config = capture = config.capture
        self._deliver = deliver
        self._stop = threading.Event()
        self._handover = Handover(deliver, self._stop, capture)
        self._thread = threading.Thread(target=self._run, name="cdchub-tailer")
        self.counters = CaptureCounters()
        self._wake = Wake(paths.wal, poll_s=capture.poll_s)
        self._bases = BaseKeeper(paths, log, config.base, self.counters, kick=self.kick)
        self._auditor = Auditor(capture)
        # Whether the last look left something.
        self._more = False
        self._mender = Mender(
            log, choice, append=self._append, config=capture, stopping=self._stop.is_set
        )
        self._upkeep = Upkeep(log, self._bases, config)

    # Called from outside.

    def open(self) -> tuple[HistoryChanged, Catalog]:
        """Installs capture and finds where the log goes on. Raises `StartError`.

        Returns what the log holds and what is captured at this moment; deliveries continue it.
        """
        try:
            with translated(self._paths):
                self._open(first=True)
        except sqlite3.Error as error:
            # The source's errors are `SqliteFault`s, whatever its library is.
            self._wake.close()
            raise LogUnusable(str(self._paths.log), str(error)) from error
        except BaseException:
            self._wake.close()
            raise
        self._wake.watch()
        return self._history(), self._source.captured.catalog()

    def settle(self) -> None:
        """Waits until the log has its base snapshot, without a thread of the tailer's own."""
        while not self._bases.settled:
            self._keep_up(quiet=True)
            if not (self._bases.copying or self._bases.settled):
                self._wake.wait(self._config.safety_look_s)

    def start(self) -> None:
        """Starts the thread, and with it the deliveries."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its present batch; the log gets the mark of a clean stop."""
        self._stop.set()
        self._wake.kick()
        if self._thread.is_alive():
            self._thread.join()
        self._bases.close()
        self._source.close()
        self._wake.close()
        self._log.close_cleanly()

    def kick(self, *, doubt: bool = False) -> None:
        """Somebody in this process has committed, or (`doubt`) has read another source: look now."""
        self._wake.kick(doubt=doubt)

    def accepted(self) -> None:
        """The loop has taken one delivery of changes."""
        self._handover.accepted()

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
                other_files = self._wake.files_may_differ(hint)
                replaced = other_files and (self._source.replaced() or self._log.is_gone())
                if self._wake.doubted() or replaced:
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
            # A commit since then has left a hint, unless the batch was cut short.
            moved = self._more and self._look()
        self._keep_up(quiet=True)

    def _keep_up(self, *, quiet: bool) -> None:
        source = self._source
        state = self._upkeep.turn(source.connection, source.progress, self.counters, quiet=quiet)
        if state is not None:
            self._log_state = state
            self._deliver(self._history())
        if quiet:
            self._audit()

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
        if self._bases.copying or self._auditor.busy:
            return 0.0
        return self._source.progress.patience_s(self._config, time.monotonic())

    # Reading.

    def _look(self) -> bool:
        """Reads one batch, appends it to the log and delivers it. False if there was nothing."""
        source = self._source
        try:
            with read_transaction(source.connection):
                changed = source.schema_changed()
                batch = source.read_batch(self._config.batch_rows)
        except BadStatement as error:
            if install.is_installed(source.connection):
                raise
            raise HistoryBroken("capture is no longer installed") from error
        if changed:
            # Before the rows: `migrate`, say, has told by itself what they are in the new shape.
            self._deliver(SchemaChanged(source.captured.catalog()))
        if batch.rows:
            self._append(batch)
        if changed:
            self._reconcile()
        self._more = changed or batch.is_cut
        return changed or bool(batch.rows)

    def _append(self, batch: Batch) -> None:
        source = self._source
        entries = source.entries(batch, change_bytes_max=self._config.change_bytes_max)
        last = batch.rows[-1]
        self._log.append(
            self._log_state.present.number, entries, nonce=last[NONCE], timestamp_ms=last[TIMESTAMP]
        )
        source.progress.moved_to(Anchor(last[LSN], last[NONCE]), now_s=time.monotonic())
        self._auditor.captured(batch.rows)
        size_bytes = sum(len(entry.data) for entry in entries)
        source.progress.outbox_bytes += size_bytes
        self._bases.appended(size_bytes, broken=any(e.type is ChangeType.BREAK for e in entries))
        self.counters.changes += len(entries)
        self.counters.batches += 1
        self.counters.last_commit_ms = last[TIMESTAMP]
        self._upkeep.log_dirty = True
        self._handover.give(Appended(entries, batch.head_lsn, last[NONCE]))

    # Schema and history.

    def _audit(self) -> None:
        """Looks whether capture sees everything, and mends it where it does not."""
        suspicion = self._auditor.turn(self._source)
        if suspicion is None:
            return
        self.counters.audits_suspicious += 1
        if not suspicion.certain:
            finding = self._mender.compare(self._source, suspicion.table)
            if finding is Finding.UNKNOWN:
                self._warn([CANNOT_COMPARE.format(suspicion.table)])
            if finding is not Finding.UNDER_WAY:
                self._auditor.settle(suspicion)
            if finding is not Finding.OTHERWISE:
                return
        self.counters.audits_failed += 1
        logger.error(
            "audit: table %r was changed without capture (%s): somebody writes with triggers off, or "
            "changed the schema by hand; its followers are brought up",
            suspicion.table,
            suspicion.why,
        )
        self._reconcile(escaped=(suspicion.table,))

    def _reconcile(self, *, strict: bool = False, escaped: Sequence[str] = ()) -> None:
        """Brings capture in line with the schema, and tells followers what that means to them.
        `escaped`: tables that were changed without capture."""
        outcome = self._mender.reconcile(self._source, strict=strict, escaped=escaped)
        if outcome is not None:
            self._take(outcome)
        # A table whose shape is another now has another id.
        self._auditor.begin(self._source.captured.active)
        self._deliver(SchemaChanged(self._source.captured.catalog()))

    def _take(self, outcome: install.Outcome) -> None:
        self._source.take(outcome.captured)
        told = outcome.told
        self.counters.breaks += len(told.broken)
        self.counters.differences += sum(told.differences.values())
        self._warn(outcome.warnings)
        for name in told.entered:
            logger.info("table %r is captured from now on, its rows came in as INSERTs", name)
        for name, number in told.differences.items():
            logger.info(
                "table %r changed shape or capture: %d changes bring followers up", name, number
            )
        for name in told.broken:
            logger.warning("table %r changed shape or capture: its subscribers are reset", name)

    def _warn(self, lines: Sequence[str]) -> None:
        for line in lines:
            if line not in self.counters.warnings:
                self.counters.warnings.append(line)
                logger.warning("%s", line)

    def _open(self, *, first: bool = False) -> None:
        """Opens the source, installs or mends capture, and finds where the log goes on."""
        self._source = Source(self._paths, self.counters)
        try:
            self._attach(None, first=first)
            self._source.check_not_replaced()
        except BaseException:
            self._bases.close()
            self._source.close()
            raise

    def _reopen(self) -> None:
        """The database or its -wal is another file now, or could not be read."""
        self._source.close()
        while not self._paths.database.exists():
            if self.counters.failing is None:
                self._failed(StartError(f"{self._paths.database} is gone"))
            if self._stop.wait(self._config.retry_s):
                break
        if self._log.is_gone():
            logger.error("the change log was deleted: another one begins, in a new epoch")
            self._log.begin_anew()
        self._open()
        self._wake.watch()
        self._tell_history()

    def _tell_history(self) -> None:
        self._deliver(self._history())
        self._deliver(SchemaChanged(self._source.captured.catalog()))

    def _history(self) -> HistoryChanged:
        return HistoryChanged(self._log_state, self._source.progress.anchor.nonce)

    def _break_history(self) -> None:
        self._attach("restored")
        self._tell_history()

    def _attach(self, reason: str | None, *, first: bool = False) -> None:
        """Continues the log's history, or begins another one.

        `reason`: why the history is known to be broken, if it is. `first`: the hub is starting, so
        that what it was asked for must be there.
        """
        source = self._source
        fresh = not install.is_installed(source.connection)
        if not fresh:
            source.load()
            if not first:
                # Whatever stands there now was put where our own source has been.
                self._log.expect(source.captured.install_id)
            reason = break_in_history(source, self._log) or reason
        if fresh or reason is not None:
            outcome = begin_history(source, self._log, self._bases, self._choice, reason, strict=first)
            self.counters.epochs_started += 1
            self._log_state = self._log.state()
            self._take(outcome)
            self._auditor.begin()
        else:
            mend = continue_history(source, self._log, self._bases, self._choice, strict=first)
            self._log_state = self._log.state()
            if mend:
                self._reconcile(strict=first)
                # It carries over what is in the outbox, so that the log's head moves.
                self._log_state = self._log.state()
            else:
                captured = source.captured
                self._warn([line for i in captured.active for line in warnings_for(captured.shapes[i])])
        self._upkeep.log_dirty = True
