"""The shape of one user table, as SQLite's own pragmas tell it.

A shape is everything that the capture triggers depend on. Two equal shapes have equal triggers; a
table whose shape changes is captured anew under another id, so that an outbox row can always be
read with the shape it was written under.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Protocol

import msgspec

from cdchub.catalog import ColumnInfo, TableInfo, affinity_of, fold_name
from cdchub.errors import TableRefused

OWN_PREFIX = "_cdchub_"
# SQLite's default SQLITE_MAX_COLUMN is 2,000 (sqlite.org/limits.html), and the outbox keeps the old
# and the new value of each column beside seven columns of its own.
COLUMNS_MAX = 990


class Database(Protocol):
    """What capture needs of a connection; `driver.Connection` is one."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Iterable[Any]: ...

    def iterate(self, sql: str, parameters: Sequence[Any] = ..., /) -> Iterable[Any]:
        """The rows as they are asked for, not all at once."""
        ...


class Grade(Enum):
    """How much of what happens to a table is captured; in the order of what a write costs.

    PLAIN is for tables that nobody writes with REPLACE: rows that it evicts go unseen.
    """

    FULL = "full"
    PLAIN = "plain"


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str
    not_null: bool
    default: str | None
    generated: bool


class IndexTerm(msgspec.Struct, frozen=True):
    """One column of a unique index, or an expression (`column` is None) as the user wrote it."""

    column: str | None
    expression: str | None
    collation: str


class UniqueIndex(msgspec.Struct, frozen=True):
    terms: tuple[IndexTerm, ...]
    predicate: str | None


class Shape(msgspec.Struct, frozen=True):
    """One table. `columns` are those of `SELECT *`; `captured` are those of them not excluded.

    `rowid` is a name under which the rowid can be read, None for a WITHOUT ROWID table. `key` are
    the declared primary-key columns. `rowid_key`: that key is an INTEGER PRIMARY KEY.
    """

    name: str
    columns: tuple[Column, ...]
    captured: tuple[str, ...]
    key: tuple[str, ...]
    rowid: str | None
    rowid_key: bool
    strict: bool
    unique: tuple[UniqueIndex, ...]
    room: str | None
    grade: Grade = Grade.FULL

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def key_nullable(self) -> bool:
        """Whether a declared key can hold a NULL: SQLite allows it in rowid tables
        (sqlite.org/lang_createtable.html, "PRIMARY KEY")."""
        if self.rowid is None or self.rowid_key:
            return False
        return any(not self.column(name).not_null for name in self.key)

    def info(self) -> TableInfo:
        return TableInfo(
            name=self.name,
            key=self.key or ("rowid",),
            columns=tuple(
                ColumnInfo(c.name, c.type, affinity_of(c.type, strict=self.strict))
                for c in self.columns
                if c.name in self.captured
            ),
            room=self.room,
        )


def quote(name: str) -> str:
    """A name as SQL text, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def rowid_text(shape: Shape) -> str | None:
    """The rowid as SQL text, or None for a WITHOUT ROWID table."""
    # Quoted only where it is a column: "rowid" in quotes would be a string in old libraries.
    return quote(shape.rowid) if shape.rowid is not None and shape.rowid_key else shape.rowid


def literal(text: str) -> str:
    """A string as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def user_tables(db: Database) -> list[str]:
    """The names of all tables that capture can cover: no views, no virtual or shadow tables."""
    rows = db.execute("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'")
    return sorted(name for (name,) in rows if not is_reserved(name))


def is_reserved(name: str) -> bool:
    return fold_name(name).startswith((OWN_PREFIX, "sqlite_"))


def columns_of(db: Database, table: str) -> frozenset[str]:
    """The names of a table's columns, folded; empty where there is no such table."""
    rows = db.execute("SELECT name FROM pragma_table_xinfo(?)", (table,))
    return frozenset(fold_name(name) for (name,) in rows)


def read_shape(
    db: Database,
    name: str,
    *,
    room: str | None,
    excluded: frozenset[str] = frozenset(),
    grade: Grade = Grade.FULL,
) -> Shape:
    """The shape of table `name`. Raises `TableRefused` with the reason where it can't be captured.

    `room` is the wanted room column; without one, a column called `room` is it.
    """
    if is_reserved(name):
        raise TableRefused(name, "it is SQLite's or cdchub's own")
    row = next(iter(_listed(db, name)), None)
    if row is None:
        raise TableRefused(name, "there is no such table")
    name, kind, without_rowid, strict = row
    if kind != "table":
        raise TableRefused(name, f"it is a {kind} table; only ordinary tables fire triggers")
    columns = tuple(
        Column(column, type_ or "", bool(not_null), default, hidden != 0)
        for column, type_, not_null, default, hidden in db.execute(
            'SELECT name, type, "notnull", dflt_value, hidden FROM pragma_table_xinfo(?)', (name,)
        )
    )
    if len(columns) > COLUMNS_MAX:
        raise TableRefused(name, f"it has {len(columns)} columns; {COLUMNS_MAX} are the most")
    key_rows = list(
        db.execute("SELECT name, type FROM pragma_table_xinfo(?) WHERE pk > 0 ORDER BY pk", (name,))
    )
    key = tuple(column for column, _ in key_rows)
    unique, has_key_index = _unique_indexes(db, name)
    # A single INTEGER primary key without an index of its own is the rowid itself; one declared
    # "INTEGER PRIMARY KEY DESC" has an index and is not (sqlite.org/lang_createtable.html#rowid).
    rowid_key = not without_rowid and len(key) == 1 and not has_key_index
    shape = Shape(
        name=name,
        columns=columns,
        captured=_captured(name, columns, key, excluded),
        key=key,
        rowid=None if without_rowid else (key[0] if rowid_key else _rowid_name(name, columns)),
        rowid_key=rowid_key,
        strict=bool(strict),
        unique=unique,
        room=None,
        grade=grade,
    )
    if shape.key_nullable and "rowid" in map(fold_name, key):
        raise TableRefused(
            name, "its key can be NULL and has a column called rowid: such keys can't be told apart"
        )
    return msgspec.structs.replace(shape, room=_room_column(shape, room))


def _listed(db: Database, name: str) -> Iterable[tuple[str, str, int, int]]:
    return db.execute(
        "SELECT name, type, wr, strict FROM pragma_table_list"
        " WHERE schema = 'main' AND name = ? COLLATE NOCASE",
        (name,),
    )


def _captured(
    table: str, columns: Sequence[Column], key: Sequence[str], excluded: frozenset[str]
) -> tuple[str, ...]:
    folded = {fold_name(name) for name in excluded}
    unknown = folded - {fold_name(column.name) for column in columns}
    if unknown:
        raise TableRefused(table, f"it has no column {min(unknown)!r} to exclude")
    for name in key:
        if fold_name(name) in folded:
            raise TableRefused(table, f"{name!r} is part of its key and can't be excluded")
    return tuple(column.name for column in columns if fold_name(column.name) not in folded)


def _room_column(shape: Shape, wanted: str | None) -> str | None:
    name = "room" if wanted is None else wanted
    found = next((c for c in shape.captured if fold_name(c) == fold_name(name)), None)
    if found is None and wanted is not None:
        raise TableRefused(shape.name, f"it has no captured column {wanted!r} to be its room")
    return found


def _rowid_name(table: str, columns: Sequence[Column]) -> str:
    taken = {fold_name(column.name) for column in columns}
    for name in ("rowid", "_rowid_", "oid"):
        if name not in taken:
            return name
    raise TableRefused(
        table, "its columns hide all of rowid, _rowid_ and oid, so rows can't be told apart"
    )


def _unique_indexes(db: Database, table: str) -> tuple[tuple[UniqueIndex, ...], bool]:
    """The unique indexes of `table`, and whether one of them is the declared key's own."""
    texts = dict(
        db.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?", (table,)
        )
    )
    indexes = []
    has_key_index = False
    listed = list(db.execute('SELECT name, "unique", origin FROM pragma_index_list(?)', (table,)))
    for index, unique, origin in listed:
        if not unique:
            continue
        has_key_index = has_key_index or origin == "pk"
        sql = texts.get(index)
        expressions, predicate = parse_index(sql) if sql else ([], None)
        terms = []
        rows = db.execute(
            "SELECT cid, name, coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno", (index,)
        )
        for place, (cid, column, collation) in enumerate(rows):
            expression = expressions[place] if cid == -2 else None
            terms.append(IndexTerm(column, expression, collation))
        indexes.append(UniqueIndex(tuple(terms), predicate))
    return tuple(indexes), has_key_index


_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
        | --[^\n]*(?:\n|$) | /\*.*?(?:\*/|$) | \w+ | .""",
    re.VERBOSE | re.DOTALL,
)


def parse_index(sql: str) -> tuple[list[str], str | None]:
    """The indexed terms and the WHERE text of a CREATE INDEX statement, as the user wrote them.

    SQLite tells the columns of an index but not its expressions, so they are cut from the text that
    it has already accepted: only brackets, quotes and comments need to be understood.
    """
    tokens = [" " if t.startswith(("--", "/*")) else t for t in _TOKEN.findall(sql)]
    on = next(i for i, token in enumerate(tokens) if token.lower() == "on")
    start = tokens.index("(", on)
    depth, end = 0, start
    terms: list[str] = []
    term = ""
    for end in range(start, len(tokens)):
        token = tokens[end]
        depth += (token == "(") - (token == ")")
        if depth == 0 or (depth == 1 and token == ","):
            terms.append(term.strip())
            term = ""
            if depth == 0:
                break
        elif end > start:
            term += token
    rest = tokens[end + 1 :]
    where = next((i for i, token in enumerate(rest) if token.lower() == "where"), None)
    predicate = "".join(rest[where + 1 :]).strip().rstrip(";") if where is not None else None
    return [re.sub(r"\s+(asc|desc)$", "", t, flags=re.IGNORECASE) for t in terms], predicate
