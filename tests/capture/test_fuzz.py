"""The promise of capture, under random statements: applying the outbox by key gives the table.

Every table shape meets every kind of statement, in both SQLite libraries that are at hand. Beside
it runs the same database with plain triggers: capture must not change what a statement does.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from cdchub.capture.choice import Choice, TableChoice
from cdchub.capture.encode import RowEncoder
from cdchub.capture.install import reconcile
from cdchub.capture.table import Grade, Shape, quote
from cdchub.capture.triggers import OUTBOX, value_columns
from cdchub.change import encode_lines
from tests.capture.shapes import CASES, Case, random_statement

# More with CDCHUB_FUZZ_SEEDS=1000 in the environment, and others with CDCHUB_FUZZ_FROM.
_FROM = int(os.environ.get("CDCHUB_FUZZ_FROM", "0"))
SEEDS = range(_FROM, _FROM + int(os.environ.get("CDCHUB_FUZZ_SEEDS", "2")))
STATEMENTS = 60


def connect(library: str) -> Any:
    if library == "apsw":
        return apsw.Connection(":memory:")
    return sqlite3.connect(":memory:", isolation_level=None)


def typed(values: Any) -> tuple[tuple[str, Any], ...]:
    """Values with their types: 1, 1.0 and '1' differ, and so do 0.0 and -0.0."""
    return tuple((type(v).__name__, v.hex() if isinstance(v, float) else v) for v in values)


class Twin:
    """A captured database and one with plain triggers, which must behave alike."""

    def __init__(self, library: str, case: Case, grade: Grade, rng: random.Random) -> None:
        self.table = case.table
        self.captured, self.plain = connect(library), connect(library)
        for db in (self.captured, self.plain):
            for sql in case.create:
                db.execute(sql)
        name = case.table.strip('"').replace('""', '"')
        outcome = reconcile(self.captured, Choice((TableChoice(name, grade=grade),)), strict=True)
        (self.shape,) = outcome.captured.shapes.values()
        # A statement with any writing trigger gets a statement journal, which changes quirks of
        # SQLite's own; so the twin has plain ones.
        self.plain.execute("CREATE TABLE sink(a)")
        for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            self.plain.execute(
                f"CREATE TRIGGER sink_{event} AFTER {event} ON {case.table} BEGIN"
                f" INSERT INTO sink SELECT julianday() FROM (SELECT 1)"
                f" LEFT JOIN {case.table} r ON r.v = {row}.v LIMIT 1; END"
            )
        recursive, foreign_keys = rng.random() < 0.2, rng.random() < 0.6
        for db in (self.captured, self.plain):
            for sql in case.late:
                db.execute(sql)
            db.execute(f"PRAGMA recursive_triggers = {int(recursive)}")
            db.execute(f"PRAGMA foreign_keys = {int(foreign_keys)}")
            # From here on changes() and last_insert_rowid() are alike too.
            db.execute("CREATE TABLE first(a)")
            db.execute("INSERT INTO first VALUES (1)")

    def run(self, sql: str) -> None:
        results = []
        for db in (self.captured, self.plain):
            try:
                result = [typed(row) for row in db.execute(sql)]
            except (sqlite3.Error, apsw.Error) as error:
                result = [str(error)]
            result += db.execute("SELECT changes(), last_insert_rowid()")
            results.append(result)
        assert results[0] == results[1], f"capture changed what this does: {sql}"

    def tables(self) -> list[list[Any]]:
        return [list(db.execute(f"SELECT * FROM {self.table}")) for db in (self.captured, self.plain)]

    def close(self) -> None:
        self.captured.close()
        self.plain.close()


def keyed(shape: Shape, values: Any, rowid: int | None) -> str:
    (key,) = RowEncoder(shape).keys([[value] for value in values], [rowid])
    return encode_lines([key])[0].decode()


def outbox(twin: Twin) -> Iterator[tuple[str, dict[str, Any] | None, dict[str, Any] | None]]:
    """Each change as its key and the row before and after it."""
    shape, width = twin.shape, len(twin.shape.captured)
    columns = ", ".join(value_columns(2 * width))
    expected_lsn = 1
    sql = f"SELECT lsn, op, rid, {columns} FROM {OUTBOX} ORDER BY lsn"
    for lsn, op, rowid, *values in twin.captured.execute(sql):
        assert lsn == expected_lsn, "the outbox has a hole"
        expected_lsn += 1
        old = None if op == "c" else dict(zip(shape.captured, values[:width], strict=True))
        new = None if op == "d" else dict(zip(shape.captured, values[width:], strict=True))
        keys = {keyed(shape, list(row.values()), rowid) for row in (old, new) if row is not None}
        assert len(keys) == 1, "an UPDATE moved a key"
        yield keys.pop(), old, new


def replayed(twin: Twin, column: str | None = None) -> dict[Any, dict[str, Any]]:
    """What a subscriber has who has applied every outbox row by key.

    With a room column: what the subscribers of each of its rooms have, who see what was or is there.
    """
    rooms: dict[Any, dict[str, Any]] = {}
    for key, old, new in outbox(twin):
        here = None if new is None else room_of(new, column)
        for room in {here, None if old is None else room_of(old, column)} - {None}:
            rows = rooms.setdefault(room, {})
            if new is not None and room == here:
                rows[key] = typed(new.values())
            else:
                rows.pop(key, None)
    return {room: rows for room, rows in rooms.items() if rows}


def present(twin: Twin, column: str | None = None) -> dict[Any, dict[str, Any]]:
    shape = twin.shape
    rowid = "NULL" if shape.rowid is None else shape.rowid
    rooms: dict[Any, dict[str, Any]] = {}
    for found, *values in twin.captured.execute(f"SELECT {rowid}, * FROM {twin.table}"):
        row = dict(zip(shape.captured, values, strict=True))
        rows = rooms.setdefault(room_of(row, column), {})
        rows[keyed(shape, values, found)] = typed(values)
    return rooms


def room_of(row: dict[str, Any], column: str | None) -> Any:
    return typed([row[column]] if column else [])


def play(case: Case, library: str, grade: Grade, seed: int) -> None:
    rng = random.Random(f"{seed} {case.name} {library}")
    twin = Twin(library, case, grade, rng)
    columns = [
        quote(c.name) for c in twin.shape.columns if not c.generated and c.name not in ("rowid", "id")
    ]
    for _ in range(STATEMENTS):
        target = rng.choice(case.targets or (case.table,))
        named = columns if target == case.table else ["u", "v"]
        sql = random_statement(rng, ["id", *named], target)
        sql = sql if case.fail else sql.replace("OR FAIL ", "OR ABORT ")
        # The plain grade is for tables that are never written with REPLACE.
        twin.run(sql if grade is Grade.FULL else sql.replace("OR REPLACE ", ""))
    twin.run("COMMIT")
    captured, plain = twin.tables()
    assert captured == plain, f"seed {seed}: capture changed the table"
    for room in (None, *(twin.shape.captured[:4] if case.rooms else ())):
        assert replayed(twin, room) == present(twin, room), f"seed {seed}, rooms {room}"
    twin.close()


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_outbox_replays_to_the_table(case: Case, library: str) -> None:
    for seed in SEEDS:
        play(case, library, Grade.FULL, seed)


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
@pytest.mark.parametrize("late", [True, False])
def test_a_trigger_may_change_the_key_of_the_row_that_is_updated(library: str, late: bool) -> None:
    """Before the update, as one does that keeps a title's slug. Where the statement changes the key
    too, SQLite calls the outcome undefined (sqlite.org/lang_createtrigger.html)."""
    table = "CREATE TABLE t(id TEXT PRIMARY KEY, u UNIQUE, v)"
    trigger = (
        "CREATE TRIGGER z BEFORE UPDATE OF v ON t BEGIN UPDATE t SET id = new.v WHERE id = old.id; END"
    )
    create, after = ((table,), (trigger,)) if late else ((table, trigger), ())
    twin = Twin(library, Case("slug", create, after), Grade.FULL, random.Random(1))
    for sql in (
        "INSERT INTO t VALUES ('one', 1, 'One'), ('two', 2, 'Two')",
        "UPDATE t SET v = 'Other' WHERE u = 1",
        "UPDATE t SET v = v || '!'",
    ):
        twin.run(sql)
        assert replayed(twin) == present(twin)
    twin.close()


# A table that says REPLACE itself is none for the plain grade.
WITHOUT_REPLACE = [c for c in CASES if not any("ON CONFLICT REPLACE" in sql for sql in c.create)]


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
@pytest.mark.parametrize("case", WITHOUT_REPLACE, ids=lambda case: case.name)
def test_without_replace_the_plain_grade_replays_too(case: Case, library: str) -> None:
    for seed in SEEDS:
        play(case, library, Grade.PLAIN, seed)
