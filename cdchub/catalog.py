"""What is captured, as subscribers see it: tables, their keys, columns and room columns.

A catalog is immutable; capture replaces it whole when the schema changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import msgspec

from cdchub.change import SqliteValue
from cdchub.errors import BadFilter, MissingTable, NoRoomColumn, UnknownColumn, UnknownTable
from cdchub.filter import Condition, Test, literals, make_test, parse_columns, parse_filter


class Affinity(Enum):
    """How a column converts what is compared with it (sqlite.org/datatype3.html §3)."""

    TEXT = "TEXT"
    NUMERIC = "NUMERIC"
    BLOB = "BLOB"


def affinity_of(declared_type: str, *, strict: bool = False) -> Affinity:
    """The affinity of a declared type: INTEGER, REAL and NUMERIC compare alike, so they are one.

    The rules are applied in the order of sqlite.org/datatype3.html §3.1.
    """
    name = declared_type.upper()
    if "INT" in name:
        return Affinity.NUMERIC
    if "CHAR" in name or "CLOB" in name or "TEXT" in name:
        return Affinity.TEXT
    # ANY converts nothing in a STRICT table (sqlite.org/stricttables.html); elsewhere it is NUMERIC.
    if "BLOB" in name or not name or (strict and name == "ANY"):
        return Affinity.BLOB
    return Affinity.NUMERIC


# ASCII: SQLite knows neither the digits nor the spaces of other scripts.
_INTEGER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_NUMBER_CHARS_MAX = 400
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    name: str
    type: str
    affinity: Affinity

    def literal(self, text: str) -> SqliteValue:
        """`text` as this column would compare it: numbers by value, text by bytes."""
        if self.affinity is Affinity.NUMERIC:
            # Beyond 64 bits SQLite makes a REAL of it; longer texts than a float's are no numbers.
            short = len(text) <= _NUMBER_CHARS_MAX
            if short and _INTEGER.fullmatch(text):
                return int(text) if -(2**63) <= int(text) < 2**63 else float(text)
            if short and _NUMBER.fullmatch(text):
                return float(text)
        return text


@dataclass(frozen=True, slots=True)
class TableInfo:
    """`key` names the columns of a change's key; it is `("rowid",)` where none is declared."""

    name: str
    key: tuple[str, ...]
    columns: tuple[ColumnInfo, ...]
    room: str | None

    def column(self, name: str) -> ColumnInfo | None:
        folded = fold_name(name)
        return next((column for column in self.columns if fold_name(column.name) == folded), None)

    def room_literal(self, text: str) -> SqliteValue:
        column = next(column for column in self.columns if column.name == self.room)
        return column.literal(text)


class TableSchema(msgspec.Struct, frozen=True):
    """A captured table as the log remembers it, enough to make an empty one like it.

    `columns` are the captured ones, `generated` those of them that can't be written, and `sql` is
    the CREATE TABLE statement. `rowid` is a name under which the rowid can be written, if there is
    one. `whole`: every column is captured, so that `sql` fits the rows. `begins`: in a note, that
    the table's rows are told from nothing on.
    """

    table: str
    key: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    generated: tuple[str, ...]
    rowid: str | None
    whole: bool
    sql: str
    begins: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """What one subscription is about: which tables, and in which room.

    `tables` is None for `*`, which also means tables that don't exist yet. `room` binds only tables
    that have a room column, `conditions` and `columns` those that they name; the others are sent
    whole (INTERFACE §3). `columns` are by table, key columns among them.
    """

    tables: tuple[str, ...] | None
    room: str | None = None
    conditions: tuple[Condition, ...] = ()
    columns: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def only(self, tables: Sequence[str]) -> Selection:
        """The same of some tables."""
        return replace(self, tables=tuple(sorted(tables)))

    def columns_of(self, table: str) -> tuple[str, ...] | None:
        """The columns that are wanted of a table; None for all."""
        return next((columns for name, columns in self.columns if name == table), None)

    def conditions_of(self, table: str) -> list[Condition]:
        return [condition for condition in self.conditions if condition.table == table]


class SnapshotFormat(Enum):
    """What a snapshot's rows are written as."""

    CHANGES = "changes"  # SNAPSHOT changes, one JSON object a line
    ROWS = "rows"  # rows, one JSON object a line
    CSV = "csv"  # a header row and records as RFC 4180 has them


class Query(Protocol):
    """The parameters of a URL."""

    def get(self, key: str, /) -> str | None: ...

    def getlist(self, key: str, /) -> list[str]: ...


class Catalog:
    """The captured tables by name. SQLite folds ASCII case in names, and so does `find`.

    `gone` are tables that are captured no longer, as they were last: the log may still tell of them,
    and what it tells belongs to the rooms that they had. `former` are tables as they were before:
    rows of theirs are compared as those columns did.
    """

    def __init__(
        self,
        tables: Sequence[TableInfo] = (),
        *,
        gone: Sequence[TableInfo] = (),
        former: Sequence[TableInfo] = (),
    ) -> None:
        self.tables = tuple(sorted(tables, key=lambda table: table.name))
        self.gone = tuple(gone)
        self.former = tuple(former)
        self._by_name = {fold_name(table.name): table for table in self.tables}

    def find(self, name: str) -> TableInfo:
        """The table called `name`. Raises `UnknownTable` (404)."""
        table = self._by_name.get(fold_name(name))
        if table is None:
            raise UnknownTable(name, [known.name for known in self.tables])
        return table

    def names(self, values: Sequence[str]) -> list[str]:
        """The names in `?table=a,b&table=c`. A table whose own name has a comma is found too."""
        return [
            name
            for value in values
            for name in ([value] if fold_name(value) in self._by_name else value.split(","))
        ]

    def asked_for(self, query: Query) -> Selection:
        """The selection of a request's parameters. Raises what `select` does."""
        return self.select(
            self.names(query.getlist("table")),
            query.get("room"),
            filters=query.getlist("filter"),
            columns=query.getlist("columns"),
        )

    def select(
        self,
        names: Sequence[str],
        room: str | None,
        *,
        filters: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> Selection:
        """The selection that `?table=…&room=…&filter=…&columns=…` asks for.

        Raises `MissingTable`, `UnknownTable`, `NoRoomColumn`, `BadFilter` or `UnknownColumn`.
        """
        wanted = [name for name in names if name]
        if not wanted:
            raise MissingTable
        tables = None if "*" in wanted else tuple(sorted({self.find(name).name for name in wanted}))
        selection = Selection(tables, room)
        chosen = self.chosen(selection)
        if room is not None and all(table.room is None for table in chosen):
            raise NoRoomColumn(wanted)
        if not (filters or columns):
            return selection
        if len(filters) > _CONDITIONS_MAX:
            raise BadFilter(filters[_CONDITIONS_MAX], 0, f"is one more than {_CONDITIONS_MAX}")
        # Sorted, so that equal requests share a feed however they are written.
        conditions = {self._condition(text, chosen) for text in filters}
        return replace(
            selection,
            conditions=tuple(sorted(conditions, key=repr)),
            columns=self._columns(columns, chosen),
        )

    def _condition(self, text: str, chosen: Sequence[TableInfo]) -> Condition:
        parsed = parse_filter(text)
        table, column = _column(parsed.names, text, chosen)
        return Condition(table.name, column.name, parsed.operator, parsed.texts)

    def _columns(
        self, texts: Sequence[str], chosen: Sequence[TableInfo]
    ) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """By table, the columns that `?columns=a,b` or `?columns=t.a,t.b` asks for, and the key's."""
        wanted: dict[str, set[str]] = {}
        for text in texts:
            for names in parse_columns(text):
                table, column = _column(names, text, chosen)
                wanted.setdefault(table.name, set(table.key)).add(column.name)
        return tuple(
            (table.name, tuple(c.name for c in table.columns if c.name in wanted[table.name]))
            for table in chosen
            if table.name in wanted
        )

    def chosen(self, selection: Selection) -> list[TableInfo]:
        """The captured tables that `selection` covers now."""
        if selection.tables is None:
            return list(self.tables)
        return [self._by_name[fold_name(n)] for n in selection.tables if fold_name(n) in self._by_name]

    def bound(
        self, selection: Selection, table: str
    ) -> list[tuple[Condition, Callable[[str], SqliteValue]]]:
        """A selection's conditions on one table, under their columns' present names, each with its
        column's conversion of literals."""
        return _bound(selection.conditions_of(table), self._known(table))

    def columns_of(self, selection: Selection, table: str) -> frozenset[str] | None:
        """The present names of the columns that are wanted of a table; None for all."""
        wanted = selection.columns_of(table)
        if wanted is None:
            return None
        infos = [(name, self._column_of(table, name)) for name in wanted]
        return frozenset(name if info is None else info.name for name, info in infos)

    def _column_of(self, table: str, name: str) -> ColumnInfo | None:
        """A column that a selection names: it may be written in other cases since."""
        info = self._known(table)
        return None if info is None else info.column(name)

    def _known(self, table: str) -> TableInfo | None:
        """The table as it is or, captured no longer, as it was last."""
        known = [info for info in [*self.gone, *self.tables] if info.name == table]
        return known[-1] if known else None

    def tests(self, selection: Selection, table: str) -> Tests:
        """What each row of a table must hold to be in a selection's filters, by column."""
        return _tests(self.bound(selection, table))

    def former_tests(self, selection: Selection, table: str) -> list[tuple[tuple[str, ...], Tests]]:
        """The same of the table's former shapes, each with the names of its columns."""
        conditions = selection.conditions_of(table)
        infos = [info for info in self.former if info.name == table] if conditions else []
        return [
            (tuple(column.name for column in info.columns), _tests(_bound(conditions, info)))
            for info in infos
        ]

    def former_literals(self, condition: Condition) -> list[SqliteValue]:
        """A condition's literals as its column compared them in the table's former shapes."""
        infos = [info for info in self.former if info.name == condition.table]
        return [
            value
            for info in infos
            for each, convert in _bound([condition], info)
            for value in literals(each, convert)
        ]

    def room_columns(self, selection: Selection) -> dict[str, tuple[str, SqliteValue]]:
        """Like `rooms`, with the name of the room column."""
        values = self.rooms(selection)
        return {
            table.name: (table.room, values[table.name])
            for table in self.tables
            if table.room is not None and table.name in values
        }

    def rooms(self, selection: Selection) -> dict[str, SqliteValue]:
        """By table, the value that its room column must have; tables sent whole are not in it."""
        if selection.room is None:
            return {}
        gone = [t for t in self.gone if selection.tables is None or t.name in selection.tables]
        return {
            table.name: table.room_literal(selection.room)
            for table in [*gone, *self.chosen(selection)]
            if table.room is not None
        }


Tests = list[tuple[str, Test]]


def _bound(
    conditions: Sequence[Condition], info: TableInfo | None
) -> list[tuple[Condition, Callable[[str], SqliteValue]]]:
    """A column that is gone holds nothing, and converts nothing."""
    found: list[tuple[Condition, Callable[[str], SqliteValue]]] = []
    for condition in conditions:
        column = None if info is None else info.column(condition.column)
        if column is None:
            found.append((condition, str))
        else:
            found.append((replace(condition, column=column.name), column.literal))
    return found


def _tests(bound: Sequence[tuple[Condition, Callable[[str], SqliteValue]]]) -> Tests:
    return [(condition.column, make_test(condition, convert)) for condition, convert in bound]


# Each is looked at for every change of its table.
_CONDITIONS_MAX = 20


def _column(
    names: Sequence[str], text: str, chosen: Sequence[TableInfo]
) -> tuple[TableInfo, ColumnInfo]:
    """What `column` or `table.column` names. Raises `BadFilter` or `UnknownColumn`."""
    if len(names) == 1 and len(chosen) != 1:
        raise BadFilter(text, 0, "needs a table here (table.column), as there are several")
    tables = {fold_name(table.name): table for table in chosen}
    table = chosen[0] if len(names) == 1 else tables.get(fold_name(names[0]))
    if table is None:
        raise BadFilter(text, 0, f"names {names[0][:80]!r}, which is none of the tables asked for")
    column = table.column(names[-1])
    if column is None:
        raise UnknownColumn(names[-1], table.name, [each.name for each in table.columns])
    return table, column


def fold_name(name: str) -> str:
    """A name as SQLite compares names: only A-Z are equal to a-z."""
    return name.translate(_ASCII_LOWER)


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
