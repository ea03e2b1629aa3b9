"""Writing to the source, as pages and rooms ask for it: what they know of capture's side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from cdchub.change import SqliteValue

Rows = list[tuple[Any, ...]]


class WriteTransaction(Protocol):
    async def execute(self, sql: str, parameters: Sequence[SqliteValue] = ...) -> Rows: ...

    async def lsn_of(self, table: str) -> int | None:
        """The LSN of the newest change of a captured table, so of this transaction's own."""
        ...


class SourceWriter(Protocol):
    """Writes to the source: one transaction at a time, committed when the block ends."""

    def transaction(self) -> AbstractAsyncContextManager[WriteTransaction]: ...

    async def query(self, sql: str, parameters: Sequence[SqliteValue] = ...) -> Rows: ...

    async def query_exact(
        self, columns: Sequence[str], rest: str, parameters: Sequence[SqliteValue] = ...
    ) -> Rows:
        """`SELECT <columns> <rest>`; TEXT that is not UTF-8 comes as `InvalidText`."""
        ...

    async def query_at(self, sql: str, parameters: Sequence[SqliteValue] = ...) -> tuple[Rows, int]:
        """Like `query`, with the LSN that the rows show."""
        ...
