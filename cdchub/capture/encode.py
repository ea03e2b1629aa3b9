"""Rows of one table as JSON objects, a whole batch at a time.

Looking at each value in Python is what a naive encoder spends its time on. Here a batch is turned
into columns, a column is looked at as a whole, and the rows become structs whose field names are
encoded once; only a column with a value that JSON can't carry is converted one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from itertools import starmap
from typing import Any

import msgspec

from cdchub.capture.table import Shape
from cdchub.change import SqliteValue, wire_column, wire_value

Columns = Sequence[Sequence[SqliteValue]]


class RowEncoder:
    """Makes JSON objects of rows, in the order and under the names of a shape's captured columns; or
    of `only` some of them."""

    def __init__(self, shape: Shape, only: Container[str] | None = None) -> None:
        self.shape = shape
        self._only = None
        if only is not None:
            self._only = [place for place, name in enumerate(shape.captured) if name in only]
        self._row = _object_of([name for name in shape.captured if only is None or name in only])
        self._key = _object_of(shape.key or ("rowid",))
        self._places = [shape.captured.index(name) for name in shape.key]

    def rows(self, columns: Columns) -> Iterable[object]:
        """One object a row, of columns in the shape's order."""
        if self._only is not None:
            rows = len(columns[0])
            columns = [columns[place] for place in self._only]
            if not columns:
                # The columns that were asked for have gone, the rows have not.
                return ({} for _ in range(rows))
        return starmap(self._row, zip(*map(wire_column, columns), strict=True))

    def keys(self, columns: Columns, rowids: Sequence[int | None]) -> Iterable[object]:
        """The keys of those rows (INTERFACE §2): one with a NULL in it has the rowid too."""
        if not self._places:
            return map(self._key, wire_column(rowids))
        parts = [_key_column(columns[place]) for place in self._places]
        keys = starmap(self._key, zip(*parts, strict=True))
        if not self.shape.key_nullable or not any(None in part for part in parts):
            return keys
        return [
            {**dict(zip(self.shape.key, values, strict=True)), "rowid": wire_value(rowid)}
            if rowid is not None and None in values
            else self._key(*values)
            for rowid, *values in zip(rowids, *parts, strict=True)
        ]


def _key_column(values: Sequence[SqliteValue]) -> Sequence[Any]:
    """-0.0 is written 0.0: SQLite takes both for the same key."""
    if float in set(map(type, values)):
        values = [0.0 if value == 0 and type(value) is float else value for value in values]
    return wire_column(values)


def _object_of(names: Sequence[str]) -> Callable[..., object]:
    """A constructor of JSON objects with these members, in this order."""
    fields = [(f"c{place}", Any) for place in range(len(names))]
    rename = {f"c{place}": name for place, name in enumerate(names)}
    try:
        return msgspec.defstruct("Row", fields, rename=rename, gc=False)
    except ValueError:
        # A name with a quote, a backslash or a control character can't be a struct's.
        return lambda *values: dict(zip(names, values, strict=True))
