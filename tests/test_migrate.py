"""`cdchub migrate`: a schema migration in one transaction, with a hub beside it or without."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdchub.capture.telling import TOLD_ROWS_MAX
from tests.harness import HubProcess, cdchub, clean_environment, make_database, run_sql, wait_for

# What migrate itself waits for the write lock, and a process to start.
LOCKED_S = 60


def start(database: Path, script: str) -> subprocess.Popen[str]:
    file = database.with_suffix(".sql")
    file.write_text(script)
    return subprocess.Popen(
        [sys.executable, "-m", "cdchub", "migrate", database, file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def migrate(database: Path, script: str) -> subprocess.CompletedProcess[str]:
    file = database.with_suffix(".sql")
    file.write_text(script)
    return cdchub("migrate", database, file)


def done(database: Path, script: str) -> str:
    result = migrate(database, script)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


def fails(database: Path, script: str, code: int, *words: str) -> None:
    """It fails in one line, and neither the schema nor a row is another one."""
    before = dump(database)
    result = migrate(database, script)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (code, "", 1), result
    for word in words:
        assert word in result.stderr
    assert dump(database) == before


def dump(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as db:
        return list(db.iterdump())


def verified(database: Path) -> None:
    result = cdchub("verify", database)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)",
        "INSERT INTO t VALUES (1, 'x', 10), (2, 'y', 20)",
    )
    assert cdchub("init", database).returncode == 0
    return database


@pytest.fixture(scope="module", autouse=True)
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A migration of a database whose write lock is never given up, from the first test on."""
    database = make_database(tmp_path_factory.mktemp("locked") / "held.db", "CREATE TABLE t(a)")
    assert cdchub("init", database).returncode == 0
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        process = start(database, "ALTER TABLE t ADD COLUMN b;")
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def test_drop_column_without_a_hub(captured: Path) -> None:
    said = done(captured, "ALTER TABLE t DROP COLUMN b;")
    assert said.endswith("1 statements; t: 2 changes\n")
    assert run_sql(captured, "SELECT * FROM t") == [[1, "x"], [2, "y"]]
    verified(captured)
    lines = cdchub("tail", captured, "--since", "beginning", "--no-follow").stdout.splitlines()
    changes = [json.loads(line) for line in lines if '"SNAPSHOT"' not in line]
    assert [(c["type"], c["newValue"]) for c in changes] == [
        ("UPDATE", {"id": 1, "a": "x"}),
        ("UPDATE", {"id": 2, "a": "y"}),
    ]
    run_sql(captured, "INSERT INTO t VALUES (3, 'z')")
    verified(captured)


def test_subscribers_of_a_running_hub_get_updates_in_one_transaction(captured: Path) -> None:
    with HubProcess(captured) as hub, hub.stream("table=t") as stream:
        stream.until("caught-up")
        done(captured, "ALTER TABLE t DROP COLUMN b; INSERT INTO t VALUES (3, 'z')")
        run_sql(captured, "DELETE FROM t WHERE id = 1")
        *told, after = stream.changes(4)
        rows = [{"id": 1, "a": "x"}, {"id": 2, "a": "y"}, {"id": 3, "a": "z"}]
        assert [c["newValue"] for c in told] == rows
        assert [c["type"] for c in told] == ["UPDATE", "UPDATE", "INSERT"]
        assert len({c["txid"] for c in told}) == 1
        assert (after["type"], after["oldValue"]) == ("DELETE", rows[0])
        assert "reset" not in stream.text
    verified(captured)


def test_several_changes_of_several_tables(captured: Path) -> None:
    run_sql(captured, "CREATE TABLE u(k TEXT PRIMARY KEY, v, w)", "INSERT INTO u VALUES ('k', 1, 2)")
    said = done(
        captured,
        """
        -- u was made while no hub ran; a comment may have a ; in it
        ALTER TABLE u DROP COLUMN w; /* and so; may; this */
        ALTER TABLE t DROP COLUMN a;
        CREATE TABLE log(id INTEGER PRIMARY KEY, text);
        INSERT INTO log(text) VALUES ('a;b'), ('it''s; "quoted"'), ("x;y");
        CREATE TRIGGER mine AFTER UPDATE ON t BEGIN
            INSERT INTO log(text) VALUES ('t; ' || NEW.id);
            SELECT CASE WHEN NEW.id > 9 THEN RAISE(ABORT, 'no; never') END;
        END;
        UPDATE t SET b = b + 1
        """,
    )
    assert "6 statements" in said
    texts = [text for (text,) in run_sql(captured, "SELECT text FROM log ORDER BY id")]
    assert texts == ["a;b", 'it\'s; "quoted"', "x;y", "t; 1", "t; 2"]
    assert run_sql(captured, "SELECT * FROM u") == [["k", 1]]
    verified(captured)
    run_sql(captured, "UPDATE t SET b = 0 WHERE id = 1")
    verified(captured)


def test_transactions_of_its_own_are_refused(captured: Path) -> None:
    for script in (
        "BEGIN; ALTER TABLE t ADD COLUMN c; COMMIT;",
        "ALTER TABLE t ADD COLUMN c; commit",
        "ALTER TABLE t ADD COLUMN c; -- so\n END /* of it */;",
        "/* a */ COMMIT/* b */;",
        "ALTER TABLE t ADD COLUMN c; ROLLBACK;",
    ):
        fails(captured, script, 2, "one transaction")


def test_what_passes_within_a_script_is_told(captured: Path) -> None:
    """An index and a trigger that are gone at the end, and what they did past capture."""
    done(
        captured,
        "CREATE UNIQUE INDEX passing ON t(a); INSERT OR REPLACE INTO t SELECT 90, a, b FROM t LIMIT 1;"
        "DROP INDEX passing;",
    )
    verified(captured)
    done(
        captured,
        "CREATE TEMP TRIGGER passing AFTER UPDATE ON main.t BEGIN SELECT RAISE(IGNORE); END;"
        "UPDATE t SET b = 77; DROP TRIGGER passing;",
    )
    assert [77] in run_sql(captured, "SELECT b FROM t")
    verified(captured)


def test_another_database_is_none_of_it(captured: Path) -> None:
    fails(captured, "ATTACH 'x.db' AS x; ALTER TABLE t ADD COLUMN c;", 2, "leave ATTACH out")


def test_savepoints_are_its_own(captured: Path) -> None:
    script = "SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; rollback transaction to s; RELEASE s;"
    done(captured, f"{script} ALTER TABLE t ADD COLUMN c;")
    assert run_sql(captured, "SELECT count(*) FROM t") != [[0]]


def test_a_script_is_read_as_it_is(captured: Path) -> None:
    captured.with_suffix(".sql").write_bytes(
        "\ufeffUPDATE t SET a = '1\r\n2 ö' WHERE id = 1;\r\n".encode()
    )
    result = cdchub("migrate", captured, captured.with_suffix(".sql"))
    assert result.returncode == 0, result.stderr
    assert run_sql(captured, "SELECT a FROM t WHERE id = 1") == [["1\r\n2 ö"]]


def test_a_violated_foreign_key_stops_it(captured: Path) -> None:
    """As SQLite's twelve steps end (sqlite.org/lang_altertable.html#otheralter)."""
    script = (
        "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES t(id));"
        "INSERT INTO child VALUES (1, {}); PRAGMA foreign_key_check;"
    )
    fails(captured, script.format(99), 1, "statement 3", "1 rows of child", "nothing was changed")
    done(captured, script.format(1))


def test_what_is_no_script_is_refused(captured: Path) -> None:
    result = cdchub("migrate", captured, captured.parent / "none.sql")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    captured.with_suffix(".sql").write_bytes(b"SELECT '\xff'")
    result = cdchub("migrate", captured, captured.with_suffix(".sql"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    captured.with_suffix(".sql").write_bytes(b"SELECT 1;\0")
    result = cdchub("migrate", captured, captured.with_suffix(".sql"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    bare = make_database(captured.parent / "bare.db", "CREATE TABLE t(a)")
    fails(bare, "ALTER TABLE t ADD COLUMN b", 1, "cdchub init")


FAILING = {
    "ALTER TABLE t DROP COLUMN b; SELECT * FROM none;": ["statement 2", "SELECT * FROM none"],
    "UPDATE t SET a = 1;\n\nINSERT INTO t VALUES (1, 2, 3)": ["statement 2", "UNIQUE"],
    "ALTER TABLE t DROP COLUMN id;": ["statement 1", "DROP COLUMN id", "PRIMARY KEY"],
    "CREATE TABLE u(a); nonsense;": ["statement 2", "nonsense", "syntax"],
    "UPDATE t SET a = 'open": ["statement 1"],
    "UPDATE t SET a = 1; VACUUM;": ["statement 2", "VACUUM"],
}


def test_a_failing_statement_is_named_and_changes_nothing(captured: Path) -> None:
    for script, words in FAILING.items():
        fails(captured, script, 1, *words, "nothing was changed")
    run_sql(captured, "UPDATE t SET a = 'after' WHERE id = 1")
    verified(captured)


def test_a_statement_that_ends_the_transaction_is_named_too(captured: Path) -> None:
    fails(
        captured,
        "INSERT INTO t(id) VALUES (90); INSERT OR ROLLBACK INTO t(id) VALUES (90);",
        1,
        "statement 2 (INSERT OR ROLLBACK INTO t(id) VALUES (90);): UNIQUE constraint failed: t.id",
    )


@pytest.mark.parametrize("text", ["PRAGMA foreign_keys = ON", "pragma main.foreign_keys(1)"])
def test_what_a_transaction_would_ignore_is_refused(captured: Path, text: str) -> None:
    fails(captured, f"{text}; DELETE FROM t;", 2, "PRAGMA foreign_keys does nothing")
    done(captured, "PRAGMA foreign_keys = OFF; DELETE FROM t;")


def test_a_table_may_be_gone_unseen(captured: Path) -> None:
    run_sql(captured, "DROP TABLE t")
    assert "t: 2 changes" in done(captured, "CREATE TABLE v(id INTEGER PRIMARY KEY)")
    verified(captured)


def test_an_empty_script_does_nothing(captured: Path) -> None:
    assert "0 statements" in done(captured, "-- nothing yet\n")
    verified(captured)


def test_it_waits_for_a_writer(captured: Path) -> None:
    with closing(sqlite3.connect(captured, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (3, 'z', 30)")
        process = start(captured, "ALTER TABLE t DROP COLUMN b;")
        # It has the database open, and can do nothing but wait.
        wait_for(lambda: has_open(process.pid, captured), "the migration to begin")
        assert process.poll() is None
        db.execute("COMMIT")
    said, errors = process.communicate(timeout=LOCKED_S)
    assert (process.returncode, errors) == (0, "")
    assert "t: 3 changes" in said
    verified(captured)


def has_open(pid: int, database: Path) -> bool:
    try:
        return any(link.resolve() == database for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_a_table_beyond_the_limit_is_reset(tmp_path: Path) -> None:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, b)",
        "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
        f" WHERE i <= {TOLD_ROWS_MAX}) SELECT i, i FROM n",
    )
    with HubProcess(database) as hub, hub.stream("table=t") as stream:
        stream.until("caught-up")
        wait_for(lambda: hub.get("/cdc/status").json()["log"]["basesTaken"], "the base snapshot")
        said = done(database, "ALTER TABLE t DROP COLUMN b;")
        assert said.endswith("t: subscribers are reset\n")
        reset = json.loads(stream.until("reset")[-1].data)
        assert (reset["reason"], reset["tables"]) == ("schema", ["t"])
        run_sql(database, "INSERT INTO t VALUES (0)")
        assert stream.changes(1)[0]["newValue"] == {"id": 0}


def test_without_a_base_snapshot_subscribers_are_reset(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, b)")
    with HubProcess(database, "--no-base"):
        result = migrate(database, "ALTER TABLE t DROP COLUMN b;")
        assert result.returncode == 0
        assert "followers of changed tables are reset" in result.stderr
        assert "t: subscribers are reset" in result.stdout


def test_a_database_that_stays_locked(locked: subprocess.Popen[str]) -> None:
    said, errors = locked.communicate(timeout=LOCKED_S)
    assert (locked.returncode, said, errors.count("\n")) == (1, "", 1)
    assert "another process held the write lock" in errors
