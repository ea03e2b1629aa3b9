"""Tables as typed rows by wire key, and how they are read from a source and made of a replay.

A second implementation of INTERFACE §2, by way of `loadtest.rows`: nothing of it is the product's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cdchub.capture.table import Shape, quote
from cdchub.catalog import TableSchema
from loadtest.rows import Key, Row, Table, Typed, from_sqlite

ExactRow = tuple[Any, ...]


def read_exact(
    connection: Any,
    table: str,
    columns: Sequence[str],
    rowid: str | None,
    where: str = "",
    *args: object,
) -> list[tuple[Typed, ...]]:
    """Rows as they are stored, type for type and byte for byte; each begins with its rowid."""
    parts = [rowid or "NULL", *map(quote, columns)]
    select = ", ".join(
        f"typeof({p}), CASE typeof({p}) WHEN 'text' THEN CAST({p} AS BLOB) ELSE {p} END" for p in parts
    )
    ((encoding,),) = connection.execute("PRAGMA encoding")
    rows = connection.execute(f"SELECT {select} FROM {quote(table)} {where}", args)
    return [
        tuple(_typed(kind, value, encoding) for kind, value in zip(row[::2], row[1::2], strict=True))
        for row in rows
    ]


def _typed(kind: str, value: Any, encoding: str) -> Typed:
    if kind == "text" and encoding != "UTF-8":
        # Old libraries keep half a character of a cast; no reader of text ever sees it.
        value = value[: len(value) // 2 * 2]
        value = value.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    return from_sqlite(kind.encode(), value)


def rowid_name(shape: Shape) -> str | None:
    return quote(shape.rowid) if shape.rowid is not None and shape.rowid_key else shape.rowid


def wire_key(key: Sequence[str], row: Row, rowid: Typed) -> Key:
    """The key columns; the rowid where there are none, and beside one that holds a NULL."""
    named = [(name, _in_key(row[name])) for name in key]
    if not key or (rowid[0] != "null" and any(kind == "null" for _, (kind, _) in named)):
        named.append(("rowid", rowid))
    return tuple(named)


def _in_key(value: Typed) -> Typed:
    """In a key -0.0 is written 0.0."""
    return ("real", (0.0).hex()) if value == ("real", (-0.0).hex()) else value


def read_table(connection: Any, shape: Shape, where: str = "", *args: object) -> Table:
    """What a subscriber must hold of a table."""
    found: Table = {}
    for rowid, *values in read_exact(
        connection, shape.name, shape.captured, rowid_name(shape), where, *args
    ):
        row = dict(zip(shape.captured, values, strict=True))
        key = wire_key(shape.key, row, rowid)
        assert key not in found, f"two rows of {shape.name} have the key {key}"
        found[key] = row
    return found


def rebuilt(db: Any, schema: TableSchema, indexes: Sequence[str], rows: Table) -> Table:
    """The rows after a way through an empty database that has the table's own DDL, but no triggers.

    So they are rows that this table can hold, and their generated columns are what it generates. The
    library must be the writer's: others may make other text of a real.
    """
    db.execute(schema.sql)
    for sql in indexes:
        db.execute(sql)
    names = [name for name, _ in schema.columns]
    written = [name for name in names if name not in schema.generated]
    by_rowid = [schema.rowid] if schema.rowid is not None else []
    # Rows that need their own rowid come first; the others take what is free.
    for key, row in sorted(rows.items(), key=lambda item: "rowid" not in dict(item[0])):
        values = [row[name] for name in written]
        rowids = [dict(key)["rowid"]] if by_rowid and dict(key).keys() - set(schema.key) else []
        values = [*rowids, *values]
        marks = ["?" if _bindable(value) else "CAST(? AS TEXT)" for value in values]
        listed = ", ".join([*by_rowid[: len(rowids)], *map(quote, written)])
        db.execute(
            f"INSERT INTO {quote(schema.table)}({listed}) VALUES ({', '.join(marks)})",
            [_bound(value) for value in values],
        )
    found: Table = {}
    for rowid, *typed in read_exact(db, schema.table, names, schema.rowid):
        row = dict(zip(names, typed, strict=True))
        found[wire_key(schema.key, row, rowid)] = row
    return found


def _bindable(value: Typed) -> bool:
    """Whether it is no broken text: such is bound as its bytes."""
    return value[0] != "text" or isinstance(_bound(value), str)


def _bound(value: Typed) -> Any:
    kind, content = value
    if kind == "real":
        return float.fromhex(str(content))
    if kind == "text" and isinstance(content, bytes):
        try:
            return content.decode()
        except UnicodeDecodeError:
            return content
    return content
