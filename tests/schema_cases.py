"""What somebody does to a schema: the cases of docs/schema-changes.md, by its first column."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from cdchub.capture.telling import TOLD_ROWS_MAX
from tests.harness import cdchub, run_sql
from tests.schema_world import World

KEYED = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)",
    "INSERT INTO t VALUES (1, 'x', 10), (2, 'y', 20)",
)
KEYLESS = ("CREATE TABLE t(a)", "INSERT INTO t VALUES ('x'), ('y'), ('z')")
NUMBERS = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= {TOLD_ROWS_MAX})"
LARGE = ("CREATE TABLE t(id INTEGER PRIMARY KEY)", f"INSERT INTO t {NUMBERS} SELECT i FROM n")


Action = Callable[[World], None]


@dataclass(frozen=True)
class Case:
    """`sees`: what a follower of the tables is sent, how often. `history`: what `/cdc/changes` has,
    where that is something else."""

    act: Action
    sees: dict[str, int] = field(default_factory=dict)
    setup: Sequence[str] = KEYED
    history: set[str] | None = None
    # Whose followers are meant, and tables that come and go meanwhile.
    tables: Sequence[str] = ("t",)
    passing: Sequence[str] = ()
    restarts: bool = False
    # Too large to follow a snapshot of it thrice: only what is sent counts, and `verify`.
    large: bool = False
    verifies: bool = True


def sql(*statements: str) -> Action:
    """Statements, each a transaction of its own; the hub may look at any time."""
    return lambda world: world.write(*statements)


def transaction(*statements: str) -> Action:
    return sql("BEGIN IMMEDIATE", *statements, "COMMIT")


def unseen(*statements: str) -> Action:
    """Several transactions that the hub comes to see together."""

    def act(world: World) -> None:
        with world.unseen():
            world.write(*statements)

    return act


def one_by_one(*statements: str) -> Action:
    """Several transactions, after each of which the hub has looked."""

    def act(world: World) -> None:
        for statement in statements:
            world.write(statement)
            world.settle()

    return act


def while_stopped(*statements: str) -> Action:
    def act(world: World) -> None:
        with world.stopped():
            world.write(*statements)

    return act


def migrate(script: str) -> Action:
    return lambda world: world.migrate(script)


def refused_drop_column(world: World) -> None:
    with pytest.raises(sqlite3.OperationalError, match=r"error in trigger _cdchub_\d+_\w+"):
        world.write("ALTER TABLE t DROP COLUMN b")


def rebuild(columns: str, select: str = "SELECT id, a, b FROM t") -> tuple[str, ...]:
    return (
        f"CREATE TABLE t_new({columns})",
        f"INSERT INTO t_new {select}",
        "DROP TABLE t",
        "ALTER TABLE t_new RENAME TO t",
    )


SAME = "id INTEGER PRIMARY KEY, a, b"


def evict(world: World) -> None:
    """The index is there before the REPLACE, and the hub has seen it."""
    world.write("CREATE UNIQUE INDEX t_a ON t(a)")
    world.settle()
    world.write("INSERT OR REPLACE INTO t VALUES (3, 'x', 30)")


def write_without_triggers(world: World) -> None:
    triggers = world.capture_triggers("t")
    assert triggers
    with world.unseen():
        world.write(
            *(f"DROP TRIGGER {name}" for name in triggers),
            "UPDATE t SET a = 'changed' WHERE id = 1",
            "DELETE FROM t WHERE id = 2",
            "INSERT INTO t VALUES (3, 'new', 30)",
        )


def bypass(world: World) -> None:
    world.bypass("UPDATE t SET a = 'unseen' WHERE id = 1", "DELETE FROM t WHERE id = 2")


def bypass_and_alter(world: World) -> None:
    bypass(world)
    done = cdchub("verify", world.database)
    assert done.returncode == 1
    assert "t: 2" in done.stdout
    world.write("ALTER TABLE t ADD COLUMN c")


def later_trigger(world: World) -> None:
    world.write(
        "CREATE TRIGGER mine AFTER UPDATE OF a ON t BEGIN UPDATE t SET b = b + 1 WHERE id = 2; END"
    )
    world.settle()
    world.write("UPDATE t SET a = 'z' WHERE id = 1")


def attach(world: World) -> None:
    other = world.folder / "other.db"
    world.write(f"ATTACH '{other}' AS other", "CREATE TABLE other.t(x)", "DETACH other")


def write_through(world: World) -> None:
    run_sql(
        world.folder / "front.db",
        f"ATTACH '{world.database}' AS app",
        "INSERT INTO app.t VALUES (3, 'z', 30)",
    )


CASES = {
    "`ALTER TABLE … ADD COLUMN` without a default": Case(
        sql("ALTER TABLE t ADD COLUMN c"), {"UPDATE": 2}
    ),
    "`ALTER TABLE … ADD COLUMN … DEFAULT`": Case(
        sql("ALTER TABLE t ADD COLUMN c NOT NULL DEFAULT 'n'"), {"UPDATE": 2}
    ),
    "`ADD COLUMN` to an empty table": Case(
        sql("ALTER TABLE t ADD COLUMN c"), setup=["CREATE TABLE t(id INTEGER PRIMARY KEY)"]
    ),
    "`ADD COLUMN` of a generated column": Case(
        sql("ALTER TABLE t ADD COLUMN c AS (a || '!')"), {"UPDATE": 2}
    ),
    "`ADD COLUMN` to a table with generated columns": Case(
        sql("ALTER TABLE t ADD COLUMN c DEFAULT 1"),
        {"UPDATE": 2},
        setup=[
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a, v AS (a || '?'), s AS (a || '!') STORED)",
            "INSERT INTO t(id, a) VALUES (1, 'x'), (2, 'y')",
        ],
    ),
    "`ADD COLUMN` to a `WITHOUT ROWID` table": Case(
        sql("ALTER TABLE t ADD COLUMN c"),
        {"UPDATE": 2},
        setup=[
            "CREATE TABLE t(a, b, v, PRIMARY KEY(a, b)) WITHOUT ROWID",
            "INSERT INTO t VALUES ('x', 1, 1), ('x', 2, 1)",
        ],
    ),
    "`ADD COLUMN` to a table without a primary key": Case(
        sql("ALTER TABLE t ADD COLUMN c"), {"UPDATE": 3}, setup=KEYLESS
    ),
    "`ALTER TABLE … RENAME COLUMN`": Case(sql("ALTER TABLE t RENAME COLUMN b TO c"), {"UPDATE": 2}),
    "`RENAME COLUMN` of the key": Case(
        sql("ALTER TABLE t RENAME COLUMN id TO number"), {"DELETE": 2, "INSERT": 2}
    ),
    "`ALTER TABLE … DROP COLUMN` in `cdchub migrate`": Case(
        migrate("ALTER TABLE t DROP COLUMN b;"), {"UPDATE": 2}
    ),
    "`ALTER TABLE … DROP COLUMN` by itself": Case(refused_drop_column),
    "`ALTER TABLE … RENAME TO`": Case(
        sql("ALTER TABLE t RENAME TO u"), {"DELETE": 2, "INSERT": 2}, tables=("t", "u")
    ),
    "two tables exchange their names": Case(
        transaction(
            "ALTER TABLE t RENAME TO w", "ALTER TABLE u RENAME TO t", "ALTER TABLE w RENAME TO u"
        ),
        {"UPDATE": 2, "INSERT": 1, "DELETE": 1},
        setup=[
            *KEYED,
            "CREATE TABLE u(id INTEGER PRIMARY KEY, a, b)",
            "INSERT INTO u VALUES (1, 'other', 1)",
        ],
        tables=("t", "u"),
    ),
    "`DROP TABLE`": Case(sql("DROP TABLE t"), {"DELETE": 2}),
    "`DROP TABLE`, and a view of the same name": Case(
        transaction("DROP TABLE t", "CREATE VIEW t AS SELECT 1 AS id"), {"DELETE": 2}
    ),
    "`DROP TABLE` and `CREATE TABLE` of the same name, seen together": Case(
        unseen(
            "DROP TABLE t",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)",
            "INSERT INTO t VALUES (2, 'changed', 20), (3, 'z', 30)",
        ),
        {"UPDATE": 1, "DELETE": 1, "INSERT": 1},
    ),
    "`DROP TABLE` and `CREATE TABLE` of the same name, seen one after the other": Case(
        one_by_one("DROP TABLE t", "CREATE TABLE t AS SELECT 1 AS x"), {"DELETE": 2, "INSERT": 1}
    ),
    "the 12-step rebuild to the same shape, in a transaction": Case(transaction(*rebuild(SAME))),
    "the 12-step rebuild in several transactions, seen together": Case(unseen(*rebuild(SAME))),
    "the 12-step rebuild in several transactions, seen one after the other": Case(
        one_by_one(*rebuild(SAME)), {"DELETE": 2, "INSERT": 2}, passing=("t_new",)
    ),
    "the 12-step rebuild to another key": Case(
        transaction(*rebuild("id, a PRIMARY KEY, b")), {"DELETE": 2, "INSERT": 2}
    ),
    "the 12-step rebuild with fewer rows": Case(
        transaction(*rebuild(SAME, "SELECT id, a, b FROM t WHERE id = 1")), {"DELETE": 1}
    ),
    "the 12-step rebuild to another column type": Case(
        transaction(*rebuild("id INTEGER PRIMARY KEY, a, b TEXT")), {"UPDATE": 2}
    ),
    "the 12-step rebuild to other column constraints": Case(
        transaction(*rebuild("id INTEGER PRIMARY KEY, a NOT NULL UNIQUE, b CHECK (b > 0)"))
    ),
    "`CREATE UNIQUE INDEX`, and a `REPLACE` that evicts by it": Case(evict, {"INSERT": 1, "DELETE": 1}),
    "`CREATE UNIQUE INDEX`, and a `REPLACE` before the hub has looked": Case(
        unseen("CREATE UNIQUE INDEX t_a ON t(a)", "INSERT OR REPLACE INTO t VALUES (3, 'x', 30)"),
        {"INSERT": 1, "DELETE": 1},
    ),
    "… and an `INSERT` under the key of the evicted row": Case(
        unseen(
            "CREATE UNIQUE INDEX t_a ON t(a)",
            "INSERT OR REPLACE INTO t VALUES (3, 'x', 30)",
            "INSERT INTO t VALUES (1, 'new', 1)",
        ),
        {"INSERT": 2, "reset": 1},
        history={"INSERT", "schema_changed"},
    ),
    "`CREATE UNIQUE INDEX`": Case(sql("CREATE UNIQUE INDEX t_a ON t(a)")),
    "`CREATE INDEX`, `DROP INDEX`, `REINDEX`, `ANALYZE`": Case(
        sql("CREATE INDEX t_a ON t(a)", "REINDEX", "ANALYZE", "DROP INDEX t_a")
    ),
    "`CREATE VIEW`, `CREATE TEMP TABLE`": Case(
        sql("CREATE VIEW v AS SELECT * FROM t", "CREATE TEMP TABLE t(x)", "DROP VIEW v")
    ),
    "a virtual table": Case(
        sql("CREATE VIRTUAL TABLE f USING fts5(x)", "INSERT INTO f VALUES ('word')", "DROP TABLE f"),
        tables=("t", "f"),
    ),
    "`VACUUM`": Case(sql("DELETE FROM t WHERE id = 0", "VACUUM")),
    "`VACUUM` of a table without primary key and index, after a `DELETE`": Case(
        sql("VACUUM"),
        {"reset": 1},
        setup=[*KEYLESS, "DELETE FROM t WHERE a = 'x'"],
        history={"schema_changed"},
    ),
    "`VACUUM` of a table without primary key, where no row moves": Case(sql("VACUUM"), setup=KEYLESS),
    "`VACUUM` of a table without primary key, with an index": Case(
        sql("VACUUM"), setup=[*KEYLESS, "DELETE FROM t WHERE a = 'x'", "CREATE INDEX t_a ON t(a)"]
    ),
    "`PRAGMA user_version`, `PRAGMA application_id`": Case(
        sql("PRAGMA user_version = 7", "PRAGMA application_id = 7")
    ),
    "`ATTACH`, `DETACH`": Case(attach),
    "a write through `ATTACH`": Case(write_through, {"INSERT": 1}),
    "`CREATE TABLE` and rows": Case(
        transaction("CREATE TABLE u(id INTEGER PRIMARY KEY, v)", "INSERT INTO u VALUES (1, 1), (2, 2)"),
        {"INSERT": 2},
        tables=("u",),
    ),
    "`CREATE TABLE … AS SELECT`": Case(
        sql("CREATE TABLE u AS SELECT * FROM t"), {"INSERT": 2}, tables=("u",)
    ),
    "capture's triggers are dropped, and rows written": Case(
        write_without_triggers, {"UPDATE": 1, "DELETE": 1, "INSERT": 1}
    ),
    "rows are written with triggers switched off on the connection": Case(bypass, verifies=False),
    "… and the table is altered later": Case(bypass_and_alter, {"UPDATE": 1, "DELETE": 1}),
    "`CREATE TRIGGER` by a user, and a write that fires it": Case(later_trigger, {"UPDATE": 2}),
    "any of these to a table of more than 100,000 rows": Case(
        sql("ALTER TABLE t ADD COLUMN c"),
        {"reset": 1},
        setup=LARGE,
        large=True,
        history={"schema_changed"},
    ),
    "`CREATE INDEX` on a table of more than 100,000 rows": Case(
        sql("CREATE INDEX t_id ON t(id)"),
        setup=LARGE,
        large=True,
    ),
    "a room column is added": Case(
        sql("ALTER TABLE t ADD COLUMN room DEFAULT 'r'"), {"reset": 1}, history={"schema_changed"}
    ),
    "a room column is renamed": Case(
        sql("ALTER TABLE t RENAME COLUMN room TO channel"),
        {"reset": 1},
        setup=["CREATE TABLE t(id INTEGER PRIMARY KEY, room)", "INSERT INTO t VALUES (1, 'r')"],
        history={"schema_changed"},
    ),
    "a room column gets another type": Case(
        transaction(*rebuild("id INTEGER PRIMARY KEY, room INTEGER", "SELECT id, room FROM t")),
        {"reset": 1},
        setup=["CREATE TABLE t(id INTEGER PRIMARY KEY, room TEXT)", "INSERT INTO t VALUES (1, '5')"],
        history={"schema_changed"},
    ),
    "row changes and a schema change in one transaction": Case(
        transaction(
            "UPDATE t SET a = 'early' WHERE id = 1",
            "ALTER TABLE t ADD COLUMN c",
            "UPDATE t SET c = 'late' WHERE id = 2",
        ),
        # The first UPDATE as it was, the second under the old columns, then both rows' difference.
        {"UPDATE": 4},
    ),
    "row changes and a rebuild in one `cdchub migrate`": Case(
        migrate(
            "INSERT INTO t VALUES (3, 'short-lived', 30); UPDATE t SET a = 'for now' WHERE id = 1;"
            + ";".join(rebuild(SAME, "SELECT id, 'x', b FROM t WHERE id = 1"))
        ),
        {"INSERT": 1, "UPDATE": 2, "DELETE": 2},
    ),
    "a schema change that is rolled back": Case(
        sql("BEGIN", "ALTER TABLE t ADD COLUMN c", "UPDATE t SET c = 1", "ROLLBACK")
    ),
    "`ADD COLUMN` and writes while the hub is stopped": Case(
        while_stopped("ALTER TABLE t ADD COLUMN c", "UPDATE t SET c = 'n' WHERE id = 1"),
        {"UPDATE": 3},
        restarts=True,
    ),
    "`DROP TABLE` while the hub is stopped": Case(
        while_stopped("DROP TABLE t"), {"DELETE": 2}, restarts=True
    ),
    "`CREATE TABLE` and rows while the hub is stopped": Case(
        while_stopped("CREATE TABLE u(x)", "INSERT INTO u VALUES (1)"),
        {"INSERT": 1},
        tables=("u",),
        restarts=True,
    ),
}
# With a hub of its own.
