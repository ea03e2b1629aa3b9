"""Snapshots for many: taken in threads, shared while they are young, read at each client's pace.

A reconnect storm asks for the same rows a thousand times; it gets one read of the source. Whoever
shares a spool that is a moment old goes on from its LSN through the log.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from cdchub.capture.connection import SourcePaths
from cdchub.capture.outbox import Anchor
from cdchub.capture.snapshot import (
    SnapshotOfAnother,
    SnapshotStale,
    SnapshotTooSlow,
    Spool,
    take_snapshot,
)
from cdchub.catalog import Catalog, Selection, SnapshotFormat
from cdchub.config import SnapshotConfig
from cdchub.errors import Overloaded
from cdchub.fanout import Matcher
from cdchub.log import LogReader
from cdchub.log.protocol import BaseInfo, Cursor, Expired

# How long to wait for the tailer to notice that the source was replaced under a snapshot.
_STALE_WAIT_S = 0.1

# An epoch, what of it, and in which form; None for the log's base.
_Key = tuple[int, Selection, SnapshotFormat | None]


class OpenSpool:
    """One reader's view of a spool."""

    def __init__(self, spool: Spool, epoch_number: int, config: SnapshotConfig) -> None:
        self._spool = spool
        self._chunk_bytes = config.chunk_bytes
        self._held_bytes_max = config.held_bytes_max
        self.cursor = Cursor(epoch_number, spool.lsn)

    @property
    def tables(self) -> Sequence[str]:
        return self._spool.tables

    async def lines(self) -> AsyncIterator[bytes]:
        """The spool in pieces that end with a line."""
        spool = self._spool
        if spool.size_bytes > self._held_bytes_max:
            async for piece in self._read():
                yield piece
            return
        if spool.held is None:
            spool.held = [piece async for piece in self._read()]
        for piece in spool.held:
            yield piece

    async def _read(self) -> AsyncIterator[bytes]:
        descriptor, offset, rest = self._spool.file.fileno(), 0, b""
        while offset < self._spool.size_bytes:
            chunk = await asyncio.to_thread(os.pread, descriptor, self._chunk_bytes, offset)
            offset += len(chunk)
            whole, _, tail = (rest + chunk).rpartition(b"\n")
            rest = tail
            if whole:
                yield whole + b"\n"


class _Shared:
    """A spool, or the task that makes it; freed when it is old and nobody reads it."""

    def __init__(self, making: asyncio.Task[tuple[Spool, int]]) -> None:
        self.making = making
        self.readers = 0
        self.young = True

    def free_if_done(self) -> None:
        if self.readers or self.young:
            return
        if not self.making.done():
            self.making.cancel()
        elif not self.making.cancelled() and self.making.exception() is None:
            self.making.result()[0].close()


class Spools:
    """`anchor` gives the cursor of the head that subscribers see, and its row's nonce; `catalog`
    what is captured now. `doubt` is called where the source is another one than these tell of."""

    def __init__(
        self,
        paths: SourcePaths,
        config: SnapshotConfig,
        *,
        log: LogReader,
        anchor: Callable[[], tuple[Cursor, int | None]],
        catalog: Callable[[], Catalog],
        doubt: Callable[[], None],
    ) -> None:
        self._log = log
        self._doubt = doubt
        self._catalog = catalog
        self._paths = paths
        self._config = config
        self._anchor = anchor
        self._shared: dict[_Key, _Shared] = {}
        self._threads = ThreadPoolExecutor(config.concurrent, thread_name_prefix="cdchub-snapshot")
        self._stop = threading.Event()
        self.taken = 0

    @asynccontextmanager
    async def open(
        self,
        selection: Selection,
        format: SnapshotFormat = SnapshotFormat.CHANGES,
        *,
        at_least_lsn: int = 0,
    ) -> AsyncIterator[OpenSpool]:
        """A snapshot of the present epoch, at `at_least_lsn` or later.

        Raises `Overloaded` or SQLite's errors.
        """
        while True:
            key, shared = self._find_or_make(selection, format)
            shared.readers += 1
            try:
                spool, epoch_number = await asyncio.shield(shared.making)
                if spool.lsn >= at_least_lsn or epoch_number != key[0]:
                    yield OpenSpool(spool, epoch_number, self._config)
                    return
                self._expire(key, shared)
            finally:
                shared.readers -= 1
                shared.free_if_done()

    @asynccontextmanager
    async def open_base(self, selection: Selection) -> AsyncIterator[OpenSpool]:
        """The log's oldest base snapshot of the present epoch, as SNAPSHOT changes.

        Raises `Overloaded`, sqlite3's errors or OSError.
        """
        shared = self._find_or_make(selection, None)[1]
        shared.readers += 1
        try:
            spool, epoch_number = await asyncio.shield(shared.making)
            yield OpenSpool(spool, epoch_number, self._config)
        finally:
            shared.readers -= 1
            shared.free_if_done()

    def _read_base(self, selection: Selection) -> tuple[Spool, int]:
        for _ in range(self._config.attempts):
            present = self._log.state().present
            bases = [base for base in self._log.bases() if base.epoch == present.number]
            if not bases:
                break
            try:
                return self._spool_base(bases[0], selection), present.number
            except Expired:
                # Retention has just moved on to the next one.
                continue
        raise Overloaded("the log has no base snapshot now; try again in a moment")

    def _spool_base(self, base: BaseInfo, selection: Selection) -> Spool:
        """The base's rows in a file of their own, so that a slow client doesn't hold the log."""
        catalog = self._catalog()
        tables = tuple(table.name for table in catalog.chosen(selection))
        file = tempfile.TemporaryFile(dir=self._paths.database.parent)  # noqa: SIM115
        try:
            seen = Matcher(selection, catalog).snapshot_row
            for lines in self._log.base_changes(base, tables, seen):
                file.write(lines)
            file.flush()
            return Spool(base.lsn, tables, file, file.tell())
        except BaseException:
            file.close()
            raise

    async def close(self) -> None:
        for key, shared in list(self._shared.items()):
            self._expire(key, shared)
        self._stop.set()
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    def _find_or_make(
        self, selection: Selection, format: SnapshotFormat | None
    ) -> tuple[_Key, _Shared]:
        """`format` is None for the log's base."""
        cursor, _ = self._anchor()
        key = (cursor.epoch, selection, format)
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(
                asyncio.get_running_loop().create_task(self._take(selection, format))
            )
            shared.making.add_done_callback(lambda _: self._made(key, shared))
        return key, shared

    def _made(self, key: _Key, shared: _Shared) -> None:
        loop = asyncio.get_running_loop()
        if shared.making.cancelled() or shared.making.exception() is not None:
            self._expire(key, shared)
        else:
            loop.call_later(self._config.share_s, self._age, key, shared, loop.time())

    def _age(self, key: _Key, shared: _Shared, made_s: float) -> None:
        """Lets a spool grow old, unless a crowd is still at it and what has followed is little."""
        loop, config = asyncio.get_running_loop(), self._config
        spool, _ = shared.making.result()
        head, _ = self._anchor()
        near = head.epoch == key[0] and head.lsn - spool.lsn <= config.share_changes_max
        if shared.readers and near and loop.time() - made_s < config.share_s_max:
            loop.call_later(config.share_s, self._age, key, shared, made_s)
        else:
            self._expire(key, shared)

    def _expire(self, key: _Key, shared: _Shared) -> None:
        shared.young = False
        if self._shared.get(key) is shared:
            del self._shared[key]
        shared.free_if_done()

    async def _take(self, selection: Selection, format: SnapshotFormat | None) -> tuple[Spool, int]:
        loop = asyncio.get_running_loop()
        if format is None:
            return await loop.run_in_executor(self._threads, self._read_base, selection)
        for _ in range(self._config.attempts):
            cursor, nonce = self._anchor()
            try:
                spool = await loop.run_in_executor(
                    self._threads,
                    partial(
                        take_snapshot,
                        self._paths,
                        selection,
                        format=format,
                        anchor=Anchor(cursor.lsn, nonce),
                        timeout_s=self._config.timeout_s,
                        stop=self._stop,
                    ),
                )
            except SnapshotStale as stale:
                if isinstance(stale, SnapshotOfAnother):
                    self._doubt()
                await asyncio.sleep(_STALE_WAIT_S)
                continue
            except (SnapshotTooSlow, OSError) as error:
                raise Overloaded(f"no snapshot can be taken now: {error}") from error
            self.taken += 1
            return spool, cursor.epoch
        raise Overloaded("the database is being replaced; try again in a moment")
