"""What is captured, as subscribers see it: tables, their keys, columns and room columns.

A catalog is immutable; capture replaces it whole when the schema changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from cdchub.change import SqliteValue
from cdchub.errors import MissingTable, NoRoomColumn, UnknownTable


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


_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_NUMBER_CHARS_MAX = 400
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")


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
    that have a room column; the others are sent whole (INTERFACE §3).
    """

    tables: tuple[str, ...] | None
    room: str | None = None


class SnapshotFormat(Enum):
    """What a snapshot's rows are written as."""

    CHANGES = "changes"  # SNAPSHOT changes, one JSON object a line
    ROWS = "rows"  # rows, one JSON object a line
    CSV = "csv"  # a header row and records as RFC 4180 has them


class Catalog:
    """The captured tables by name. SQLite folds ASCII case in names, and so does `find`.

    `gone` are tables that are captured no longer, as they were last: the log may still tell of them,
    and what it tells belongs to the rooms that they had.
    """

    def __init__(self, tables: Sequence[TableInfo] = (), *, gone: Sequence[TableInfo] = ()) -> None:
        self.tables = tuple(sorted(tables, key=lambda table: table.name))
        self.gone = tuple(gone)
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

    def select(self, names: Sequence[str], room: str | None) -> Selection:
        """The selection that `?table=…&room=…` asks for.

        Raises `MissingTable`, `UnknownTable` or `NoRoomColumn`.
        """
        wanted = [name for name in names if name]
        if not wanted:
            raise MissingTable
        tables = None if "*" in wanted else tuple(sorted({self.find(name).name for name in wanted}))
        selection = Selection(tables, room)
        if room is not None and all(table.room is None for table in self.chosen(selection)):
            raise NoRoomColumn(wanted)
        return selection

    def chosen(self, selection: Selection) -> list[TableInfo]:
        """The captured tables that `selection` covers now."""
        if selection.tables is None:
            return list(self.tables)
        return [self._by_name[fold_name(n)] for n in selection.tables if fold_name(n) in self._by_name]

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


def fold_name(name: str) -> str:
    """A name as SQLite compares names: only A-Z are equal to a-z."""
    return name.translate(_ASCII_LOWER)


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
