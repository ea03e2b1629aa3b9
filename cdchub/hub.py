"""The hub: capture, log and fan-out of one source, put together. HTTP is put around it in `app`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import apsw
import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from cdchub.capture.choice import Choice, TableChoice
from cdchub.capture.connection import SourcePaths, check_source, source_paths
from cdchub.capture.driver import Driver
from cdchub.capture.table import Grade
from cdchub.capture.writer import SourceWriterThread, Transaction
from cdchub.capturing import Capturing
from cdchub.catalog import Selection
from cdchub.config import Config
from cdchub.errors import DriverConflict, UsageError
from cdchub.fanout import (
    BufferSink,
    Core,
    FromBase,
    LocalFramer,
    Present,
    Start,
    lines_of,
    resolve,
)
from cdchub.log import LogReader, Ring
from cdchub.log.protocol import Appended, Cursor, Delivery, Narrowing, Page
from cdchub.position import Beginning, Now, parse_since
from cdchub.spools import Spools
from cdchub.status import status_of
from cdchub.ws import Messages, Rooms

logger = logging.getLogger("cdchub")

# Maps a request to its user, or to None: unauthorized.
Authenticate = Callable[[Request], object | Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Table:
    """One table to capture. `room` names its room column, `exclude` columns that stay out.

    `capture` is `"full"`, or `"plain"` for a table that is never written with REPLACE: cheaper, and
    blind to the rows that REPLACE evicts.
    """

    name: str
    room: str | None = None
    capture: str = "full"
    exclude: tuple[str, ...] = ()


def choice_of(tables: Sequence[str | Table] | None, exclude: Sequence[str]) -> Choice | None:
    """What is to be captured; None leaves it as it was, at first everything. Raises `UsageError`."""
    if tables is None:
        return Choice(None, tuple(exclude)) if exclude else None
    chosen = [Table(table) if isinstance(table, str) else table for table in tables]
    excluded = [*exclude, *(f"{table.name}.{column}" for table in chosen for column in table.exclude)]
    return Choice(
        tuple(TableChoice(table.name, table.room, _grade(table)) for table in chosen), tuple(excluded)
    )


def _grade(table: Table) -> Grade:
    try:
        return Grade(table.capture)
    except ValueError:
        raise UsageError(
            f"table {table.name!r}: capture is full or plain, not {table.capture!r}"
        ) from None


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

    Where another hub owns the source, this one follows its log, and takes over when it ends.
    Raises `StartError` on entering where the source or its log can't be had.
    """

    def __init__(
        self,
        database: str | os.PathLike[str],
        *,
        tables: Sequence[str | Table] | None = None,
        exclude: Sequence[str] = (),
        driver: str = "sqlite3",
        config: Config | None = None,
        choice: Choice | None = None,
        exclusive: bool = False,
    ) -> None:
        """`tables`: what to capture, by name or as `Table`; None for every user table, also later
        ones. `exclude`: tables, and columns as `table.column`, that stay out.

        `driver` is the SQLite library that this process uses for the database, `"sqlite3"` or
        `"apsw"`: two of them on one file in one process corrupt it. `exclusive`: a source that
        another hub owns is an error. `choice` is `tables` and `exclude` in the form of the command
        line. Raises `UsageError`.
        """
        self.config = (config or Config()).checked()
        self.database = os.fspath(database)
        try:
            self._driver = Driver(driver)
        except ValueError:
            raise UsageError(f'driver is "sqlite3" or "apsw", not {driver!r}') from None
        self._choice = choice_of(tables, exclude) if choice is None else choice
        self._exclusive = exclusive
        self._started_s = time.monotonic()
        self._running: asyncio.Task[None] | None = None
        self._local_framer = LocalFramer()

    async def __aenter__(self) -> Hub:
        async with contextlib.AsyncExitStack() as stack:
            self.paths: SourcePaths = source_paths(self.database, self._driver)
            await asyncio.to_thread(check_source, self.paths)
            loop = asyncio.get_running_loop()

            def deliver(delivery: Delivery) -> None:
                loop.call_soon_threadsafe(self._accept, delivery)

            self._capturing = Capturing(
                self.paths,
                choice=self._choice,
                config=self.config,
                exclusive=self._exclusive,
                deliver=deliver,
                owns=self._become_owner,
            )
            history, catalog = await self._capturing.open()
            stack.push_async_callback(self._capturing.close)
            self._history, self._catalog = history, catalog
            await self._start_fanout(stack)
            self._capturing.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    # What applications use.

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A write transaction on the source, `async with hub.transaction() as tx: await tx.execute(…)`;
        an exception in the block rolls back. Its commit wakes the hub.

        Raises `ConstraintViolation`, or `Overloaded` where the write lock was not to be had.
        """
        async with self.writer.transaction() as transaction:
            yield transaction

    def subscribe(
        self,
        *tables: str,
        room: str | None = None,
        since: str | None = None,
        snapshot: bool = False,
        filters: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> AsyncIterator[dict[str, Any]]:
        """The changes of these tables (`"*"`: all), as INTERFACE §2 has them, until the hub ends.

        `filters` are such as `"completed=eq.0"` (INTERFACE §3), all of which must hold.

        `since` is a position, an LSN, `"now"` (this call's) or `"beginning"`; `snapshot`: first the
        present rows. Where a table's history has a hole, a subscriber without `snapshot` goes on
        behind it. Raises `RequestError` for an unknown table, room or position; iterating raises
        `StreamBroken`.
        """
        if self.running_core is None:
            raise UsageError("this hub is not running: use it inside `async with hub`")
        catalog = self.core.present.catalog
        selection = catalog.select(catalog.names(tables), room, filters=filters, columns=columns)
        wanted = None if since is None else parse_since(since)
        start: Start = None
        if isinstance(wanted, Beginning):
            start = FromBase()
        elif not snapshot or not (wanted is None or isinstance(wanted, Now)):
            start = resolve(wanted or Now(), self.core.present.view)
        return self._changes(selection, start, snapshot=snapshot)

    async def _changes(
        self, selection: Selection, start: Start, *, snapshot: bool
    ) -> AsyncIterator[dict[str, Any]]:
        sink = BufferSink(self.config.stream.buffer_bytes_max)
        subscriber = self.core.subscribe(
            selection, self._local_framer, sink, start, snapshot=snapshot, transport="local"
        )
        try:
            async with contextlib.aclosing(lines_of(sink)) as lines:
                async for line in lines:
                    yield msgspec.json.decode(line)
        finally:
            # Nobody takes the rest.
            sink.abort()
            self.core.unsubscribe(subscriber)

    def watch(self, connection: object) -> None:
        """Wakes the hub at the commits of a connection of yours, by SQLite's commit hook.

        It only saves the time that the operating system takes to tell of a write; commits of any
        other connection are noticed too. Raises `UsageError` or `DriverConflict`.
        """
        if not isinstance(connection, apsw.Connection):
            raise UsageError(
                "only APSW's connections have hooks to watch; others are noticed through the -wal"
            )
        if self.running_core is None:
            raise UsageError("this hub is not running: use it inside `async with hub`")
        if self._driver is not Driver.APSW:
            raise DriverConflict(os.fspath(self.paths.database), wanted="sqlite3", found="apsw")
        if os.path.realpath(connection.filename) != os.fspath(self.paths.database):
            raise UsageError(f"this connection is to {connection.filename}, not to {self.database}")

        def committing() -> bool:
            self._capturing.kick()
            # False lets the commit go on.
            return False

        connection.set_commit_hook(committing, id=self)

    async def drain(self) -> None:
        """Refuses new streams, and ends the open ones within the drain window (`StreamConfig.drain_s`),
        each told where to resume. To be called before the server that carries them stops."""
        await self.core.drain()

    def asgi(self, authenticate: Authenticate | None = None) -> ASGIApp:
        """The hub's HTTP as an ASGI app, to be mounted in any other or served by itself.

        Mounted, it answers while the hub is entered; served by itself, it enters and leaves the hub
        with the server. `authenticate` is given each request and returns who it is from; None is
        answered with 401. Without it everybody is served: then access is your application's affair.
        """
        # Only here does capture's side know of HTTP, and a hub without it need not load it.
        from cdchub.app import mounted

        return mounted(self, authenticate)

    # Inside.

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
            doubt=self._capturing.doubt,
        )
        stack.push_async_callback(self.spools.close)
        loop, newest = asyncio.get_running_loop(), self._history.state.present
        head = Cursor(newest.number, newest.head_lsn)
        present = Present(
            history=self._history,
            catalog=self._catalog,
            ring=Ring(
                bytes_max=config.log.ring_bytes_max,
                head_lsn=self._history.state.present.head_lsn,
            ),
            log=_LogPages(reader, threads),
            with_bases=config.base.enabled,
            is_whole=await loop.run_in_executor(threads, reader.ends_transaction, head),
        )
        present.knows_source = self._capturing.is_owner
        self.core = Core(config.stream, present, snapshots=self.spools, taken=self._capturing.accepted)
        self.writer = SourceWriterThread(
            self.paths, kick=self._capturing.kick, write_s_max=config.http.write_s_max
        )
        stack.push_async_callback(self.writer.close)
        self.rooms = Rooms(loop.call_later, grace_s=config.websocket.grace_s)
        self.messages = Messages(self.writer, present, work_s_max=config.websocket.work_s_max)
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
            self._capturing.accepted()

    def _become_owner(self) -> None:
        self.core.present.knows_source = True

    @property
    def running_core(self) -> Core | None:
        """The fan-out while the hub runs."""
        return self.core if self._running is not None and not self._running.done() else None

    @property
    def failing(self) -> str | None:
        """Why changes are not delivered now, or None while all is well."""
        if self._running is not None and self._running.done():
            return "fan-out has ended"
        return self.core.fault or self._capturing.failing

    def status(self) -> dict[str, object]:
        """What `/cdc/status` says: names in the style of the wire, times in milliseconds."""
        return status_of(
            self.core,
            self._capturing,
            self.spools,
            self.rooms,
            self.paths,
            failing=self.failing,
            uptime_s=time.monotonic() - self._started_s,
        )
