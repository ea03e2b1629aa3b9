"""Two other ways to learn what a program changed, to judge the outbox by.

`AfterTriggers` is capture as it is usually done: AFTER triggers that write NEW and OLD. It tells how
many programs need more than that. `HookOracle` is SQLite's preupdate hook, which sees every row that
a connection touches, the ones that REPLACE removes too, but also what is undone later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from cdchub.capture.table import Grade, Shape, quote
from loadtest.rows import Key, Row, Table, Typed
from tests.conformance.tables import read_exact, rowid_name, wire_key


class AfterTriggers:
    """Plain AFTER triggers on one table of the twin, and the replay of what they wrote.

    The twin needs some triggers anyway, and ones that note the time as capture's do. A statement that
    calls a function in a trigger gets a statement journal, without which older SQLites keep the first
    rows of an INSERT whose last one has the wrong type for a rowid.
    """

    def __init__(self, connection: Any, shape: Shape, name: str) -> None:
        self._connection = connection
        self._shape = shape
        self._sink = sink = name
        rowid = rowid_name(shape)
        width = 1 + len(shape.captured)
        old = [f"o{i}" for i in range(width)]
        new = [f"n{i}" for i in range(width)]
        connection.execute(
            f"CREATE TABLE {sink}(lsn INTEGER PRIMARY KEY, at, {', '.join([*old, *new])})"
        )
        for event, parts in (
            ("INSERT", [("NEW", new)]),
            ("UPDATE", [("OLD", old), ("NEW", new)]),
            ("DELETE", [("OLD", old)]),
        ):
            columns = [column for _, named in parts for column in named]
            values = [
                f"{row}.{name}" if name else "NULL"
                for row, _ in parts
                for name in (rowid, *map(quote, shape.captured))
            ]
            connection.execute(
                f"CREATE TRIGGER {sink}_{event} AFTER {event} ON {quote(shape.name)} BEGIN"
                f" INSERT INTO {sink}(at, {', '.join(columns)})"
                f" VALUES (julianday(), {', '.join(values)}); END"
            )

        if shape.strict and shape.grade is Grade.FULL:
            connection.execute(
                f"CREATE TRIGGER {sink}_BEFORE BEFORE INSERT ON {quote(shape.name)} BEGIN SELECT 1; END"
            )

    def remove(self) -> None:
        for event in ("INSERT", "UPDATE", "DELETE", "BEFORE"):
            self._connection.execute(f"DROP TRIGGER IF EXISTS {self._sink}_{event}")
        self._connection.execute(f"DROP TABLE {self._sink}")

    def replayed(self, start: Table) -> Table:
        """The table as a follower of these triggers has it who began with `start`."""
        width = 1 + len(self._shape.captured)
        columns = [f"o{i}" for i in range(width)] + [f"n{i}" for i in range(width)]
        rows = dict(start)
        present = read_exact(self._connection, self._sink, columns, None, "ORDER BY lsn")
        marks = self._connection.execute(f"SELECT {self._marks()} FROM {self._sink} ORDER BY lsn")
        for (_, *values), (has_old, has_new) in zip(present, list(marks), strict=True):
            if has_old:
                rows.pop(self._keyed(values[:width])[0], None)
            if has_new:
                key, row = self._keyed(values[width:])
                rows[key] = row
        return rows

    def _marks(self) -> str:
        # What an INSERT leaves out is NULL, and so is what a row may hold; the rowid tells them apart.
        if self._shape.rowid is not None:
            return "o0 IS NOT NULL, n0 IS NOT NULL"
        key = 1 + self._shape.captured.index(self._shape.key[0])
        return f"o{key} IS NOT NULL, n{key} IS NOT NULL"

    def _keyed(self, values: Sequence[Typed]) -> tuple[Key, Row]:
        return keyed(self._shape, values[0], values[1:])


def keyed(shape: Shape, rowid: Typed, values: Sequence[Typed]) -> tuple[Key, Row]:
    row = dict(zip(shape.captured, values, strict=True))
    return wire_key(shape.key, row, rowid), row


# What the rows under the touched keys are after a commit; None where there is none.
Touched = dict[Key, Row | None]


class HookOracle:
    """Watches one table through the preupdate hook, and nets out what is undone.

    Works while the statements are given to it one by one. What `OR FAIL` leaves of a statement that
    failed can't be told from what it undid: then it knows nothing any more (`blind`).
    """

    def __init__(self, connection: apsw.Connection, shape: Shape) -> None:
        self._shape = shape
        self._connection = connection
        self._events: list[tuple[Key | None, Key | None, Row | None]] = []
        self._savepoints: list[tuple[str, int]] = []
        self.blind = False
        # Of each commit: the last LSN behind it, and what it touched.
        self.commits: list[tuple[int, Touched]] = []
        connection.preupdate_hook(self._touched)

    @staticmethod
    def fits(shape: Shape) -> bool:
        """APSW can't tell the values of a table with generated columns."""
        return not any(column.generated for column in shape.columns)

    def close(self) -> None:
        self._connection.preupdate_hook(None)

    def _touched(self, update: Any) -> None:
        if update.table_name != self._shape.name or update.database_name != "main":
            return
        old = new = None
        row = None
        if update.old is not None:
            old = keyed(self._shape, self._rowid(update.rowid), [typed(v) for v in update.old])[0]
        if update.new is not None:
            rowid = update.rowid_new if update.op == "UPDATE" else update.rowid
            new, row = keyed(self._shape, self._rowid(rowid), [typed(v) for v in update.new])
        self._events.append((old, new, row))

    def _rowid(self, rowid: int) -> Typed:
        return ("null", None) if self._shape.rowid is None else ("integer", rowid)

    def before(self) -> int:
        """A statement begins. What it returns is for `after`."""
        return len(self._events)

    def after(self, sql: str, mark: int, *, failed: bool, in_transaction: bool, head: int) -> None:
        if failed:
            # A statement of ours or of a trigger's can say FAIL only for the whole of it.
            self.blind = self.blind or "OR FAIL " in sql
            del self._events[mark:]
            if not in_transaction:
                self._events.clear()
                self._savepoints.clear()
        elif sql.startswith("SAVEPOINT"):
            self._savepoints.append((sql.split()[1], mark))
        elif sql.startswith("ROLLBACK TO"):
            while self._savepoints[-1][0] != sql.split()[2]:
                self._savepoints.pop()
            del self._events[self._savepoints[-1][1] :]
        elif sql.startswith("RELEASE"):
            while self._savepoints.pop()[0] != sql.split()[1]:
                pass
        elif sql == "ROLLBACK":
            self._events.clear()
        if not in_transaction:
            self._savepoints.clear()
            self._commit(head)

    def _commit(self, head: int) -> None:
        touched: Touched = {}
        for old, new, row in self._events:
            if old is not None:
                touched[old] = None
            if new is not None:
                touched[new] = row
        self._events.clear()
        self.commits.append((head, touched))


def typed(value: Any) -> Typed:
    """A value as Python has it, with its storage class."""
    match value:
        case None:
            return ("null", None)
        case int():
            return ("integer", value)
        case float():
            return ("real", value.hex())
        case str():
            return ("text", value.encode())
    return ("blob", bytes(value))


def disagreements(start: Table, commits: Sequence[tuple[int, Touched]], changes: Any) -> list[str]:
    """Where hook and log tell different things of a commit: the row under some key, or nothing.

    `changes` are the log's: (LSN, key, row or None), in order.
    """
    found = []
    rows: dict[Key, Row | None] = dict(start)
    place = 0
    for head, touched in commits:
        told: Touched = {}
        while place < len(changes) and changes[place][0] <= head:
            told[changes[place][1]] = changes[place][2]
            place += 1
        for key in touched.keys() | told.keys():
            # What the one doesn't mention, it says to be as it was.
            hook, log = touched.get(key, rows.get(key)), told.get(key, rows.get(key))
            if hook != log:
                found.append(f"up to LSN {head}, {dict(key)}: hook {hook}, log {log}")
        rows |= touched
    if place < len(changes):
        found.append(f"the log has changes behind the last commit: {changes[place:]}")
    return found
