"""Table shapes and random statements for the fuzz of the capture triggers.

Longer than a module should be: it is one table of shapes, which is read and added to as a whole.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A table with columns id, u, v (and perhaps more). `late`: triggers made after capture.

    `table` is its name as SQL text. Statements write to one of `targets` (empty: to the table);
    `rooms`: also what the subscribers of a room have is defined. `fail`: statements say OR FAIL too.
    `since`: the SQLite that first knows such a table.
    """

    name: str
    create: tuple[str, ...]
    late: tuple[str, ...] = ()
    table: str = "t"
    targets: tuple[str, ...] = ()
    rooms: bool = True
    fail: bool = True
    since: tuple[int, int, int] = (3, 35, 0)


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
_MOVING_ROWIDS = (
    *_MOVING,
    (
        "CREATE TRIGGER z2 AFTER INSERT ON t WHEN new.v = 2 BEGIN"
        " UPDATE t SET rowid = rowid + 100 WHERE id = new.id; END"
    ),
)
_VIEW = (
    "CREATE VIEW w AS SELECT id, u, v FROM t",
    (
        "CREATE TRIGGER w1 INSTEAD OF INSERT ON w BEGIN"
        " INSERT INTO t(id, u, v) VALUES (new.id, new.u, new.v)"
        " ON CONFLICT DO UPDATE SET v = excluded.v; END"
    ),
    (
        "CREATE TRIGGER w2 INSTEAD OF UPDATE ON w BEGIN"
        " UPDATE t SET id = new.id, u = new.u, v = new.v WHERE id IS old.id; END"
    ),
    "CREATE TRIGGER w3 INSTEAD OF DELETE ON w BEGIN DELETE FROM t WHERE id IS old.id; END",
)


def _family(action: str) -> tuple[str, ...]:
    """A parent whose changes reach `t`, and a child which those of `t` reach."""
    on = f"ON DELETE {action} ON UPDATE {action}"
    return (
        "CREATE TABLE p(id PRIMARY KEY, u, v)",
        f"CREATE TABLE t(id PRIMARY KEY, u UNIQUE DEFAULT 'a', v DEFAULT 1 REFERENCES p(id) {on})",
        f"CREATE TABLE c(id PRIMARY KEY, u DEFAULT 'a' REFERENCES t(id) {on}, v)",
        "INSERT INTO p(id) VALUES ('a'), (1), (2), (NULL)",
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
    # In a predicate and in an expression a column compares by its affinity and its collation.
    Case(
        "partial_index_of_another_type",
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT COLLATE NOCASE, v INTEGER)",
            "CREATE UNIQUE INDEX ix ON t(u) WHERE v = '1' OR v IN ('2', 'a')",
        ),
    ),
    Case(
        "partial_index_of_a_default",
        (
            "CREATE TABLE t(id TEXT PRIMARY KEY, u TEXT COLLATE NOCASE NOT NULL DEFAULT pending, v)",
            "CREATE UNIQUE INDEX ix ON t(v) WHERE t.u IN ('A', 'PENDING') AND rowid > 0",
        ),
    ),
    Case(
        "expression_of_another_type",
        (
            (
                "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT COLLATE NOCASE NOT NULL DEFAULT [a],"
                " v INTEGER DEFAULT 1, r REAL AS (v) STORED)"
            ),
            "CREATE UNIQUE INDEX ix ON t(CASE WHEN u = 'A' THEN v || '' END DESC, (v = '1')DESC)",
        ),
    ),
    Case(
        "expression_of_a_strict_any",
        (
            ("CREATE TABLE t(id TEXT PRIMARY KEY, u ANY, v ANY COLLATE NOCASE) STRICT, WITHOUT ROWID"),
            "CREATE UNIQUE INDEX ix ON t((u = 1), (v = 'A'), u, v || '')",
        ),
        since=(3, 37, 0),
    ),
    # SQLite takes a misspelt name in double quotes for a string: an expression without a column.
    Case(
        "expression_of_no_column",
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, v)",
            'CREATE UNIQUE INDEX ix ON t("nothing", u)',
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
    # Before a write NEW has a generated column only if its base columns are loaded too.
    Case(
        "generated_composite",
        (
            (
                "CREATE TABLE t(id TEXT PRIMARY KEY, u TEXT COLLATE NOCASE NOT NULL DEFAULT 'a', v,"
                " g TEXT AS (h || 'x'), h TEXT AS (u), UNIQUE(v, g))"
            ),
            "CREATE UNIQUE INDEX ix ON t((g = 'AX') AND v) WHERE v > 1",
        ),
    ),
    Case(
        "generated_without_rowid",
        (
            (
                "CREATE TABLE t(id TEXT PRIMARY KEY, u NOT NULL DEFAULT 1, v,"
                " g AS (u || coalesce(v, 1.0)) STORED UNIQUE) WITHOUT ROWID"
            ),
        ),
    ),
    # A ring of rows: the key that SQLite gives out decides which one is evicted.
    Case(
        "ring",
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, u, v, g AS (id % 3) UNIQUE)",),
    ),
    Case(
        "ring_of_an_expression",
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, u, v)",
            "CREATE UNIQUE INDEX ix ON t(id % 2, u)",
        ),
    ),
    Case(
        "strict",
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, u ANY UNIQUE, v ANY) STRICT",),
        since=(3, 37, 0),
    ),
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
    # The conversion by a foreign key's check: '05' and 5 are one parent to these children.
    Case(
        "converted_key",
        (
            "CREATE TABLE t(id TEXT PRIMARY KEY, u UNIQUE, v)",
            "CREATE TABLE c(u INTEGER REFERENCES t(id) ON DELETE CASCADE ON UPDATE SET NULL, id, v)",
            "CREATE INDEX ix ON c(u)",
        ),
        targets=("t", "t", "c"),
    ),
    Case(
        "converted_key_without_rowid",
        (
            "CREATE TABLE t(id PRIMARY KEY, u UNIQUE, v) WITHOUT ROWID",
            "CREATE TABLE c(u REAL REFERENCES t(id) ON DELETE CASCADE ON UPDATE CASCADE, id, v)",
            "CREATE TABLE d(u NUMERIC REFERENCES t(u), id, v)",
            "CREATE INDEX ix ON c(u)",
            "CREATE INDEX iy ON d(u)",
        ),
        targets=("t", "t", "c", "d"),
    ),
    Case(
        "collation_of_the_key_alone",
        ("CREATE TABLE t(id TEXT COLLATE NOCASE, u UNIQUE, v, PRIMARY KEY(id COLLATE BINARY))",),
    ),
    Case(
        "collation_of_the_key_without_rowid",
        (
            (
                "CREATE TABLE t(id TEXT COLLATE NOCASE, u UNIQUE, v, PRIMARY KEY(id COLLATE BINARY))"
                " WITHOUT ROWID"
            ),
        ),
    ),
    Case(
        "key_of_a_wider_collation_without_rowid",
        (
            (
                "CREATE TABLE t(id TEXT, u TEXT COLLATE RTRIM UNIQUE, v,"
                " PRIMARY KEY(id COLLATE NOCASE)) WITHOUT ROWID"
            ),
        ),
    ),
    Case(
        "names_of_all_kinds",
        (
            (
                "CREATE TABLE t(id INTEGER PRIMARY KEY, u, v, a$b DEFAULT x$y,"
                " 'c' TEXT COLLATE 'NOCASE', d😀)"
            ),
            "CREATE UNIQUE INDEX ix ON t(lower(a$b), (c = 'A') -- one, two\n, lower(d😀))",
        ),
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
    # REPLACE can set a column to NULL in a row which the same statement is just writing: for a
    # moment the row is in a room that neither its OLD nor its NEW tell of.
    Case(
        "self_reference_null",
        (
            (
                "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE,"
                " v REFERENCES t(id) ON DELETE SET NULL ON UPDATE SET NULL)"
            ),
        ),
        rooms=False,
    ),
    Case("older_triggers_touch", (_BY_ID, *_TOUCHING)),
    Case("older_triggers_delete_rivals", (_BY_ID, *_DELETING_RIVALS)),
    # A trigger that updates the row which is just being deleted is undefined (sqlite.org/
    # lang_createtrigger.html), and these do.
    Case("older_triggers_nest", (_BY_ID, *_NESTED), rooms=False),
    Case("older_triggers_delete_after", (_BY_TEXT, *_DELETING_AFTER)),
    Case("newer_triggers_touch", (_BY_ID,), _TOUCHING),
    Case("newer_triggers_delete_rivals", (_BY_ID,), _DELETING_RIVALS),
    Case("newer_triggers_nest", (_BY_ID,), _NESTED, rooms=False),
    Case("newer_triggers_delete_after", (_BY_TEXT,), _DELETING_AFTER),
    # A newer trigger fires before ours. If it fails under OR FAIL, SQLite keeps the row as it has
    # become and fires no further trigger: only `reconcile`, which makes ours the newest, helps.
    Case("newer_triggers_move", (_BY_TEXT,), _MOVING, fail=False),
    Case("older_triggers_move_rowids", (_BY_TEXT, *_MOVING_ROWIDS)),
    Case("newer_triggers_move_rowids", (_BY_TEXT,), _MOVING_ROWIDS, fail=False),
    Case("view", (_BY_TEXT, *_VIEW), targets=("t", "w", "w")),
    *(
        Case(f"family_{action.split()[-1].lower()}", _family(action), targets=("t", "t", "p", "c"))
        for action in ("CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT", "NO ACTION")
    ),
    Case(
        "two_hundred_columns",
        (f"CREATE TABLE t(id PRIMARY KEY, u UNIQUE, v, {', '.join(f'c{i}' for i in range(197))})",),
    ),
    Case(
        "weird_names",
        (
            (
                """CREATE TABLE "t "" ö;"(id, u, v, "a""b" UNIQUE, "select", "new.x" TEXT,"""
                """ " ö", "_cdchub_r" UNIQUE, "OLD", PRIMARY KEY(" ö", id))"""
            ),
            """CREATE UNIQUE INDEX "i; --" ON "t "" ö;"(lower("new.x"), "select" COLLATE NOCASE)""",
        ),
        table='"t "" ö;"',
    ),
    Case(
        "columns_named_as_ours",
        (
            "CREATE TABLE t(id PRIMARY KEY, u UNIQUE, v, live UNIQUE, moment, slot, k0, s0, op, v0)",
            "CREATE UNIQUE INDEX ix ON t(lower(moment), slot)",
        ),
    ),
    Case(
        "named_as_a_row_of_a_trigger",
        ('CREATE TABLE "new"(id INTEGER PRIMARY KEY, u UNIQUE, v, "old" UNIQUE)',),
        table='"new"',
    ),
    Case(
        "collated_composite_key",
        ("CREATE TABLE t(id COLLATE NOCASE, u TEXT COLLATE RTRIM, v UNIQUE, PRIMARY KEY(id, u))",),
    ),
    Case(
        "collated_composite_without_rowid",
        (
            (
                "CREATE TABLE t(id COLLATE NOCASE, u TEXT COLLATE RTRIM, v UNIQUE, PRIMARY KEY(u, id))"
                " WITHOUT ROWID"
            ),
        ),
    ),
    Case(
        "without_rowid_self_reference",
        (
            (
                "CREATE TABLE t(id TEXT PRIMARY KEY, u UNIQUE,"
                " v REFERENCES t(id) ON DELETE CASCADE ON UPDATE CASCADE) WITHOUT ROWID"
            ),
        ),
    ),
]

VALUES = ["NULL", "'a'", "'A'", "'b'", "'B'", "1", "2", "'1'", "1.0", "x'61'", "3", "-0.0"]
_POLICIES = ["", "OR REPLACE ", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR FAIL ", "OR ABORT ",
             "OR ROLLBACK "]  # fmt: skip
_UPSERTS = [
    " ON CONFLICT DO NOTHING",
    " ON CONFLICT DO UPDATE SET v = excluded.v",
    " ON CONFLICT DO UPDATE SET u = excluded.u, v = excluded.v",
    " ON CONFLICT(id) DO UPDATE SET v = excluded.v ON CONFLICT(u) DO UPDATE SET id = excluded.id",
    " ON CONFLICT(u) DO NOTHING ON CONFLICT DO UPDATE SET u = excluded.u WHERE excluded.v <> 1",
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


def random_statement(
    rng: random.Random, columns: list[str], target: str = "t", values: Sequence[str] = VALUES
) -> str:
    """Any statement that can change `target`, or the transaction around it.

    `columns` has the key first; `values` are the expressions to choose from.
    """
    draw = rng.random()
    if draw < 0.2:
        return rng.choice(_CONTROL)
    if draw < 0.52:
        return _insert(rng, columns, target, values)
    policy, value = rng.choice(_POLICIES), rng.choice(values)
    if draw < 0.58:
        return f"INSERT {policy}INTO {target}(u, v) SELECT u, {value} FROM {target} LIMIT 3"
    if draw < 0.85:
        return _update(rng, columns, target, values)
    if draw < 0.89:
        column = rng.choice(columns)
        return (
            f"UPDATE {policy}{target} SET {column} = x.n FROM"
            f" (SELECT {value} AS n, v AS m FROM {target} LIMIT 2) x WHERE {target}.v IS x.m"
        )
    with_rows = f"WITH x(n, m) AS (SELECT {value}, id FROM {target} LIMIT 2) "
    if draw < 0.91:
        return f"{with_rows}INSERT {policy}INTO {target}(u, v) SELECT n, m FROM x"
    if draw < 0.92:
        settings = "u = (SELECT n FROM x) WHERE id IN (SELECT m FROM x)"
        return f"{with_rows}UPDATE {policy}{target} SET {settings}"
    if draw < 0.93:
        return f"{with_rows}DELETE FROM {target} WHERE id IN (SELECT m FROM x) RETURNING *"
    where = "" if rng.random() < 0.1 else f" WHERE {rng.choice(columns)} = {rng.choice(values)}"
    return f"DELETE FROM {target}{where}"


def _insert(rng: random.Random, columns: list[str], target: str, values: Sequence[str]) -> str:
    def row() -> str:
        first = rng.choice([*values, "NULL", "NULL", "NULL"])
        rest = [rng.choice(values) for _ in columns[1:]]
        return "(" + ", ".join([first, *rest]) + ")"

    rows = ", ".join(row() for _ in range(rng.choice([1, 1, 2, 3])))
    upsert = rng.choice(_UPSERTS) if rng.random() < 0.25 else ""
    returning = " RETURNING *" if rng.random() < 0.2 else ""
    return (
        f"INSERT {rng.choice(_POLICIES)}INTO {target}({', '.join(columns)})"
        f" VALUES {rows}{upsert}{returning}"
    )


def _update(rng: random.Random, columns: list[str], target: str, values: Sequence[str]) -> str:
    settings = [
        f"{column} = {rng.choice(values)}" for column in rng.sample(columns, rng.choice([1, 1, 2]))
    ]
    where = "" if rng.random() < 0.4 else f" WHERE {rng.choice(columns)} = {rng.choice(values)}"
    returning = " RETURNING *" if rng.random() < 0.2 else ""
    return f"UPDATE {rng.choice(_POLICIES)}{target} SET {', '.join(settings)}{where}{returning}"
