"""What is to be captured: the choice that options make, and the shapes that it means now."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from cdchub.capture.schema import Schema
from cdchub.capture.table import Grade, Shape, columns_of, read_shape
from cdchub.catalog import fold_name
from cdchub.errors import TableRefused

_SECRET = re.compile(r"passw|secret|token|hash|api_?key|private_?key|credential", re.IGNORECASE)

_MAY_BE_EXCLUDED = (
    "table {0!r} is not captured: {1!r}, which --exclude keeps out, is gone and may be in it under"
    " another name; run `cdchub init` with --exclude for what is to be kept out now"
)


class TableChoice(msgspec.Struct, frozen=True):
    """One `--table T[:room=COL][:capture=full|plain]`."""

    table: str
    room: str | None = None
    grade: Grade = Grade.FULL


class Choice(msgspec.Struct, frozen=True):
    """What is to be captured: `tables` is None for every user table, also later ones.

    `rooms` names room columns and grades of some of them. What is excluded stays out, even if it
    is named.
    """

    tables: tuple[TableChoice, ...] | None = None
    exclude: tuple[str, ...] = ()
    rooms: tuple[TableChoice, ...] = ()


def wanted_shapes(
    schema: Schema,
    choice: Choice,
    warnings: list[str],
    *,
    strict: bool,
    standing: Mapping[str, Shape] = MappingProxyType({}),
) -> dict[str, Shape]:
    """The shapes to capture, by name. Raises `TableRefused` for what is named, if `strict`.

    `standing` are those that are captured now: a table is not captured where what was to be kept out
    of the streams may be in it under another name.
    """
    tables = schema.user_tables()
    exclusions = Exclusions(choice.exclude, tables, strict=strict)
    folded = {fold_name(name): name for name in tables}
    named = {}
    for chosen in choice.rooms if choice.tables is None else choice.tables:
        named[folded.get(fold_name(chosen.table), chosen.table)] = chosen
    wanted: dict[str, Shape] = {}
    for name in dict.fromkeys([*named, *(tables if choice.tables is None else ())]):
        if name in exclusions.tables:
            continue
        excluded = exclusions.columns.get(name, frozenset())
        if not strict:
            if name not in standing and name not in named and exclusions.lost:
                warnings.append(_MAY_BE_EXCLUDED.format(name, exclusions.lost[0]))
                continue
            present = columns_of(schema.db, name)
            lost = [column for column in excluded if fold_name(column) not in present]
            before = {fold_name(c.name) for c in standing[name].columns} if name in standing else set()
            if lost and not present <= before:
                warnings.append(_MAY_BE_EXCLUDED.format(name, f"{name}.{min(lost)}"))
                continue
            excluded = excluded.difference(lost)
        how = named.get(name, TableChoice(name))
        try:
            wanted[name] = read_shape(schema, name, room=how.room, excluded=excluded, grade=how.grade)
        except TableRefused as error:
            if strict and (name in named or excluded):
                raise
            warnings.append(str(error))
    return wanted


class Exclusions:
    """`--exclude T[.COL]` sorted out: a table's name may hold a dot, so the tables decide."""

    def __init__(self, exclude: Sequence[str], tables: Sequence[str], *, strict: bool) -> None:
        by_name = {fold_name(name): name for name in tables}
        self.tables: set[str] = set()
        # What names nothing that is there, or not any more.
        self.lost: list[str] = []
        columns: dict[str, set[str]] = {}
        for item in exclude:
            table, dot, column = item.rpartition(".")
            if fold_name(item) in by_name:
                self.tables.add(by_name[fold_name(item)])
            elif dot and fold_name(table) in by_name:
                columns.setdefault(by_name[fold_name(table)], set()).add(column)
            elif strict:
                raise TableRefused(item, "--exclude names no table, and no column of one")
            else:
                self.lost.append(item)
        self.columns = {name: frozenset(found) for name, found in columns.items()}


def warnings_for(shape: Shape) -> list[str]:
    """What an operator should know about a table before it is streamed."""
    lines = []
    if not shape.key:
        lines.append(
            f"table {shape.name!r} has no primary key: its rows are known by rowid, "
            "which VACUUM may renumber; where it does, its subscribers are reset"
        )
    secret = [name for name in shape.captured if _SECRET.search(name)]
    if secret:
        # A key is in every change: without it, nothing of the table could be told.
        places = [shape.name if name in shape.key else f"{shape.name}.{name}" for name in secret]
        options = " ".join(f"--exclude {place}" for place in dict.fromkeys(places))
        lines.append(
            f"table {shape.name!r} streams {', '.join(map(repr, secret))}, which may be secret: "
            f"keep out with {options}"
        )
    return lines
