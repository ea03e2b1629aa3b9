"""Table shapes and random statements for the fuzz of the capture triggers."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A table `t` with columns id, u, v (and perhaps more). `late`: triggers made after capture."""

    name: str
    create: tuple[str, ...]
    late: tuple[str, ...] = ()


_TOUCHING = (
    "CREATE TRIGGER z1 AFTER INSERT ON t BEGIN UPDATE t SET v = 9 WHERE id = new.id; END",
    "CREATE TRIGGER z2 AFTER UPDATE OF u ON t BEGIN UPDATE t SET v = 8 WHERE id = new.id; END",
)
_DELETING_RIVALS = (
    "CREATE TRIGGER z1 BEFORE INSERT ON t BEGIN DELETE FROM t WHERE u = new.u AND new.v = 1; END",
)
_NESTED = (
    (
        "CREATE TRIGGER z1 AFTER INSERT ON t WHEN new.v = 1 BEGIN"
        " INSERT INTO t(u, v) VALUES (new.u || 'n', 2); END"
    ),
    "CREATE TRIGGER z2 BEFORE DELETE ON t WHEN old.v = 2 BEGIN UPDATE t SET v = 3 WHERE u = 'b'; END",
)
_DELETING_AFTER = (
    "CREATE TRIGGER z1 AFTER UPDATE ON t WHEN new.v = 1 BEGIN DELETE FROM t WHERE id = new.id; END",
    (
        "CREATE TRIGGER z2 AFTER DELETE ON t WHEN old.v = 2 BEGIN"
        " INSERT INTO t(id, u, v) VALUES (old.id, old.u, 7); END"
    ),
)
_MOVING = (
    (
        "CREATE TRIGGER z1 AFTER UPDATE OF v ON t WHEN new.v = 1 BEGIN"
        " UPDATE t SET id = new.id || 'z' WHERE id = new.id; END"
    ),
)

_BY_ID = "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, v)"
_BY_TEXT = "CREATE TABLE t(id TEXT PRIMARY KEY, u UNIQUE, v)"

CASES = [
    Case("integer_key", ("CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v)",)),
    Case("descending_key", ("CREATE TABLE t(id INTEGER PRIMARY KEY DESC, u UNIQUE, v)",)),
    Case("autoincrement", ("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, u UNIQUE, v)",)),
    Case("text_key", (_BY_TEXT,)),
    Case("text_key_not_null", ("CREATE TABLE t(id TEXT NOT NULL PRIMARY KEY, u UNIQUE, v)",)),
    Case("untyped_key", ("CREATE TABLE t(id PRIMARY KEY, u UNIQUE, v)",)),
    Case("nocase_key", ("CREATE TABLE t(id TEXT COLLATE NOCASE PRIMARY KEY, u UNIQUE, v)",)),
    Case("composite_key", ("CREATE TABLE t(id, u, v, PRIMARY KEY(id, u))",)),
    Case("no_key", ("CREATE TABLE t(id, u UNIQUE, v)",)),
    Case("no_index", ("CREATE TABLE t(id, u, v)",)),
    Case("column_called_rowid", ("CREATE TABLE t(rowid TEXT, id INTEGER, u UNIQUE, v)",)),
    Case("without_rowid", ("CREATE TABLE t(id, u, v, PRIMARY KEY(id, u)) WITHOUT ROWID",)),
    Case("without_rowid_unique", ("CREATE TABLE t(id TEXT PRIMARY KEY, u UNIQUE, v) WITHOUT ROWID",)),
    Case(
        "without_rowid_nocase",
        ("CREATE TABLE t(id TEXT COLLATE NOCASE PRIMARY KEY, u, v UNIQUE) WITHOUT ROWID",),
    ),
    Case("two_unique", ("CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, v UNIQUE)",)),
    Case("composite_unique", ("CREATE TABLE t(id INTEGER PRIMARY KEY, u, v, UNIQUE(u, v))",)),
    Case("nocase_column", ("CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT COLLATE NOCASE UNIQUE, v)",)),
    Case(
        "nocase_index",
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT, v)",
            "CREATE UNIQUE INDEX ix ON t(u COLLATE NOCASE)",
        ),
    ),
    Case(
        "partial_index",
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, u, v)",
            "CREATE UNIQUE INDEX ix ON t(u) WHERE v = 1",
        ),
    ),
    Case(
        "expression_index",
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, u, v)",
            "CREATE UNIQUE INDEX ix ON t(lower(u) /* a, comment */ DESC)",
        ),
    ),
    Case(
        "expression_without_rowid",
        (
            "CREATE TABLE t(id TEXT PRIMARY KEY, u, v) WITHOUT ROWID",
            "CREATE UNIQUE INDEX ix ON t(lower(u), v) WHERE v IS NOT NULL",
        ),
    ),
    Case(
        "generated_stored",
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT, v, g AS (lower(u)) STORED UNIQUE)",),
    ),
    Case(
        "generated_virtual",
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT, v, g AS (u || 'x') VIRTUAL UNIQUE)",),
    ),
    Case("strict", ("CREATE TABLE t(id INTEGER PRIMARY KEY, u ANY UNIQUE, v ANY) STRICT",)),
    Case(
        "default_for_null",
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT NOT NULL DEFAULT 'a' UNIQUE, v)",),
    ),
    Case(
        "default_in_double_quotes",
        ('CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT NOT NULL DEFAULT "v" UNIQUE, v)',),
    ),
    Case(
        "conflict_clause",
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE ON CONFLICT REPLACE, v)",),
    ),
    Case(
        "self_reference_cascade",
        (
            (
                "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE,"
                " v REFERENCES t(id) ON DELETE CASCADE ON UPDATE CASCADE)"
            ),
        ),
    ),
    Case(
        "self_reference_null",
        (
            (
                "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE,"
                " v REFERENCES t(id) ON DELETE SET NULL ON UPDATE SET NULL)"
            ),
        ),
    ),
    Case("older_triggers_touch", (_BY_ID, *_TOUCHING)),
    Case("older_triggers_delete_rivals", (_BY_ID, *_DELETING_RIVALS)),
    Case("older_triggers_nest", (_BY_ID, *_NESTED)),
    Case("older_triggers_delete_after", (_BY_TEXT, *_DELETING_AFTER)),
    Case("newer_triggers_touch", (_BY_ID,), _TOUCHING),
    Case("newer_triggers_delete_rivals", (_BY_ID,), _DELETING_RIVALS),
    Case("newer_triggers_nest", (_BY_ID,), _NESTED),
    Case("newer_triggers_delete_after", (_BY_TEXT,), _DELETING_AFTER),
    Case("newer_triggers_move", (_BY_TEXT,), _MOVING),
]

_VALUES = ["NULL", "'a'", "'A'", "'b'", "'B'", "1", "2", "'1'", "1.0", "x'61'", "3", "-0.0"]
_POLICIES = ["", "OR REPLACE ", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR FAIL ", "OR ABORT ",
             "OR ROLLBACK "]  # fmt: skip
_UPSERTS = [
    " ON CONFLICT DO NOTHING",
    " ON CONFLICT DO UPDATE SET v = excluded.v",
    " ON CONFLICT DO UPDATE SET u = excluded.u, v = excluded.v",
]
_CONTROL = [
    "BEGIN",
    "BEGIN",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
]


def random_statement(rng: random.Random, columns: list[str]) -> str:
    """Any statement that can change `t`, or the transaction around it."""
    draw = rng.random()
    if draw < 0.2:
        return rng.choice(_CONTROL)
    if draw < 0.55:
        return _insert(rng, columns)
    if draw < 0.62:
        return (
            f"INSERT {rng.choice(_POLICIES)}INTO t(u, v) SELECT u, {rng.choice(_VALUES)} FROM t LIMIT 3"
        )
    if draw < 0.9:
        return _update(rng, columns)
    where = "" if rng.random() < 0.1 else f" WHERE {rng.choice(columns)} = {rng.choice(_VALUES)}"
    return f"DELETE FROM t{where}"


def _insert(rng: random.Random, columns: list[str]) -> str:
    def row() -> str:
        first = rng.choice([*_VALUES, "NULL", "NULL", "NULL"])
        rest = [rng.choice(_VALUES) for _ in columns[1:]]
        return "(" + ", ".join([first, *rest]) + ")"

    rows = ", ".join(row() for _ in range(rng.choice([1, 1, 2, 3])))
    upsert = rng.choice(_UPSERTS) if rng.random() < 0.25 else ""
    return f"INSERT {rng.choice(_POLICIES)}INTO t({', '.join(columns)}) VALUES {rows}{upsert}"


def _update(rng: random.Random, columns: list[str]) -> str:
    settings = [
        f"{column} = {rng.choice(_VALUES)}" for column in rng.sample(columns, rng.choice([1, 1, 2]))
    ]
    where = "" if rng.random() < 0.4 else f" WHERE {rng.choice(columns)} = {rng.choice(_VALUES)}"
    return f"UPDATE {rng.choice(_POLICIES)}t SET {', '.join(settings)}{where}"
