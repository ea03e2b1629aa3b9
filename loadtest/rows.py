"""Rows as typed values: what a subscriber has made of its changes, what the database holds, and how
the two differ. 1, 1.0 and '1' are three values here, and 0.0 and -0.0 are two."""

from __future__ import annotations

import base64
import itertools
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The storage class and a form of the value that compares exactly: a real by its hexadecimal digits.
Typed = tuple[str, int | str | bytes | None]
Row = dict[str, Typed]
Key = tuple[tuple[str, Typed], ...]
Table = dict[Key, Row]
Rows = dict[str, Table]

# A report names so many differences of a kind; the rest is counted.
SHOWN_MAX = 10


def from_wire(value: Any) -> Typed:
    """A value of a change (INTERFACE §2). Raises ValueError for what is none."""
    match value:
        case None:
            return ("null", None)
        case bool():
            raise ValueError(f"{value} is no value of SQLite")
        case int():
            return ("integer", value)
        case float():
            return ("real", value.hex())
        case str():
            return ("text", value.encode())
        case {"$int": str(digits)}:
            return ("integer", int(digits))
        case {"$real": str(name)}:
            return ("real", float(name).hex())
        case {"$blob": str(text)}:
            return ("blob", base64.b64decode(text, validate=True))
        case {"$text": str(text)}:
            return ("text", base64.b64decode(text, validate=True))
    raise ValueError(f"{value!r} is no value of SQLite")


def from_sqlite(kind: bytes, value: Any) -> Typed:
    """A value as a connection with `text_factory = bytes` returns it, with its typeof."""
    if isinstance(value, float):
        return ("real", value.hex())
    return (kind.decode(), value)


def key_from_wire(key: Mapping[str, Any]) -> Key:
    return tuple((name, from_wire(value)) for name, value in key.items())


def apply(rows: Rows, change: Mapping[str, Any]) -> None:
    """The promise of INTERFACE §2: the row under this key is now `newValue`, or there is none."""
    table = rows.setdefault(change["table"], {})
    key = key_from_wire(change["key"])
    if change["type"] == "DELETE":
        table.pop(key, None)
    else:
        table[key] = {name: from_wire(value) for name, value in change["newValue"].items()}


def read_database(path: Path, keys: Mapping[str, Sequence[str]]) -> Rows:
    """The tables as they are. `keys` has each one's key columns; without any it is the rowid."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.text_factory = bytes
        database.execute("BEGIN")
        rows = {table: _read_table(database, table, key) for table, key in keys.items()}
        database.execute("COMMIT")
    finally:
        database.close()
    return rows


def _read_table(database: sqlite3.Connection, table: str, key: Sequence[str]) -> Table:
    columns = [each[0] for each in database.execute(f"SELECT * FROM {table} LIMIT 0").description]
    named = list(dict.fromkeys([*columns, *(key or ["rowid"])]))
    select = ", ".join(f"typeof({name}), {name}" for name in named)
    found: Table = {}
    for pairs in database.execute(f"SELECT {select} FROM {table}"):
        values = {
            name: from_sqlite(kind, value)
            for name, kind, value in zip(named, pairs[::2], pairs[1::2], strict=True)
        }
        wire_key = tuple((name, _key_value(values[name])) for name in (key or ["rowid"]))
        found[wire_key] = {name: values[name] for name in columns}
    return found


def _key_value(value: Typed) -> Typed:
    """In a key -0.0 is written 0.0."""
    return ("real", (0.0).hex()) if value == ("real", (-0.0).hex()) else value


def row_problems(held: Rows, expected: Rows) -> list[str]:
    """How a subscriber's rows differ from the database's, one line a difference; [] if they don't."""
    problems = []
    for table in sorted({*held, *expected}):
        mine, theirs = held.get(table, {}), expected.get(table, {})
        found = [f"{table}: row {_shown(key)} is missing" for key in theirs.keys() - mine.keys()]
        found += [f"{table}: row {_shown(key)} should be gone" for key in mine.keys() - theirs.keys()]
        for key in mine.keys() & theirs.keys():
            if list(mine[key].items()) != list(theirs[key].items()):
                found.append(
                    f"{table}: row {_shown(key)} is {dict(mine[key])}, should be {dict(theirs[key])}"
                )
        problems += _cut(sorted(found))
    return problems


def lsn_problems(seen: Sequence[int], expected: Iterable[int]) -> list[str]:
    """How the LSNs that a subscriber saw, in their order, differ from those in the log."""
    backward = [
        f"LSN {after} came after {before}"
        for before, after in itertools.pairwise(seen)
        if after <= before
    ]
    had, wanted = set(seen), set(expected)
    missing = [f"LSN {lsn} never came" for lsn in sorted(wanted - had)]
    foreign = [f"LSN {lsn} is not in the log" for lsn in sorted(had - wanted)]
    return _cut(backward) + _cut(missing) + _cut(foreign)


def _shown(key: Key) -> dict[str, object]:
    return {name: value for name, (_, value) in key}


def _cut(found: list[str]) -> list[str]:
    if len(found) <= SHOWN_MAX:
        return found
    return [*found[:SHOWN_MAX], f"… and {len(found) - SHOWN_MAX} more of this kind"]
