"""The promise of capture, under random statements: applying the outbox by key gives the table.

Every table shape meets every kind of statement, in both SQLite libraries that are at hand. Beside
it runs the same database with plain triggers: capture must not change what a statement does.
"""

from __future__ import annotations

import random
import sqlite3
from typing import Any

import apsw
import pytest

from cdchub.capture.encode import RowEncoder
from cdchub.capture.install import reconcile
from cdchub.capture.table import Shape
from cdchub.capture.triggers import OUTBOX, value_columns
from cdchub.change import encode_lines
from tests.capture.shapes import CASES, Case, random_statement

SEEDS = range(6)
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

    def __init__(self, library: str, case: Case, rng: random.Random) -> None:
        self.captured, self.plain = connect(library), connect(library)
        for db in (self.captured, self.plain):
            for sql in case.create:
                db.execute(sql)
        outcome = reconcile(self.captured)
        (self.shape,) = outcome.captured.shapes.values()
        # A statement with any writing trigger gets a statement journal, which changes quirks of
        # SQLite's own; so the twin has plain ones.
        self.plain.execute("CREATE TABLE sink(a)")
        for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
            self.plain.execute(
                f"CREATE TRIGGER sink_{event} AFTER {event} ON t BEGIN INSERT INTO sink"
                f" SELECT julianday('now') FROM (SELECT 1) LEFT JOIN t r ON r.v = {row}.v LIMIT 1; END"
            )
        recursive, foreign_keys = rng.random() < 0.2, rng.random() < 0.6
        for db in (self.captured, self.plain):
            for sql in case.late:
                db.execute(sql)
            db.execute(f"PRAGMA recursive_triggers = {int(recursive)}")
            db.execute(f"PRAGMA foreign_keys = {int(foreign_keys)}")

    def run(self, sql: str) -> None:
        errors = []
        for db in (self.captured, self.plain):
            try:
                db.execute(sql)
                errors.append(None)
            except (sqlite3.Error, apsw.Error) as error:
                errors.append(str(error))
        assert errors[0] == errors[1], f"capture changed what this does: {sql}"

    def tables(self) -> list[list[Any]]:
        return [list(db.execute("SELECT * FROM t")) for db in (self.captured, self.plain)]

    def close(self) -> None:
        self.captured.close()
        self.plain.close()


def keyed(shape: Shape, values: Any, rowid: int | None) -> str:
    (key,) = RowEncoder(shape).keys([[value] for value in values], [rowid])
    return encode_lines([key])[0].decode()


def replayed(twin: Twin) -> dict[str, Any]:
    """The table as a subscriber has it who has applied every outbox row by key."""
    shape, width = twin.shape, len(twin.shape.captured)
    rows: dict[str, Any] = {}
    columns = ", ".join(value_columns(2 * width))
    expected_lsn = 1
    sql = f"SELECT lsn, op, rid, {columns} FROM {OUTBOX} ORDER BY lsn"
    for lsn, op, rowid, *values in twin.captured.execute(sql):
        assert lsn == expected_lsn, "the outbox has a hole"
        expected_lsn += 1
        old, new = values[:width], values[width:]
        if op == "d":
            rows.pop(keyed(shape, old, rowid), None)
            continue
        key = keyed(shape, new, rowid)
        if op == "u":
            assert keyed(shape, old, rowid) == key, "an UPDATE moved a key"
        rows[key] = typed(new)
    return rows


def present(twin: Twin) -> dict[str, Any]:
    shape = twin.shape
    rowid = "NULL" if shape.rowid is None else shape.rowid
    return {
        keyed(shape, values, found): typed(values)
        for found, *values in twin.captured.execute(f"SELECT {rowid}, * FROM t")
    }


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_outbox_replays_to_the_table(case: Case, library: str) -> None:
    for seed in SEEDS:
        rng = random.Random(f"{seed} {case.name} {library}")
        twin = Twin(library, case, rng)
        generated = {column.name for column in twin.shape.columns if column.generated}
        columns = [c.name for c in twin.shape.columns if c.name not in generated and c.name != "rowid"]
        statements = [random_statement(rng, columns) for _ in range(STATEMENTS)]
        for sql in [*statements, "COMMIT"]:
            twin.run(sql)
        captured, plain = twin.tables()
        assert captured == plain, f"seed {seed}: capture changed the table"
        assert replayed(twin) == present(twin), f"seed {seed}"
        twin.close()
