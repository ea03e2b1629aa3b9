"""The hub: capture, log and fan-out of one source, put together. HTTP is put around it in `app`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from cdchub.capture.choice import Choice
from cdchub.capture.connection import (
    Owner,
    SourcePaths,
    check_source,
    like_database,
    source_paths,
)
from cdchub.capture.tailer import Tailer
from cdchub.capture.writer import SourceWriterThread
from cdchub.config import Config
from cdchub.fanout import Core, Present
from cdchub.log import LogReader, LogWriter, Ring
from cdchub.log.protocol import Appended, Cursor, Delivery, Narrowing, Page
from cdchub.spools import Spools
from cdchub.version import __version__


class _LogPages:
    """The log's reader, off the loop: a page is read in one of its own threads."""

    def __init__(self, reader: LogReader, threads: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._threads = threads

    async def read(
        self, after: Cursor, *, upto: int, narrowing: Narrowing, rows_max: int, bytes_max: int
    ) -> Page:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: self._reader.read(
                after, upto=upto, narrowing=narrowing, rows_max=rows_max, bytes_max=bytes_max
            ),
        )


class Hub:
    """Makes one SQLite database live. Use it as an async context manager.

    Raises `StartError` on entering where the source, its log or its owner lock can't be had.
    """

    def __init__(
        self,
        database: str | os.PathLike[str],
        *,
        choice: Choice | None = None,
        config: Config | None = None,
    ) -> None:
        self.config = (config or Config()).checked()
        self.database = os.fspath(database)
        self._choice = choice
        self._started_s = time.monotonic()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Hub:
        async with contextlib.AsyncExitStack() as stack:
            self.paths: SourcePaths = source_paths(self.database)
            await asyncio.to_thread(check_source, self.paths)
            owner = Owner(self.paths)
            owner.acquire()
            stack.callback(owner.release)
            await self._start_capture(stack)
            await self._start_fanout(stack)
            self._tailer.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start_capture(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        loop = asyncio.get_running_loop()

        def deliver(delivery: Delivery) -> None:
            loop.call_soon_threadsafe(self._accept, delivery)

        writer = LogWriter(self.paths.log, database=self.paths.database)
        stack.callback(writer.close)
        self._tailer = Tailer(
            self.paths,
            writer,
            choice=self._choice,
            config=config,
            deliver=deliver,
        )
        # Off the loop: a source that is busy or a first installation may take seconds.
        self._history, self._catalog = await asyncio.to_thread(self._tailer.open)
        stack.push_async_callback(asyncio.to_thread, self._tailer.stop)
        for suffix in ("-wal", "-shm"):
            path = self.paths.log.with_name(self.paths.log.name + suffix)
            if path.exists():
                like_database(self.paths, path)

    async def _start_fanout(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        reader = LogReader(self.paths.log)
        threads = ThreadPoolExecutor(config.log.reader_threads, thread_name_prefix="cdchub-log")
        stack.callback(reader.close)
        stack.callback(threads.shutdown)
        self.spools = Spools(
            self.paths,
            config.snapshot,
            log=reader,
            anchor=lambda: self.core.present.anchor,
            catalog=lambda: self.core.present.catalog,
        )
        stack.push_async_callback(self.spools.close)
        present = Present(
            history=self._history,
            catalog=self._catalog,
            ring=Ring(
                bytes_max=config.log.ring_bytes_max,
                head_lsn=self._history.state.present.head_lsn,
            ),
            log=_LogPages(reader, threads),
            with_bases=config.base.enabled,
        )
        self.core = Core(config.stream, present, snapshots=self.spools, taken=self._tailer.accepted)
        self.writer = SourceWriterThread(
            self.paths, kick=self._tailer.kick, write_s_max=config.http.write_s_max
        )
        stack.push_async_callback(self.writer.close)
        self._running = asyncio.create_task(self.core.run(), name="cdchub-fanout")
        stack.push_async_callback(self._stop_fanout)
        # The core's task group must stand before the first delivery needs it.
        await asyncio.sleep(0)

    async def _stop_fanout(self) -> None:
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running

    def _accept(self, delivery: Delivery) -> None:
        if self._running is not None and not self._running.done():
            self.core.accept(delivery)
        elif isinstance(delivery, Appended):
            self._tailer.accepted()

    @property
    def failing(self) -> str | None:
        """Why capture is interrupted, or None while all is well."""
        if self._running is not None and self._running.done():
            return "fan-out has ended"
        if not self._tailer.alive:
            return "capture has ended"
        return self._tailer.counters.failing

    def status(self) -> dict[str, object]:
        """What `/cdc/status` says: names in the style of the wire, times in milliseconds."""
        core, present, counters = self.core, self.core.present, self._tailer.counters
        subscribers = core.subscribers()
        by_table: Counter[str] = Counter()
        for subscriber in subscribers:
            by_table.update(subscriber.feed.selection.tables or ("*",))
        log_bytes = sum(
            path.stat().st_size
            for suffix in ("", "-wal")
            if (path := self.paths.log.with_name(self.paths.log.name + suffix)).exists()
        )
        return {
            "version": __version__,
            "database": str(self.paths.database),
            "uptimeMs": int((time.monotonic() - self._started_s) * 1000),
            "epoch": present.head.epoch,
            "firstLsn": present.oldest.lsn + 1,
            "headLsn": present.head.lsn,
            "tables": [table.name for table in present.catalog.tables],
            "subscribers": {
                "total": len(subscribers),
                "byTransport": dict(Counter(sub.transport for sub in subscribers)),
                "byTable": dict(by_table),
                "byState": dict(Counter(sub.state.name.lower() for sub in subscribers)),
                "outcomes": dict(core.outcomes),
            },
            "capture": {
                "state": "failing" if self.failing else "running",
                "error": self.failing,
                "wake": "inotify" if self._tailer.uses_inotify else "poll",
                "changes": counters.changes,
                "batches": counters.batches,
                "lagLsn": max(0, present.view.source_head_lsn - present.head.lsn),
                "lastCommitMs": counters.last_commit_ms,
                "busy": counters.busy,
                "faults": counters.faults,
                "epochsStarted": counters.epochs_started,
                "breaks": counters.breaks,
                "differences": counters.differences,
                "commitsExact": counters.commits_exact,
                "commitsMerged": counters.commits_merged,
                "prunesQuiet": counters.prunes_quiet,
                "prunesForced": counters.prunes_forced,
                "rowsPruned": counters.rows_pruned,
                "warnings": list(counters.warnings),
            },
            "log": {
                "bytes": log_bytes,
                "ringBytes": present.ring_bytes,
                "retentionSlices": counters.retained,
                "snapshotsTaken": self.spools.taken,
                "baseLsn": present.view.log.present.base_lsn,
                "basesTaken": counters.bases_taken,
                "basesFailed": counters.bases_failed,
            },
        }
