"""When the log gets a new base snapshot, and how it gets there; a slice a turn of the tailer.

A base is due when an epoch has none, when a break has made a table unknown, and when the changes
since the last one outweigh it (or an interval has passed): so replaying never takes much longer than
reading a base, and a log with its bases is at most a small multiple of what it describes.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence

from cdchub.capture.base_reader import BaseReading, BaseSpool, Pinned
from cdchub.capture.connection import SourcePaths
from cdchub.capture.progress import CaptureCounters
from cdchub.capture.table import Shape
from cdchub.config import BaseConfig
from cdchub.errors import CdchubError
from cdchub.log.protocol import AppendLog, BaseChunk

logger = logging.getLogger("cdchub.capture")


# Without a pause in the writing, a base waits until the changes outweigh it so many times, and take so
# much room: replaying them takes a few seconds.
_BUSY_TIMES = 4
_BUSY_BYTES_MIN = 256 * 2**20


class BaseKeeper:
    """Used by the tailer's thread only. `kick` wakes it when a reading has ended."""

    def __init__(
        self,
        paths: SourcePaths,
        log: AppendLog,
        config: BaseConfig,
        counters: CaptureCounters,
        *,
        kick: Callable[[], None],
    ) -> None:
        self._paths = paths
        self._log = log
        self._config = config
        self._counters = counters
        self._kick = kick
        self._epoch = 0
        self._reading: BaseReading | None = None
        self._copying: tuple[int, BaseSpool, Iterator[list[BaseChunk]]] | None = None
        self._retry_at_s = 0.0
        self._taken_s = 0.0
        self._base_bytes = 0
        self._bytes_since = 0
        self._missing = False
        self._overdue = False

    @property
    def enabled(self) -> bool:
        return self._config.enabled

    @property
    def copying(self) -> bool:
        """Whether there is a slice to copy now: then the tailer doesn't wait."""
        return self._copying is not None

    @property
    def settled(self) -> bool:
        """Whether the epoch has a base, or can't have one now."""
        idle = self._reading is None and self._copying is None
        return idle and (not self.enabled or not self._missing or self._counters.bases_failed > 0)

    def begin(self, epoch_number: int, pinned: Pinned | None, shapes: Sequence[Shape]) -> None:
        """Takes up an epoch; with `pinned`, a new one, whose base is what that sees."""
        self.close()
        self._epoch = epoch_number
        self._retry_at_s = 0.0
        known = [base for base in self._log.bases() if base.epoch == epoch_number]
        self._missing = not known
        if known:
            self._base_bytes = known[-1].bytes
            self._bytes_since = self._log.bytes_since(epoch_number, known[-1].lsn)
        self._taken_s = time.monotonic()
        if pinned is not None and self.enabled:
            self._read(pinned, shapes)
        elif pinned is not None:
            pinned.close()

    def appended(self, size_bytes: int, *, broken: bool) -> None:
        """The log has grown; `broken`: by a break, from which only a base leads on."""
        self._bytes_since += size_bytes
        self._missing = self._missing or broken

    def retention_is_overdue(self) -> None:
        """Only a newer base lets the log shrink."""
        self._overdue = True

    def turn(self, *, quiet: bool) -> bool:
        """Does what is due. True when a base is complete, so that the log's state has changed.

        `quiet`: there is nothing to read. A base takes as long as many changes, so it waits for a
        pause, within bounds.
        """
        try:
            return self._turn(quiet=quiet)
        except (sqlite3.Error, OSError) as error:
            # The log has no room for it, or can't be written. Changes go first: the room is theirs,
            # and where not even they can be written, the tailer will say so.
            self.close()
            self._failed(error)
            with contextlib.suppress(sqlite3.Error):
                self._log.drop_unfinished_base()
            return False

    def _turn(self, *, quiet: bool) -> bool:
        if self._copying is not None:
            return self._copy(*self._copying)
        if self._reading is None:
            if self.enabled and self._due(time.monotonic(), quiet=quiet):
                self._read(None, None)
            return False
        if self._reading.ended:
            self._take_over(self._reading)
        return False

    def _due(self, now_s: float, *, quiet: bool) -> bool:
        if now_s < self._retry_at_s:
            return False
        if self._missing:
            return True
        if self._config.interval_s is not None:
            return self._bytes_since > 0 and now_s - self._taken_s >= self._config.interval_s
        least = 0 if self._overdue else self._config.bytes_min
        due = max(self._base_bytes, least)
        return self._bytes_since > (
            due if quiet or self._overdue else max(_BUSY_TIMES * due, _BUSY_BYTES_MIN)
        )

    def _read(self, pinned: Pinned | None, shapes: Sequence[Shape] | None) -> None:
        # What comes from here on belongs to the time after the base, or is at least in its way.
        self._bytes_since = 0
        self._missing = self._overdue = False
        self._reading = BaseReading(
            self._paths, pinned, shapes, timeout_s=self._config.timeout_s, done=self._kick
        )

    def _take_over(self, reading: BaseReading) -> None:
        self._reading = None
        try:
            spool = reading.result()
        except (CdchubError, OSError) as error:
            self._failed(error)
            return
        now_ms = time.time_ns() // 1_000_000
        try:
            base_id = self._log.begin_base(self._epoch, spool.lsn, spool.tables, now_ms=now_ms)
        except BaseException:
            spool.close()
            raise
        self._copying = (base_id, spool, spool.slices())

    def _failed(self, error: Exception) -> None:
        self._counters.bases_failed += 1
        self._missing = True
        self._retry_at_s = time.monotonic() + self._config.retry_s
        logger.warning(
            "no base snapshot could be taken (%s); verify and replay reach back only to the last one; "
            "trying again in %g s",
            error,
            self._config.retry_s,
        )

    def _copy(self, base_id: int, spool: BaseSpool, slices: Iterator[list[BaseChunk]]) -> bool:
        part = next(slices, None)
        if part is not None:
            self._log.add_to_base(base_id, part)
            return False
        self._log.finish_base(base_id, rows=spool.rows, bytes=spool.bytes)
        self._base_bytes = spool.bytes
        self._taken_s = time.monotonic()
        self._counters.bases_taken += 1
        logger.info("base snapshot at LSN %d: %d rows, %d bytes", spool.lsn, spool.rows, spool.bytes)
        spool.close()
        self._copying = None
        return True

    def close(self) -> None:
        """Lets go of what is under way."""
        if self._reading is not None:
            self._reading.cancel()
        if self._copying is not None:
            self._copying[1].close()
        self._reading = self._copying = None
