"""The shape of one user table, as SQLite's own pragmas tell it.

A shape is everything that the capture triggers depend on. Two equal shapes have equal triggers; a
table whose shape changes is captured anew under another id, so that an outbox row can always be
read with the shape it was written under.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec

from cdchub.capture.ddl import names_in, parse_collations, parse_generated, parse_index
from cdchub.capture.schema import Database, Schema, is_reserved
from cdchub.catalog import Affinity, ColumnInfo, TableInfo, affinity_of, fold_name
from cdchub.errors import TableRefused

# SQLite's default SQLITE_MAX_COLUMN is 2,000 (sqlite.org/limits.html), and the outbox keeps the old
# and the new value of each column beside seven columns of its own.
COLUMNS_MAX = 990


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


class NamedColumn(msgspec.Struct, frozen=True):
    """A column that an expression names, with all that decides how it compares there. `generated`: the
    expression that makes it, as the user wrote it."""

    name: str
    affinity: str
    collation: str
    generated: str | None = None


class Shape(msgspec.Struct, frozen=True):
    """One table. `columns` are those of `SELECT *`; `captured` are those of them not excluded.

    `named` are the generated columns in unique indexes, the columns that the expressions of those
    name, and whatever these are generated from. `key` are the declared primary-key columns, and
    `key_collations` what tells its values apart, which need not be the columns' own; `rowid_key`: that
    key is an INTEGER PRIMARY KEY. `rowid` is a name under which the rowid can be read, None for a
    WITHOUT ROWID table. `converted`: a foreign key's check may convert OLD (see `triggers`).
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
    named: tuple[NamedColumn, ...] = ()
    key_collations: tuple[str, ...] = ()
    converted: bool = False

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


def columns_of(db: Database, table: str) -> frozenset[str]:
    """The names of a table's columns, folded; empty where there is no such table."""
    rows = db.execute("SELECT name FROM pragma_table_xinfo(?)", (table,))
    return frozenset(fold_name(name) for (name,) in rows)


def read_shape(
    schema: Schema,
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
    listed = schema.listed(name)
    if listed is None:
        raise TableRefused(name, "there is no such table")
    db, (name, kind, without_rowid, strict) = schema.db, listed
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
    unique, key_index = _unique_indexes(schema, name)
    # A single INTEGER primary key without an index of its own is the rowid itself; one declared
    # "INTEGER PRIMARY KEY DESC" has an index and is not (sqlite.org/lang_createtable.html#rowid).
    rowid_key = not without_rowid and len(key) == 1 and key_index is None
    shape = Shape(
        name=name,
        columns=columns,
        captured=_captured(name, columns, key, excluded),
        key=key,
        rowid=None if without_rowid else (key[0] if rowid_key else _rowid_name(name, columns)),
        rowid_key=rowid_key,
        strict=strict,
        unique=unique,
        room=None,
        grade=grade,
        named=_named(schema, name, columns, unique, strict=strict),
        key_collations=_collations_in(key_index, key),
        converted=_is_converted(schema, name, columns, key, strict=strict),
    )
    if shape.key_nullable and "rowid" in map(fold_name, key):
        raise TableRefused(
            name, "its key can be NULL and has a column called rowid: such keys can't be told apart"
        )
    return msgspec.structs.replace(shape, room=_room_column(shape, room))


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


def _collations_in(index: UniqueIndex | None, key: Sequence[str]) -> tuple[str, ...]:
    if index is None:
        return ()
    by_column = {term.column: term.collation for term in index.terms}
    return tuple(by_column[name] for name in key)


def _is_converted(
    schema: Schema, table: str, columns: Sequence[Column], key: Sequence[str], *, strict: bool
) -> bool:
    """Whether a foreign key refers from a numeric column to one of `table` that is none."""
    ours = {
        fold_name(column.name)
        for column in columns
        if affinity_of(column.type, strict=strict) is not Affinity.NUMERIC
    }
    for child, place, theirs, named in schema.references(table):
        parent = named if named is not None else (key[place] if place < len(key) else "")
        listed = schema.listed(child)
        child_strict = listed is not None and listed.strict
        if affinity_of(theirs, strict=child_strict) is Affinity.NUMERIC and fold_name(parent) in ours:
            return True
    return False


def _unique_indexes(schema: Schema, table: str) -> tuple[tuple[UniqueIndex, ...], UniqueIndex | None]:
    """The unique indexes of `table`, and which of them is the declared key's own."""
    db = schema.db
    indexes = []
    key_index = None
    listed = list(db.execute('SELECT name, "unique", origin FROM pragma_index_list(?)', (table,)))
    for index, unique, origin in listed:
        if not unique:
            continue
        sql = schema.sql(index)
        expressions, predicate = parse_index(sql, table) if sql else ([], None)
        terms = []
        rows = db.execute(
            "SELECT cid, name, coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno", (index,)
        )
        for place, (cid, column, collation) in enumerate(rows):
            expression = expressions[place] if cid == -2 else None
            terms.append(IndexTerm(column, expression, collation))
        indexes.append(UniqueIndex(tuple(terms), predicate))
        if origin == "pk":
            key_index = indexes[-1]
    return tuple(indexes), key_index


def _named(
    schema: Schema,
    table: str,
    columns: Sequence[Column],
    unique: Sequence[UniqueIndex],
    *,
    strict: bool,
) -> tuple[NamedColumn, ...]:
    folded = {fold_name(column.name): column for column in columns}
    terms = [term for index in unique for term in index.terms]
    texts = [term.expression for term in terms if term.expression is not None]
    wanted = {fold_name(t.column) for t in terms if t.column and folded[fold_name(t.column)].generated}
    wanted |= names_in(texts) & folded.keys()
    if not wanted:
        return ()
    sql = schema.sql(table) or ""
    collations, generated = parse_collations(sql), parse_generated(sql)
    while more := names_in([generated[name] for name in wanted if name in generated]) - wanted:
        if not (more := more & folded.keys()):
            break
        wanted |= more
    return tuple(
        NamedColumn(
            column.name,
            stored_affinity(column.type, strict=strict),
            collations.get(name, "BINARY"),
            generated.get(name),
        )
        for name, column in folded.items()
        if name in wanted
    )


def stored_affinity(declared_type: str, *, strict: bool) -> str:
    """The affinity of a declared type as a type that has it, by sqlite.org/datatype3.html §3.1."""
    broad = affinity_of(declared_type, strict=strict)
    if broad is not Affinity.NUMERIC:
        return str(broad.value)
    name = declared_type.upper()
    if "INT" in name:
        return "INTEGER"
    return "REAL" if any(part in name for part in ("REAL", "FLOA", "DOUB")) else "NUMERIC"
