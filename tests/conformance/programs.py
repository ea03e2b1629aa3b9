"""Random programs: SQL statements on one of the table shapes, and moments at which others look.

A program is plain data and prints as an SQL script, so that a failure can be read, shortened and
run again. Whatever happens beside the statements stands in it as a comment.
"""

from __future__ import annotations

import functools
import random
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass

import apsw

from cdchub.capture.table import Grade, quote
from tests.capture.shapes import CASES, VALUES, Case, random_statement
from tests.conformance.older import VERSION as OLDEST

# The hub reads what is in the outbox, and mends capture where the schema has changed.
LOOK = "-- the hub looks"
# Some subscriber reads a few pages, from where it stopped.
READ = "-- a subscriber goes on"
# The transaction ends, everyone catches up, and everything is compared.
CHECK = "-- everything is compared"
# The log gets another base snapshot.
BASE = "-- a base is taken"
# A subscriber comes that starts with a snapshot of the present, or with the log's base.
JOIN = "-- a subscriber comes"
# The hub deletes what the log has from the outbox.
PRUNE = "-- the hub prunes"

DIRECTIVES = frozenset({LOOK, READ, CHECK, BASE, JOIN, PRUNE})

# Values that something on the way could damage; those of the fuzz stay the most frequent ones.
_WILD = [
    "-9223372036854775808", "9007199254740991", "9007199254740993", "-9007199254740993",
    "9e999", "-9e999", "1e22", "0.1", "5e-324", "1.7976931348623157e308", "9007199254740992.0",
    "1e15", "123456789012345680.0", "0.0", "-0.0", "''", "x''", "x'00ff'", "zeroblob(5000)",
    "CAST(x'ff' AS TEXT)", "CAST(x'61ff62' AS TEXT)", "CAST(x'eda080' AS TEXT)",
    "CAST(x'c080' AS TEXT)", "CAST(x'610062' AS TEXT)", "char(0)", "char(10, 13, 8232, 34, 92, 127)",
    "'\N{OGHAM LETTER BEITH}\N{GRINNING FACE}'", "'1e3'", "' 7 '", "'$int'", "'{\"$int\":\"7\"}'",
    "replace(hex(zeroblob(700)), '00', 'ab')",
]  # fmt: skip
# Of these older libraries keep half a character in UTF-16, which nobody can read.
_HALF_CHARACTERS = ("CAST(x'ff' AS TEXT)", "CAST(x'61ff62' AS TEXT)", "CAST(x'eda080' AS TEXT)",
                    "CAST(x'610062' AS TEXT)")  # fmt: skip
# As a rowid it would make SQLite choose the next ones at random, and the twin would choose others.
LAST_INT = "9223372036854775807"
VALUES_WILD = (*VALUES, *_WILD)

# The first letter of the name that a text literal in VALUES makes a room of.
_ROOMS = ("a", "A", "b", "1", "2", "")


@dataclass(frozen=True)
class Program:
    """`room` is the room column, `follows` the room that somebody subscribes to.

    `library`: "apsw", "sqlite3", or "older" for a writer in another process, on the oldest SQLite.
    `on_file`: the source is a file in WAL mode with the writer on a connection of its own, and the
    hub is the tailer itself; otherwise one connection in memory is both. `seed` decides what is no
    part of the program: the sizes of batches and pages, and who reads when.
    """

    case: Case
    library: str
    grade: Grade
    recursive_triggers: bool
    foreign_keys: bool
    room: str | None
    follows: str
    on_file: bool
    migrates: bool
    steps: tuple[str, ...]
    seed: int = 0
    encoding: str = "UTF-8"

    def __str__(self) -> str:
        head = (
            f"-- {self.case.name}, {self.library}, grade {self.grade.value}, "
            f"{'file' if self.on_file else 'memory'}, seed {self.seed}, "
            f"room {self.follows!r} of column {self.room!r}"
        )
        pragmas = (
            f"PRAGMA recursive_triggers = {int(self.recursive_triggers)}; "
            f"PRAGMA foreign_keys = {int(self.foreign_keys)}"
        )
        lines = [
            f"PRAGMA encoding = '{self.encoding}'",
            *self.case.create,
            "-- capture is installed",
            *self.case.late,
            pragmas,
            *self.steps,
        ]
        return "\n".join([head, *(line if line in DIRECTIVES else f"{line};" for line in lines)])

    @property
    def statements(self) -> int:
        return sum(step not in DIRECTIVES for step in self.steps)


@dataclass(frozen=True)
class _Columns:
    """Of a case's main table: the columns that can be written, all of them, and what its key is."""

    writable: tuple[str, ...]
    all: tuple[str, ...]
    rowid_key: bool
    generated: bool


_CASES_OF_OLDER = [case for case in CASES if case.since <= OLDEST and case.name != "generated_virtual"]


@functools.cache
def columns_of(case: Case) -> _Columns:
    with closing(apsw.Connection(":memory:")) as db:
        for sql in case.create:
            db.execute(sql)
        rows = db.execute(
            "SELECT name, hidden, type, pk FROM pragma_table_xinfo(?)", (name_of(case),)
        ).fetchall()
    writable = tuple(name for name, hidden, *_ in rows if not hidden)
    rowid_key = any(pk and type.upper() == "INTEGER" for _, _, type, pk in rows)
    generated = len(writable) < len(rows)
    return _Columns(writable, tuple(name for name, *_ in rows), rowid_key, generated)


def name_of(case: Case) -> str:
    return case.table.strip('"').replace('""', '"')


def replaces(case: Case) -> bool:
    """Whether a table says REPLACE itself: such a one is none for the plain grade."""
    return any("ON CONFLICT REPLACE" in sql for sql in case.create)


def random_program(rng: random.Random, *, seed: int = 0, older: bool = False) -> Program:
    """`older`: its writer is a process of its own, on the oldest SQLite."""
    case = rng.choice(_CASES_OF_OLDER if older else CASES)
    columns = columns_of(case)
    grade = Grade.PLAIN if not replaces(case) and rng.random() < 0.15 else Grade.FULL
    migrates = rng.random() < 0.25
    writer = _Writer(rng, case, columns, grade, migrates=migrates, older=older)
    steps = [step for _ in range(rng.randint(8, 40)) for step in writer.steps()]
    if rng.random() < 0.3:
        steps.insert(rng.randint(0, len(steps)), CHECK)
    return Program(
        case=case,
        library="older" if older else rng.choice(_libraries(case)),
        grade=grade,
        recursive_triggers=rng.random() < 0.25,
        foreign_keys=rng.random() < 0.6,
        room=rng.choice(columns.all[:4]) if case.rooms and rng.random() < 0.7 else None,
        follows=rng.choice(_ROOMS),
        on_file=rng.random() < 0.04 or older,
        migrates=migrates,
        steps=(*steps, CHECK),
        seed=seed,
        encoding=rng.choice(_encodings(case)),
    )


def _libraries(case: Case) -> list[str]:
    """Those that know such a table: the standard library's SQLite may be an old one."""
    return ["apsw", "sqlite3" if sqlite3.sqlite_version_info >= case.since else "apsw"]


def _encodings(case: Case) -> list[str]:
    """Mostly UTF-8. A function of text makes of a blob, in UTF-16, now this and now that."""
    functions = any("lower(" in sql for sql in case.create)
    return ["UTF-8"] * 8 + (["UTF-8"] * 2 if functions else ["UTF-16le", "UTF-16be"])


class _Writer:
    """Writes the steps, and keeps in mind what its schema changes have made of the table."""

    def __init__(
        self,
        rng: random.Random,
        case: Case,
        columns: _Columns,
        grade: Grade,
        *,
        migrates: bool,
        older: bool,
    ) -> None:
        self._rng = rng
        self._case = case
        self._original = columns.writable
        self._plain = grade is Grade.PLAIN
        self._migrates = migrates
        self._older = older
        self._table = case.table
        self._names = {name: name for name in columns.writable if name not in ("rowid", "id")}
        self._number = 0
        self._indexes: list[str] = []
        self._triggers: list[str] = []
        self._tame = case.fail
        self._values: tuple[str, ...] = tuple(VALUES)
        if rng.random() < 0.3:
            self._values = VALUES_WILD if columns.rowid_key else (*VALUES_WILD, LAST_INT)
        if older:
            self._values = tuple(value for value in self._values if value not in _HALF_CHARACTERS)

    def steps(self) -> list[str]:
        draw = self._rng.random()
        if draw < 0.08:
            return [LOOK]
        if draw < 0.14:
            return [READ]
        if draw < 0.16:
            return [self._rng.choice([BASE, JOIN, PRUNE])]
        if draw < 0.24 and self._migrates:
            return self._migration()
        return [self._statement()]

    def _statement(self) -> str:
        rng, case = self._rng, self._case
        target = rng.choice(case.targets or (case.table,))
        named = ["u", "v"]
        if target == case.table:
            target = self._table
            named = [quote(name) for name in self._names.values()]
        sql = random_statement(rng, ["id", *named], target, self._values)
        if not self._tame:
            sql = sql.replace("OR FAIL ", "OR ABORT ")
        if self._plain:
            # The plain grade is for tables that are never written with REPLACE.
            sql = sql.replace("OR REPLACE ", "")
        if self._older and target == "w":
            # RETURNING of a view crashes SQLite up to 3.36 if any trigger writes to a table with
            # AUTOINCREMENT (docs/how-it-proves-itself.md).
            sql = sql.partition(" RETURNING")[0]
        # Broken text can't be returned as text, and whole rows of REPLACE are compared anyway.
        return sql.replace("RETURNING *", "RETURNING hex(id), typeof(id)")

    def _migration(self) -> list[str]:
        rng = self._rng
        kind = rng.choice(
            ["add", "add", "rename", "move", "again", "rebuild", "index", "index", "vacuum", "trigger"]
        )
        steps: list[str] = getattr(self, f"_{kind}")()
        # A look right behind it, or capture stays as it is while more is written.
        return [*steps, LOOK] if rng.random() < 0.4 else steps

    def _add(self) -> list[str]:
        self._number += 1
        name = f"n{self._number}"
        how = self._rng.choice(["", "DEFAULT 5", "TEXT NOT NULL DEFAULT 'a'", "AS (u || 'x') VIRTUAL"])
        if self._older and how.startswith("AS"):
            # It is computed by whoever reads, and libraries write numbers with more digits or fewer.
            how = ""
        if not how.startswith("AS"):
            self._names[name] = name
        return [f"ALTER TABLE {self._table} ADD COLUMN {name} {how}"]

    def _rename(self) -> list[str]:
        self._number += 1
        old = self._rng.choice([*self._names])
        was, self._names[old] = self._names[old], f"m{self._number}"
        return [f"ALTER TABLE {self._table} RENAME COLUMN {quote(was)} TO m{self._number}"]

    def _move(self) -> list[str]:
        self._number += 1
        was, self._table = self._table, f"t{self._number}"
        return [f"ALTER TABLE {was} RENAME TO {self._table}"]

    def _again(self) -> list[str]:
        """The table is dropped and made anew, at once or after a while."""
        between = [LOOK] if self._rng.random() < 0.3 else []
        was = self._table
        self._forget()
        return [f"DROP TABLE {was}", *between, self._create(self._table)]

    def _rebuild(self) -> list[str]:
        """The 12 steps of sqlite.org/lang_altertable.html, as far as they concern capture."""
        self._number += 1
        new, was = f"r{self._number}", self._table
        columns = [name for name in self._original if self._names.get(name, name) == name]
        listed = ", ".join(map(quote, columns))
        self._forget()
        return [
            "PRAGMA foreign_keys = 0",
            "BEGIN",
            self._create(new),
            f"INSERT INTO {new}({listed}) SELECT {listed} FROM {was}",
            f"DROP TABLE {was}",
            f"ALTER TABLE {new} RENAME TO {self._table}",
            "COMMIT",
        ]

    def _forget(self) -> None:
        self._table = self._case.table
        self._names = {name: name for name in self._original if name not in ("rowid", "id")}

    def _create(self, name: str) -> str:
        start = f"CREATE TABLE {self._case.table}("
        sql = next(sql for sql in self._case.create if sql.startswith(start))
        return sql.replace(start, f"CREATE TABLE {name}(")

    def _index(self) -> list[str]:
        if self._indexes and self._rng.random() < 0.4:
            return [f"DROP INDEX {self._indexes.pop()}"]
        self._number += 1
        self._indexes.append(f"x{self._number}")
        columns = self._rng.sample([*self._names.values()], self._rng.choice([1, 1, 2]))
        listed = ", ".join(map(quote, columns))
        return [f"CREATE UNIQUE INDEX x{self._number} ON {self._table}({listed})"]

    def _vacuum(self) -> list[str]:
        return ["VACUUM"]

    def _trigger(self) -> list[str]:
        if self._triggers and self._rng.random() < 0.3:
            return [f"DROP TRIGGER {self._triggers.pop()}"]
        # Newer than ours until the hub has looked: what the cases say of OR FAIL holds here too.
        self._tame = False
        self._number += 1
        name = f"y{self._number}"
        self._triggers.append(name)
        column = quote(self._rng.choice([*self._names.values()]))
        event, row = self._rng.choice(
            [("AFTER INSERT", "new"), (f"AFTER UPDATE OF {column}", "new"), ("AFTER DELETE", "old")]
        )
        return [
            (
                f"CREATE TRIGGER {name} {event} ON {self._table} WHEN {row}.id IS NOT NULL"
                f" BEGIN UPDATE {self._table} SET {column} = 9 WHERE id = {row}.id || '1'; END"
            )
        ]


def is_schema_change(sql: str) -> bool:
    return re.match(r"ALTER|CREATE|DROP|VACUUM", sql) is not None
