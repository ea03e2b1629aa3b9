"""Writing to the source from this process: one thread, one connection, one transaction at a time.

A commit here is like any other writer's: it reaches subscribers through the triggers and the log.
All that it adds is a kick, so that the tailer looks at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from cdchub.capture.connection import FileIdentity, SourcePaths, open_source
from cdchub.capture.driver import Busy, Connection, ConstraintFailed, Damaged, Unwritable
from cdchub.capture.install import TABLES
from cdchub.capture.outbox import outbox_head
from cdchub.capture.scan import codec_of, decode_exact, exact_columns
from cdchub.capture.triggers import OUTBOX
from cdchub.change import SqliteValue
from cdchub.errors import ConstraintViolation, Overloaded, StartError

Rows = list[tuple[Any, ...]]

# From the newest row back, so that one's own change is found at once.
_NEWEST_OF = (
    f"SELECT lsn FROM {OUTBOX} WHERE tbl IN"
    f" (SELECT id FROM {TABLES} WHERE active AND json_extract(shape, '$.name') = ?)"
    " ORDER BY lsn DESC LIMIT 1"
)


class Transaction:
    """An open write transaction. Its methods raise `ConstraintViolation` or `Overloaded`."""

    def __init__(self, run: Callable[[str, Sequence[SqliteValue]], Any]) -> None:
        self._run = run

    async def execute(self, sql: str, parameters: Sequence[SqliteValue] = ()) -> Rows:
        """Runs one statement and returns its rows, also those of RETURNING."""
        rows: Rows = await self._run(sql, parameters)
        return rows

    async def lsn_of(self, table: str) -> int | None:
        """The LSN of the newest change of a captured table, so of this transaction's own, if it has
        made one; None where no change of it waits in the outbox."""
        rows = await self._run(_NEWEST_OF, (table,))
        return rows[0][0] if rows else None


class SourceWriterThread:
    """The writer. `write_s_max` bounds a transaction, from its BEGIN to its COMMIT."""

    def __init__(self, paths: SourcePaths, *, kick: Callable[[], None], write_s_max: float) -> None:
        self._paths = paths
        self._kick = kick
        self._write_s_max = write_s_max
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cdchub-writer")
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._codec: str | None = None
        self._files = FileIdentity(paths)

    async def query(self, sql: str, parameters: Sequence[SqliteValue] = ()) -> Rows:
        """Runs one reading statement in a snapshot of its own."""
        async with self._turn:
            return await self._in_thread(sql, parameters)

    async def query_exact(
        self, columns: Sequence[str], rest: str, parameters: Sequence[SqliteValue] = ()
    ) -> Rows:
        """Runs `SELECT <columns> <rest>`; TEXT that is not UTF-8 comes as `InvalidText`."""
        async with self._turn:
            sql = f"SELECT {exact_columns(columns)} {rest}"
            rows = await self._in_thread(sql, parameters)
            if self._codec is None:
                ((encoding,),) = await self._in_thread("PRAGMA encoding", ())
                self._codec = codec_of(encoding)
            return [decode_exact(row, self._codec) for row in rows]

    async def query_at(self, sql: str, parameters: Sequence[SqliteValue] = ()) -> tuple[Rows, int]:
        """Like `query`, with the LSN that the rows show."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            return await loop.run_in_executor(self._thread, self._read_at, sql, parameters)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """BEGIN IMMEDIATE … COMMIT; an exception in the block rolls back.

        Raises `Overloaded` where the write lock was not to be had or the time ran out.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(self._write_s_max):
                    # Inside, because a cancelled BEGIN may still have taken the lock.
                    await self._in_thread("BEGIN IMMEDIATE", ())
                    yield Transaction(self._in_thread)
                await self._commit()
            except BaseException as error:
                loop = asyncio.get_running_loop()
                await asyncio.shield(loop.run_in_executor(self._thread, self._roll_back))
                if isinstance(error, TimeoutError):
                    raise Overloaded("the database was busy for too long; try again") from error
                raise

    async def _commit(self) -> None:
        """Commits, and knows how that ended: whoever gives up waiting could not tell."""
        commit = asyncio.ensure_future(self._in_thread("COMMIT", ()))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait({commit})
            raise
        finally:
            self._kick()

    async def close(self) -> None:
        async with self._turn:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def _in_thread(self, sql: str, parameters: Sequence[SqliteValue]) -> Rows:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._execute, sql, parameters)

    def _execute(self, sql: str, parameters: Sequence[SqliteValue]) -> Rows:
        try:
            return self._open().execute(sql, parameters)
        except ConstraintFailed as error:
            raise ConstraintViolation(str(error)) from error
        except Busy as error:
            raise Overloaded("another process holds the database's write lock; try again") from error
        except (Unwritable, Damaged, OSError, StartError) as error:
            raise Overloaded(f"the database can't be written now: {error}") from error

    def _read_at(self, sql: str, parameters: Sequence[SqliteValue]) -> tuple[Rows, int]:
        self._execute("BEGIN", ())
        try:
            return self._execute(sql, parameters), outbox_head(self._open()).lsn
        finally:
            self._roll_back()

    def _open(self) -> Connection:
        """The connection, to the file that is there now: a restored one is another file."""
        if self._connection is not None and self._files.changed():
            if self._connection.in_transaction:
                raise Overloaded("the database was replaced in the middle of this; try again")
            self._connection.abandon()
            self._connection = self._codec = None
        if self._connection is None:
            self._connection = open_source(self._paths)
            self._files = FileIdentity(self._paths)
        return self._connection

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _close(self) -> None:
        if self._connection is not None:
            if self._files.changed():
                self._connection.abandon()
            else:
                self._connection.close()
            self._connection = None
