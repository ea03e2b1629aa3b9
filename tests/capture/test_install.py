"""Reading shapes, installing and reconciling, in memory."""

from __future__ import annotations

import sqlite3

import apsw
import pytest

from cdchub.capture import install
from cdchub.capture.choice import Choice, TableChoice
from cdchub.capture.ddl import parse_collations, parse_generated, parse_index
from cdchub.capture.schema import Schema
from cdchub.capture.table import Grade, read_shape, stored_affinity
from cdchub.capture.telling import TOLD_ROWS_MAX
from cdchub.capture.triggers import OUTBOX
from cdchub.errors import TableRefused


@pytest.fixture
def db() -> apsw.Connection:
    return apsw.Connection(":memory:")


@pytest.mark.parametrize(
    ("sql", "terms", "predicate"),
    [
        ("CREATE UNIQUE INDEX i ON t(a)", ["a"], None),
        ("CREATE UNIQUE INDEX i ON t(lower(a), b DESC)", ["lower(a)", "b"], None),
        ('create unique index "on" on t(a , f(b) collate rtrim)', ["a", "f(b) collate rtrim"], None),
        ("CREATE INDEX i ON \"we(ird\"(a) WHERE a <> ')' AND b", ["a"], "a <> ')' AND b"),
        ("CREATE INDEX i ON t(a -- (one,\n, [b,c])", ["a", "[b,c]"], None),
        ("CREATE INDEX i ON t(a/* , */||'(,') where(b)", ["a ||'(,'"], "(b)"),
        ("CREATE INDEX i ON t((a+b)DESC, c asc , (desc))", ["(a+b)", "c", "(desc)"], None),
        ("CREATE INDEX i ON t(a) WHERE t.b=1.5 AND T . c AND [t].d || 't.e'", ["a"],
         "b=1.5 AND  c AND d || 't.e'"),
    ],
)  # fmt: skip
def test_an_indexs_text_is_cut_at_its_terms(sql: str, terms: list[str], predicate: str | None) -> None:
    assert parse_index(sql, "t") == (terms, predicate)


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("CREATE TABLE t(a, b AS (a + 1.5), c INT GENERATED ALWAYS AS (')' || a /* , */) STORED)",
         {"b": "a + 1.5", "c": "')' || a  "}),
        ("CREATE TABLE t('x y' TEXT DEFAULT (1) CHECK (a <> 1)\tas\n( x'61'||[a] ) UNIQUE, as$ INT)",
         {"x y": " x'61'||[a] "}),
        ("CREATE TABLE t(a, PRIMARY KEY(a))", {}),
    ],
)  # fmt: skip
def test_the_expressions_of_generated_columns_are_cut(sql: str, found: dict[str, str]) -> None:
    assert parse_generated(sql) == found


@pytest.mark.parametrize(
    ("sql", "collations"),
    [
        ("CREATE TABLE t(a, b TEXT)", {}),
        ('CREATE TABLE t(a COLLATE nocase, b TEXT NOT NULL collate "RTRIM" UNIQUE)',
         {"a": "nocase", "b": "rtrim"}),
        ("CREATE TABLE t([A b] INT DEFAULT ('x' COLLATE NOCASE) CHECK (a COLLATE RTRIM = 1), c)", {}),
        ('CREATE TABLE "t("(a TEXT /* COLLATE x */ COLLATE binary, `c``d` COLLATE NOCASE) STRICT',
         {"a": "binary", "c`d": "nocase"}),
    ],
)  # fmt: skip
def test_a_tables_text_tells_its_collations(sql: str, collations: dict[str, str]) -> None:
    assert parse_collations(sql) == collations


@pytest.mark.parametrize(
    ("declared", "strict", "affinity"),
    [
        ("", False, "BLOB"), ("varchar(9)", False, "TEXT"), ("CHARINT", False, "INTEGER"),
        ("FLOATING POINT", False, "INTEGER"), ("float", False, "REAL"), ("Decimal", False, "NUMERIC"),
        ("ANY", False, "NUMERIC"), ("ANY", True, "BLOB"), ("BLOB", False, "BLOB"),
    ],
)  # fmt: skip
def test_a_declared_type_has_an_affinity(declared: str, strict: bool, affinity: str) -> None:
    assert stored_affinity(declared, strict=strict) == affinity
    db = apsw.Connection(":memory:")
    db.execute(f"CREATE TABLE t(a {'' if strict else declared}, b {affinity})")
    for value in ("1", 1, 1.0, "1.5", "x", b"1"):
        db.execute("DELETE FROM t")
        db.execute("INSERT INTO t VALUES (?, ?)", (value, value))
        ((one, other),) = db.execute("SELECT typeof(a) || quote(a), typeof(b) || quote(b) FROM t")
        assert one == other


@pytest.mark.parametrize(
    ("create", "key", "rowid", "nullable"),
    [
        ("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", ("id",), "id", False),
        ("CREATE TABLE t(id INTEGER PRIMARY KEY DESC, v)", ("id",), "rowid", True),
        ("CREATE TABLE t(id INT PRIMARY KEY, v)", ("id",), "rowid", True),
        ("CREATE TABLE t(id TEXT NOT NULL PRIMARY KEY, v)", ("id",), "rowid", False),
        ("CREATE TABLE t(a, b, PRIMARY KEY(b, a)) WITHOUT ROWID", ("b", "a"), None, False),
        ("CREATE TABLE t(rowid, oid, v)", (), "_rowid_", False),
        ("CREATE TABLE t(v)", (), "rowid", False),
    ],
)
def test_a_shape_knows_how_rows_are_told_apart(
    db: apsw.Connection, create: str, key: tuple[str, ...], rowid: str | None, nullable: bool
) -> None:
    db.execute(create)
    shape = read_shape(Schema(db), "T", room=None)
    assert (shape.name, shape.key, shape.rowid, shape.key_nullable) == ("t", key, rowid, nullable)


@pytest.mark.parametrize(
    ("create", "room", "excluded", "why"),
    [
        ("CREATE TABLE t(rowid, oid, _rowid_)", None, set(), "hide all of"),
        ("CREATE TABLE t(rowid PRIMARY KEY, a)", None, set(), "can't be told apart"),
        ("CREATE VIRTUAL TABLE t USING fts5(a)", None, set(), "virtual table"),
        ("CREATE VIEW t AS SELECT 1 AS a", None, set(), "view table"),
        ("CREATE TABLE x(a)", None, set(), "no such table"),
        ("CREATE TABLE t(a)", "b", set(), "to be its room"),
        ("CREATE TABLE t(a)", None, {"b"}, "to exclude"),
        ("CREATE TABLE t(a PRIMARY KEY, b)", None, {"A"}, "part of its key"),
        ("CREATE TABLE t(a, room)", "room", {"room"}, "to be its room"),
        (f"CREATE TABLE t({', '.join(f'c{i}' for i in range(1_000))})", None, set(), "columns"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_the_reason(
    db: apsw.Connection, create: str, room: str | None, excluded: set[str], why: str
) -> None:
    db.execute(create)
    with pytest.raises(TableRefused, match=why):
        read_shape(Schema(db), "t", room=room, excluded=frozenset(excluded))


def outbox(db: apsw.Connection) -> list[tuple[str, object]]:
    return [(op, value) for op, value in db.execute(f"SELECT op, v0 FROM {OUTBOX} ORDER BY lsn")]


def test_reconciling_twice_changes_nothing(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE a(x); CREATE TABLE b(y INTEGER PRIMARY KEY)")
    install.reconcile(db, Choice())
    before = list(db.execute("SELECT * FROM sqlite_schema"))
    changes = db.total_changes()
    outcome = install.reconcile(db, Choice())
    assert (outcome.fresh, outcome.told.entered, outcome.told.broken) == (False, [], [])
    assert list(db.execute("SELECT * FROM sqlite_schema")) == before
    assert db.total_changes() == changes, "the source was written to for nothing"


def test_a_table_found_later_brings_its_rows(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE a(x PRIMARY KEY)")
    install.reconcile(db)
    db.execute("CREATE TABLE b(y); INSERT INTO b VALUES (1), (2)")
    outcome = install.reconcile(db)
    assert outcome.told.entered == ["b"]
    assert [op for op, _ in outbox(db)] == ["s", "c", "c"]


def test_a_large_table_found_later_enters_with_a_break(db: apsw.Connection) -> None:
    install.reconcile(db)
    db.execute("CREATE TABLE b(y)")
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO b SELECT i FROM n",
        (TOLD_ROWS_MAX + 1,),
    )
    outcome = install.reconcile(db)
    assert (outcome.told.entered, outcome.told.broken) == ([], ["b"])
    assert outbox(db)[1:] == [("b", "b")]


RENAMED = "ALTER TABLE t RENAME TO u"


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("ALTER TABLE t ADD COLUMN c", ["t"]),
        ("ALTER TABLE t RENAME COLUMN b TO c", ["t"]),
        ("DROP TABLE t", ["t"]),
        ("CREATE UNIQUE INDEX ix ON t(b)", ["t"]),
        (RENAMED, ["t"]),
        ("DROP TRIGGER _cdchub_1_au", ["t"]),
        ("CREATE TABLE n(a, b); DROP TABLE t; ALTER TABLE n RENAME TO t", ["t"]),
        ("CREATE VIEW v AS SELECT 1", []),
        ("CREATE INDEX ix ON t(b)", []),
    ],
)
def test_a_schema_change_breaks_what_it_must(
    db: apsw.Connection, change: str, broken: list[str]
) -> None:
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    install.reconcile(db)
    db.execute(change)
    outcome = install.reconcile(db)
    assert outcome.told.broken == broken
    assert install.reconcile(db).told.broken == [], "one break a change"
    if change not in ("DROP TABLE t", RENAMED):
        before = len(outbox(db))
        db.execute("INSERT INTO t(a) VALUES (7)")
        assert len(outbox(db)) == before + 1, "capture stands again"


@pytest.mark.parametrize(
    ("create", "broken"),
    [
        ("CREATE TABLE t(a)", ["t"]),
        ("CREATE TABLE t(a); CREATE INDEX ix ON t(a)", ["t"]),
        ("CREATE TABLE t(a PRIMARY KEY)", []),
    ],
)
def test_a_vacuum_breaks_a_table_whose_rowids_it_may_renumber(
    db: apsw.Connection, create: str, broken: list[str]
) -> None:
    db.execute(create)
    install.reconcile(db)
    db.execute("INSERT INTO t VALUES (1), (2); DELETE FROM t WHERE a = 1; VACUUM")
    assert install.reconcile(db).told.broken == broken
    assert install.reconcile(db).told.broken == []


def test_a_dropped_unique_index_is_no_event(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE UNIQUE INDEX ix ON t(b)")
    install.reconcile(db)
    db.execute("DROP INDEX ix")
    outcome = install.reconcile(db)
    assert (outcome.told.broken, outcome.told.entered) == ([], [])


def test_swapped_tables_are_both_broken(db: apsw.Connection) -> None:
    """Their triggers go along with a rename, so that equal shapes look as if nothing had happened."""
    db.execute("CREATE TABLE t(a PRIMARY KEY, b); CREATE TABLE n(a PRIMARY KEY, b)")
    install.reconcile(db)
    for old, new in (("t", "x"), ("n", "t"), ("x", "n")):
        db.execute(f"ALTER TABLE {old} RENAME TO {new}")
    assert sorted(install.reconcile(db).told.broken) == ["n", "t"]


def test_one_table_that_cannot_be_captured_stops_no_other(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE good(a PRIMARY KEY)")
    install.reconcile(db)
    columns = ", ".join(f"c{n}" for n in range(600))
    db.execute(f"CREATE TABLE bad({columns}, PRIMARY KEY({columns})) WITHOUT ROWID")
    outcome = install.reconcile(db)
    assert [t.name for t in outcome.captured.catalog().tables] == ["good"]
    assert "Expression tree is too large" in outcome.warnings[0]
    db.execute("INSERT INTO good VALUES (1)")
    assert [op for op, _ in outbox(db)] == ["c"]


def test_names_fold_as_sqlite_folds_them(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE Ä(a PRIMARY KEY); CREATE TABLE ä(a PRIMARY KEY)")
    outcome = install.reconcile(db, Choice(None, ("Ä",)), strict=True)
    assert [t.name for t in outcome.captured.catalog().tables] == ["ä"]


def test_a_renamed_table_ends_and_begins(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)")
    install.reconcile(db)
    db.execute("ALTER TABLE t RENAME TO s")
    outcome = install.reconcile(db)
    assert (outcome.told.broken, outcome.told.entered) == (["t"], ["s"])
    db.execute("INSERT INTO s VALUES (2)")
    assert [op for op, _ in outbox(db)] == ["b", "s", "s", "c", "c"]


def test_a_narrower_choice_ends_the_capture_of_the_rest(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE a(x); CREATE TABLE b(y, room)")
    install.reconcile(db)
    outcome = install.reconcile(db, Choice((TableChoice("B", "y"),)))
    (info,) = outcome.captured.catalog().tables
    assert (info.name, info.room) == ("b", "y")
    db.execute("INSERT INTO a VALUES (1)")
    assert "c" not in [op for op, _ in outbox(db)]
    assert install.reconcile(db).captured.choice == Choice((TableChoice("B", "y"),)), "it is kept"


def test_the_plain_grade_has_no_stage_and_misses_only_what_replace_evicts(
    db: apsw.Connection,
) -> None:
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)")
    install.reconcile(db, Choice(rooms=(TableChoice("t", grade=Grade.PLAIN),)))
    names = "SELECT name FROM sqlite_schema WHERE name GLOB '_cdchub_stage*'"
    assert list(db.execute(names)) == []
    db.execute("INSERT INTO t VALUES (1, 'x'); UPDATE t SET a = 2; REPLACE INTO t VALUES (3, 'x')")
    assert [op for op, _ in outbox(db)] == ["c", "d", "c", "c"]
    assert install.reconcile(db).told.broken == []
    install.uninstall(db)
    left = "SELECT name FROM sqlite_schema WHERE type <> 'index' AND name <> 'sqlite_sequence'"
    assert list(db.execute(left)) == [("t",)]


def test_only_a_better_grade_breaks(db: apsw.Connection) -> None:
    """Under the lesser one rows may have escaped."""
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)")
    install.reconcile(db)
    plain = Choice((TableChoice("t", grade=Grade.PLAIN),))
    assert install.reconcile(db, plain).told.broken == []
    assert install.reconcile(db).captured.choice == plain, "it is kept"
    assert install.reconcile(db, Choice()).told.broken == ["t"]
    db.execute("INSERT INTO t VALUES (1, 'x'); REPLACE INTO t VALUES (3, 'x')")
    assert [op for op, _ in outbox(db)] == ["s", "b", "c", "d", "c"]


def test_capture_stays_newer_than_users_triggers(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE); INSERT INTO t VALUES (1, 1), (2, 2)")
    install.reconcile(db)
    db.execute("CREATE TRIGGER z AFTER UPDATE ON t BEGIN UPDATE t SET b = 2 WHERE a = 1; END")
    assert install.reconcile(db).told.broken == []
    version = db.pragma("schema_version")
    assert (install.reconcile(db).told.broken, db.pragma("schema_version")) == ([], version)
    with pytest.raises(apsw.ConstraintError):
        db.execute("UPDATE OR FAIL t SET b = 3 WHERE a = 1")
    assert list(db.execute("SELECT b FROM t WHERE a = 1")) == [(3,)], "so it is with OR FAIL"
    assert [op for op, _ in outbox(db)] == ["u"]


def test_a_captured_table_can_be_rebuilt_by_another_library() -> None:
    """No trigger on anything else names the table: it would stop the last step, the rename."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)")
    install.reconcile(db)
    db.execute("CREATE TABLE n(a INTEGER PRIMARY KEY, b UNIQUE, c)")
    db.execute("DROP TABLE t")
    db.execute("ALTER TABLE n RENAME TO t")
    assert install.reconcile(db).told.broken == ["t"]
    db.close()


def test_uninstalling_leaves_no_trace(db: apsw.Connection) -> None:
    db.execute("CREATE TABLE a(x UNIQUE); CREATE TRIGGER mine AFTER INSERT ON a BEGIN SELECT 1; END")
    before = list(db.execute("SELECT type, name, sql FROM sqlite_schema"))
    install.reconcile(db)
    db.execute("INSERT INTO a VALUES (1)")
    install.uninstall(db)
    after = list(
        db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name <> 'sqlite_sequence'")
    )
    assert after == before
    assert list(db.execute("SELECT * FROM sqlite_sequence")) == []


def test_a_fault_in_the_triggers_shows_at_installation(db: apsw.Connection) -> None:
    # More terms than an expression may have: SQLite itself never compares so many at once.
    columns = ", ".join(f"c{n}" for n in range(600))
    db.execute(f"CREATE TABLE t({columns}, PRIMARY KEY({columns})) WITHOUT ROWID")
    with pytest.raises(TableRefused, match="don't compile"):
        install.reconcile(db, Choice((TableChoice("t"),)), strict=True)
    # It stops nothing else, and leaves nothing behind.
    db.execute("CREATE TABLE other(v)")
    outcome = install.reconcile(db, Choice())
    assert [shape.name for shape in outcome.captured.shapes.values()] == ["other"]
    assert any("don't compile" in warning for warning in outcome.warnings)


def test_what_only_the_writers_know_is_no_fault_of_the_triggers(db: apsw.Connection) -> None:
    """A function of the application's in a user's trigger, or in an index: the hub has none of it."""
    db.create_scalar_function("app", lambda value: value, deterministic=True)
    db.execute(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(id INTEGER PRIMARY KEY, v);"
        "CREATE TRIGGER z AFTER INSERT ON t BEGIN SELECT app(new.v); END;"
        "CREATE UNIQUE INDEX ix ON u(app(v))"
    )
    db.create_scalar_function("app", None)
    outcome = install.reconcile(db, Choice((TableChoice("t"), TableChoice("u"))), strict=True)
    assert outcome.warnings == []
    db.create_scalar_function("app", lambda value: value, deterministic=True)
    db.execute("INSERT INTO t VALUES (1, 2); INSERT INTO u VALUES (1, 2)")
    db.execute("INSERT OR REPLACE INTO u VALUES (2, 2)")
    ((count,),) = db.execute(f"SELECT count(*) FROM {OUTBOX}")
    assert count == 4


def test_objects_that_a_copied_schema_brought_along_are_in_nobodys_way(db: apsw.Connection) -> None:
    """`.dump t` has the table's triggers, ours too, and not the tables that they write to."""
    source = apsw.Connection(":memory:")
    source.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE)")
    install.reconcile(source)
    for (sql,) in source.execute("SELECT sql FROM sqlite_schema WHERE tbl_name = 't' AND sql NOT NULL"):
        db.execute(sql)
    source.close()
    with pytest.raises(apsw.SQLError):
        db.execute("INSERT INTO t VALUES (1, 2)")
    assert install.reconcile(db).fresh
    db.execute("INSERT OR REPLACE INTO t VALUES (1, 2), (2, 2)")
    assert [op for (op,) in db.execute(f"SELECT op FROM {OUTBOX}")] == ["c", "d", "c"]


def test_the_catalog_knows_the_rooms_of_tables_that_are_gone(db: apsw.Connection) -> None:
    def gone() -> dict[str, str | None]:
        return {table.name: table.room for table in install.reconcile(db).captured.catalog().gone}

    db.execute("CREATE TABLE chat(id INTEGER PRIMARY KEY, room); CREATE TABLE plain(v)")
    assert gone() == {}
    db.execute("ALTER TABLE chat ADD COLUMN more")
    assert gone() == {}
    db.execute("ALTER TABLE chat RENAME TO talk; DROP TABLE plain")
    assert gone() == {"chat": "room", "plain": None}
    db.execute("ALTER TABLE talk RENAME COLUMN room TO other; ALTER TABLE talk RENAME TO chat")
    assert gone() == {"talk": "room", "plain": None}
