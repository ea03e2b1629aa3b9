"""A hub that does not own its source: it follows the owner's log, read-only, until it can own.

In an application with several workers the first hub captures; the others read what it appends to the
log, and deliver it to their own subscribers in the same order and with the same positions. When the
owner ends, its lock falls free and one of them takes over; what was committed meanwhile is in the
outbox.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from cdchub.capture import install
from cdchub.capture.connection import Owner, SourcePaths, open_source
from cdchub.capture.handover import Handover
from cdchub.capture.wake import Wake
from cdchub.catalog import Catalog
from cdchub.change import NOTES
from cdchub.config import CaptureConfig
from cdchub.errors import CdchubError, LogUnusable, NotCaptured, SourceOwned
from cdchub.log import LogReader
from cdchub.log.protocol import (
    Appended,
    Cursor,
    Delivery,
    Expired,
    HistoryChanged,
    LogState,
    Narrowing,
    SchemaChanged,
)

logger = logging.getLogger("cdchub.following")

_PAGE_BYTES = 2**20


class LogFollower:
    """Delivers what the owner appends, from a thread of its own."""

    def __init__(
        self,
        paths: SourcePaths,
        owner: Owner,
        config: CaptureConfig,
        *,
        deliver: Callable[[Delivery], None],
        owning: Callable[[], None],
    ) -> None:
        """`owning` is called, once, when this hub has become the owner and following has ended."""
        self._paths = paths
        self._owner = owner
        self._config = config
        self._deliver = deliver
        self._owning = owning
        self._stop = threading.Event()
        self._handover = Handover(deliver, self._stop, config)
        self._wake = Wake(paths.log_wal, poll_s=config.poll_s)
        self._thread = threading.Thread(target=self._run, name="cdchub-follower")
        self._reader = LogReader(paths.log)
        self.failing: str | None = None

    def open(self) -> tuple[HistoryChanged, Catalog]:
        """What the log holds and what is captured at this moment; deliveries continue it.

        Waits for an owner that has only just begun. Raises `StartError`.
        """
        deadline_s = time.monotonic() + self._config.owner_wait_s
        while True:
            try:
                self._state = self._reader.state()
                if self._state.epochs:
                    break
            except (LogUnusable, sqlite3.Error):
                if time.monotonic() >= deadline_s:
                    raise
            if time.monotonic() >= deadline_s:
                raise LogUnusable(str(self._paths.log), "its owner has not begun it")
            self._stop.wait(self._config.poll_s)
        self._wake.watch()
        present = self._state.present
        self._cursor = Cursor(present.number, present.head_lsn)
        return HistoryChanged(self._state, self._reader.nonce_at(self._cursor)), self._catalog()

    def start(self) -> None:
        self._thread.start()

    @property
    def epoch_number(self) -> int:
        """The number of the epoch that was followed last."""
        return self._state.present.number

    def stop(self) -> None:
        """Ends the thread; harmless when it has ended."""
        self._stop.set()
        self._wake.kick()
        if self._thread.is_alive():
            self._thread.join()
        self._reader.close()
        self._wake.close()

    def kick(self) -> None:
        self._wake.kick()

    def accepted(self) -> None:
        """The loop has taken one delivery of changes."""
        self._handover.accepted()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def uses_inotify(self) -> bool:
        return self._wake.uses_inotify

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._read_all()
                if self._try_to_own():
                    # Nobody appends any more; what the last owner did is read to its end.
                    self._read_all()
                    self._owning()
                    return
                self.failing = None
            except Exception as fault:
                # Also what nobody foresaw: a thread that ends would be silence.
                if self.failing is None:
                    expected = isinstance(fault, CdchubError | OSError | sqlite3.Error)
                    logger.error(
                        "the log can't be followed, retrying: %s",
                        fault,
                        exc_info=None if expected else fault,
                    )
                self.failing = str(fault)
                self._stop.wait(self._config.retry_s)
            self._wake.wait(self._config.owner_look_s)

    def _try_to_own(self) -> bool:
        if self._owner.held:
            # Reading to the end has failed the last time.
            return True
        try:
            self._owner.acquire()
        except SourceOwned:
            return False
        logger.info("the owner of %s has ended: taking over", self._paths.database)
        return True

    def _read_all(self) -> None:
        state = self._reader.state()
        if state.epochs != self._state.epochs:
            self._take_state(state)
        while self._cursor.lsn < self._state.present.head_lsn and not self._stop.is_set():
            self._read_page()

    def _take_state(self, state: LogState) -> None:
        """Other epochs, floors, bases or heads."""
        present = state.present
        if present.number != self._cursor.epoch:
            # Whoever followed the old epoch reads it to its end in the log.
            cursor = Cursor(present.number, present.head_lsn)
            nonce, catalog = self._reader.nonce_at(cursor), self._catalog()
            self._cursor = cursor
            self._deliver(HistoryChanged(state, nonce))
            self._deliver(SchemaChanged(catalog))
        elif _bounds(state) != _bounds(self._state):
            self._deliver(HistoryChanged(state, None))
        self._state = state

    def _skip_to_present(self) -> None:
        """Retention was faster than this hub, which was stopped for long. Its subscribers are reset."""
        self._state = self._reader.state()
        present = self._state.present
        logger.warning(
            "the log no longer holds what follows LSN %d: going on at its head", self._cursor.lsn
        )
        self._cursor = Cursor(present.number, present.head_lsn)
        nonce = self._reader.nonce_at(self._cursor)
        self._deliver(HistoryChanged(self._state, nonce, skipped=True))
        self._deliver(SchemaChanged(self._catalog()))

    def _read_page(self) -> None:
        head_lsn = self._state.present.head_lsn
        try:
            page = self._reader.read(
                self._cursor,
                upto=head_lsn,
                narrowing=Narrowing(),
                rows_max=self._config.batch_rows,
                bytes_max=_PAGE_BYTES,
            )
        except Expired:
            self._skip_to_present()
            return
        cursor = Cursor(self._cursor.epoch, page.scanned_to)
        nonce = self._reader.nonce_at(cursor)
        noted = any(entry.type in NOTES for entry in page.entries)
        catalog = self._catalog() if noted else None
        # From here on nothing fails: what the cursor has passed is delivered.
        self._cursor = cursor
        if catalog is not None:
            # Before the changes that have the new shape, as the owner delivers it.
            self._deliver(SchemaChanged(catalog))
        self._handover.give(Appended(page.entries, head_lsn, nonce))

    def _catalog(self) -> Catalog:
        connection = open_source(self._paths, read_only=True)
        try:
            if not install.is_installed(connection):
                raise NotCaptured(str(self._paths.database))
            return install.load(connection).catalog()
        finally:
            connection.close()


def _bounds(state: LogState) -> list[tuple[int, int, int | None]]:
    return [(info.number, info.floor_lsn, info.base_lsn) for info in state.epochs]
