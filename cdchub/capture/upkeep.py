"""Keeping outbox and log small: pruning, retention and checkpoints, a slice a turn.

Each commit of ours in the source can fail a user's deferred transaction, so the outbox is pruned
seldom: in a pause, until a hard bound. It is pruned only up to what the log has fsynced.
"""

from __future__ import annotations

import time

from cdchub.capture.base_keeper import BaseKeeper
from cdchub.capture.connection import BUSY_TIMEOUT_S
from cdchub.capture.driver import Connection
from cdchub.capture.outbox import prune
from cdchub.capture.progress import CaptureCounters, Progress
from cdchub.config import Config
from cdchub.log.protocol import AppendLog, LogState, Retention


class Upkeep:
    """Used by the tailer's thread between its reads. `log_dirty`: there is something to checkpoint."""

    def __init__(
        self,
        log: AppendLog,
        bases: BaseKeeper,
        config: Config,
    ) -> None:
        self._log = log
        self._bases = bases
        self._retention = Retention(
            age_s=config.log.retain_age_s,
            changes_max=config.log.retain_changes,
            bytes_max=config.log.retain_bytes,
            to_bases=config.base.enabled,
        )
        self._retain_every_s = config.log.retain_every_s
        self._config = config.capture
        self._retain_at_s = 0.0
        self.log_dirty = True

    def turn(
        self,
        connection: Connection,
        progress: Progress,
        counters: CaptureCounters,
        *,
        quiet: bool,
    ) -> LogState | None:
        """One slice of each that is due. Returns the log's state if that has changed it.

        `quiet`: there was nothing to read. Raises SQLite's busy error where somebody else writes.
        """
        now_s = time.monotonic()
        state = self._retain(counters, now_s) if now_s >= self._retain_at_s else None
        if self._bases.turn(quiet=quiet):
            state = self._log.state()
        if quiet and self.log_dirty and now_s - progress.moved_s > self._config.prune_quiet_s:
            self._log.checkpoint()
            self.log_dirty = False
        forced = progress.prune_forced(self._config, now_s)
        if forced or (quiet and progress.prune_due(self._config, now_s)):
            self._prune(connection, progress, counters, forced=forced)
        return state

    def _retain(self, counters: CaptureCounters, now_s: float) -> LogState | None:
        now_ms = time.time_ns() // 1_000_000
        if self._log.retain(self._retention, now_ms=now_ms):
            # One slice a turn, so that changes never wait for more than one.
            counters.retained += 1
            return self._log.state()
        self._retain_at_s = now_s + self._retain_every_s
        if self._log.overdue(self._retention, now_ms=now_ms):
            self._bases.retention_is_overdue()
        return None

    def _prune(
        self,
        connection: Connection,
        progress: Progress,
        counters: CaptureCounters,
        *,
        forced: bool,
    ) -> None:
        if not progress.pruning:
            self._log.sync()
            progress.begin_prune()
        config = self._config
        limit = config.prune_forced_slice_rows if forced else config.prune_slice_rows
        # Whoever writes goes first: a prune that can't have the lock at once comes back later.
        connection.set_busy_timeout(0)
        try:
            gone = prune(connection, below=progress.prune_below, limit=limit)
        finally:
            connection.set_busy_timeout(BUSY_TIMEOUT_S)
        counters.rows_pruned += gone
        if forced:
            counters.prunes_forced += 1
        else:
            counters.prunes_quiet += 1
        if gone < limit:
            progress.end_prune(now_s=time.monotonic())
