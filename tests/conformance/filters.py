"""Random filters and columns, and which rows SQLite says they leave of a table."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from cdchub.capture.table import Shape, quote
from cdchub.catalog import Catalog, Selection, TableInfo
from cdchub.filter import Condition, Operator
from loadtest.rows import Table
from tests.conformance.tables import read_table

_LITERALS = ["a", "b", "A", "1", "2", "1.0", "", "9", "5", " 7 ", "1e3", "9007199254740993", "'", "z"]
# GLOB, which judges, ends at a NUL: only what stands before the star is compared.
_PATTERNS = ["*", "a*", "1*", "b*", "A*"]
_SQL = {
    Operator.EQ: "=",
    Operator.NEQ: "<>",
    Operator.LT: "<",
    Operator.LTE: "<=",
    Operator.GT: ">",
    Operator.GTE: ">=",
}
# In UTF-16 SQLite orders texts otherwise than by their UTF-8 bytes, which is what the contract says.
_WITHOUT_ORDER = [Operator.EQ, Operator.NEQ, Operator.IN, Operator.IS]


def random_selection(
    rng: random.Random, catalog: Catalog, info: TableInfo, *, room: str | None, encoding: str
) -> Selection:
    """What a URL with one or two filters on a table asks for, sometimes of some columns only."""
    operators = [*Operator, Operator.EQ, Operator.EQ] if encoding == "UTF-8" else _WITHOUT_ORDER
    filters = [_filter(rng, info, rng.choice(operators)) for _ in range(rng.choice((1, 1, 1, 2)))]
    names = [column.name for column in info.columns]
    chosen = rng.sample(names, rng.randint(1, len(names))) if rng.random() < 0.3 else []
    return catalog.select(
        ["*"] if rng.random() < 0.3 else [info.name],
        room if info.room is not None else None,
        filters=filters,
        columns=[f"{_quoted(info.name)}.{_quoted(name)}" for name in chosen],
    )


def _filter(rng: random.Random, info: TableInfo, operator: Operator) -> str:
    match operator:
        case Operator.IS:
            value = rng.choice(["null", "not_null"])
        case Operator.IN:
            value = f"({','.join(map(_quoted, rng.sample(_LITERALS, rng.randint(1, 3))))})"
        case Operator.LIKE:
            value = rng.choice(_PATTERNS)
        case _:
            value = rng.choice(_LITERALS)
    column = rng.choice(info.columns).name
    return f"{_quoted(info.name)}.{_quoted(column)}={operator.value}.{value}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def expected_rows(connection: Any, selection: Selection, shape: Shape, rows: Table) -> Table:
    """What a selection shows of a table's `rows`; SQLite decides which of them."""
    parts: list[str] = []
    values: list[str] = []
    if selection.room is not None and shape.room is not None:
        parts.append(f"{quote(shape.room)} COLLATE BINARY = ?")
        values.append(selection.room)
    for condition in selection.conditions_of(shape.name):
        sql, bound = _condition(condition, shape)
        parts.append(sql)
        values += bound
    if parts:
        rows = read_table(connection, shape, f"WHERE {' AND '.join(parts)}", *values)
    columns = selection.columns_of(shape.name)
    if columns is None:
        return rows
    shown = {*columns, *shape.key}
    return {
        key: {name: value for name, value in row.items() if name in shown} for key, row in rows.items()
    }


def _condition(condition: Condition, shape: Shape) -> tuple[str, Sequence[str]]:
    # A column that is gone holds nothing.
    there = condition.column in shape.captured
    column = f"{quote(condition.column)} COLLATE BINARY" if there else "NULL"
    match condition.operator:
        case Operator.IS:
            return f"{column} IS {condition.texts[0].replace('_', ' ')}", ()
        case Operator.IN:
            return f"({' OR '.join(f'{column} = ?' for _ in condition.texts)})", condition.texts
        case Operator.LIKE:
            return f"(typeof({column}) = 'text' AND {column} GLOB ?)", condition.texts
    return f"{column} {_SQL[condition.operator]} ?", condition.texts
