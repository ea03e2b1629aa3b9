"""`cdchub replay`: the tables as they were, compared with copies that were made at those moments."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import HubProcess, cdchub, make_database, run_sql, wait_for

WEIRD = '"we""ird \'table\' [x] `y`"'
KINDS = [
    "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b TEXT DEFAULT 'd', UNIQUE(a))",
    "CREATE TABLE keyless(a)",
    "CREATE TABLE nullable(k TEXT PRIMARY KEY, v)",
    "CREATE TABLE pair(a, b, v, PRIMARY KEY(b, a)) WITHOUT ROWID",
    "CREATE TABLE made(a, v AS (a || '?'), id INTEGER PRIMARY KEY, s AS (a || '!') STORED)",
    "CREATE TABLE strict(id ANY PRIMARY KEY, i INTEGER, r REAL, t TEXT, b BLOB, a ANY) STRICT",
    "CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, v REAL)",
    f'CREATE TABLE {WEIRD}("a""b" PRIMARY KEY, "select", "😀", "new.x")',
    "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES t ON DELETE CASCADE CHECK (p != 99))",
    "CREATE TABLE vals(id INTEGER PRIMARY KEY, v)",
]  # fmt: skip
VALUES = [
    "NULL", "0", "1.0", "-0.0", "9223372036854775807", "-9223372036854775808", "9007199254740993",
    "9e999", "-9e999", "5e-324", "''", "x''", "x'00ff'", "CAST(x'61ff62' AS TEXT)",
    "'a' || char(0) || 'b'", "'line' || char(10, 13, 0x2028) || 'end'", "'😀'", "'{\"$int\":\"1\"}'",
]  # fmt: skip
ROWS = [
    "INSERT INTO t(id, a) VALUES (1, 'x'), (2, 'y')",
    "INSERT INTO keyless(rowid, a) VALUES (5, 1), (7, 2), (9007199254740993, 3)",
    "INSERT INTO nullable VALUES (NULL, 1), (NULL, 2), ('k', 3)",
    "INSERT INTO pair VALUES ('A', 1, 1), ('a', 1, 2)",
    "INSERT INTO made(a, id) VALUES ('x', 1), (NULL, 2)",
    "INSERT INTO strict VALUES (1, 2, 3, 'text', x'00', 1.0), ('1', NULL, NULL, NULL, NULL, '1')",
    "INSERT INTO auto(v) VALUES (1), (2)",
    f"INSERT INTO {WEIRD} VALUES ('k', 1, 2, 3)",
    "INSERT INTO child VALUES (1, 1)",
    f"INSERT INTO vals(v) VALUES {', '.join(f'({value})' for value in VALUES)}",
]
LATER = [
    [
        "UPDATE t SET a = 'z' WHERE id = 1",
        "INSERT OR REPLACE INTO t(id, a) VALUES (3, 'y')",
        "DELETE FROM keyless WHERE a > 1",
        "UPDATE nullable SET v = v + 10",
        "UPDATE pair SET b = 2 WHERE a = 'a'",
        "UPDATE made SET a = 'y' WHERE id = 2",
        "UPDATE strict SET a = x'ff'",
        f'UPDATE {WEIRD} SET "a""b" = \'other\'',
        "UPDATE vals SET v = -v WHERE typeof(v) = 'real'",
    ],
    [
        "ALTER TABLE t ADD COLUMN c DEFAULT 1.5",
        "DROP TABLE auto",
        "CREATE TABLE late(x PRIMARY KEY, y)",
        "INSERT INTO late VALUES (1, 2)",
        "ALTER TABLE pair RENAME TO couple",
    ],
    ["UPDATE t SET c = NULL WHERE id = 3", "DELETE FROM late", "INSERT INTO couple VALUES (9, 9, 9)"],
]


def content(database: Path) -> dict[str, list[object]]:
    """All rows of all user tables: types, the very bytes, and the rowid where it is the key."""
    found: dict[str, list[object]] = {}
    with closing(sqlite3.connect(database)) as db:
        listed = db.execute("SELECT name, wr FROM pragma_table_list WHERE type = 'table'").fetchall()
        db.text_factory = bytes
        for name, without_rowid in listed:
            if name.startswith(("_cdchub_", "sqlite_")):
                continue
            quoted = '"' + name.replace('"', '""') + '"'
            listed_columns = db.execute(
                "SELECT name, pk FROM pragma_table_xinfo(?)", (name,)
            ).fetchall()
            columns = [column.decode() for column, _ in listed_columns]
            parts = [] if without_rowid or any(pk for _, pk in listed_columns) else ["rowid"]
            if name == "nullable":
                parts = ["iif(k IS NULL, rowid, 0)"]
            for column in columns:
                cell = '"' + column.replace('"', '""') + '"'
                parts += [f"typeof({cell})", cell]
            rows = db.execute(f"SELECT {', '.join(parts)} FROM {quoted}").fetchall()
            found[name] = [columns, sorted(map(repr, rows))]
    return found


def copy(database: Path, target: Path) -> Path:
    """A copy by SQLite's backup, which keeps rowids as they are."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(target)) as into:
        source.backup(into)
    return target


def replay(database: Path, position: str, out: Path) -> str:
    done = cdchub("replay", database, "--to", position, "-o", out)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(database: Path, position: str, out: Path, code: int, *words: str) -> None:
    done = cdchub("replay", database, "--to", position, "-o", out)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    for word in words:
        assert word in done.stderr
    assert not list(out.parent.glob(out.name + ".*")), "nothing half-written is left"


def settled(database: Path) -> bool:
    noted, version = run_sql(
        database,
        "SELECT (SELECT value FROM _cdchub_meta WHERE key = 'schema_version'), schema_version"
        " FROM pragma_schema_version",
    )[0]
    return bool(noted == str(version))


def newest(database: Path) -> int:
    rows = run_sql(
        database, "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = '_cdchub_outbox'), 0)"
    )
    return int(rows[0][0])


def test_each_moment_is_as_its_copy(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", *KINDS, *ROWS)
    moments: dict[str, Path] = {}
    with HubProcess(database) as hub:
        moments[hub.head()] = copy(database, tmp_path / "copy-0.db")
        for number, statements in enumerate(LATER, 1):
            run_sql(database, *statements)
            # Another schema's rows are told when the hub has seen it.
            wait_for(lambda: settled(database), "the hub to have looked at the schema")
            hub.wait_for_lsn(newest(database))
            moments[hub.head()] = copy(database, tmp_path / f"copy-{number}.db")
    assert len(moments) == 4
    for number, (position, made) in enumerate(moments.items()):
        out = tmp_path / f"out-{number}.db"
        assert position in replay(database, position, out)
        assert content(out) == content(made), f"at {position}"
        assert run_sql(out, "PRAGMA integrity_check") == [["ok"]]
    replay(database, "now", tmp_path / "now.db")
    assert content(tmp_path / "now.db") == content(database)
    replay(database, "beginning", tmp_path / "first.db")
    assert content(tmp_path / "first.db") == content(tmp_path / "copy-0.db")


def test_a_position_inside_a_transaction_is_rounded_down(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)")
    with HubProcess(database) as hub:
        run_sql(database, "INSERT INTO t VALUES (1)")
        hub.wait_for_lsn(1)
        run_sql(database, "BEGIN", *(f"INSERT INTO t VALUES ({n})" for n in (2, 3, 4)), "COMMIT")
        hub.wait_for_lsn(4)
        for lsn, rows in ((1, 1), (2, 1), (3, 1), (4, 4)):
            out = tmp_path / f"out-{lsn}.db"
            assert f"{rows} rows of 1 tables" in replay(database, str(lsn), out)
            assert run_sql(out, "SELECT count(*) FROM t") == [[rows]]


def test_excluded_columns_and_tables_are_not_there(tmp_path: Path) -> None:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL, pin TEXT NOT NULL)",
        "CREATE TABLE other(a)",
        "INSERT INTO users VALUES (1, 'n', 'hidden')",
    )
    options = ["--exclude", "users.pin", "--exclude", "other"]
    assert cdchub("init", database, *options).returncode == 0
    run_sql(database, "INSERT INTO users VALUES (2, 'm', 'hidden')")
    out = tmp_path / "out.db"
    replay(database, "now", out)
    assert run_sql(out, "SELECT name FROM sqlite_schema") == [["users"]]
    assert run_sql(out, "SELECT * FROM users ORDER BY id") == [[1, "n"], [2, "m"]]
    assert b"hidden" not in out.read_bytes()


def test_a_position_of_an_earlier_epoch(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)")
    with HubProcess(database) as hub:
        wait_for(lambda: hub.get("/cdc/status").json()["log"]["basesTaken"], "the base snapshot")
        saved = copy(database, tmp_path / "saved.db")
        run_sql(database, "INSERT INTO t VALUES (1), (2)")
        hub.wait_for_lsn(2)
        before = hub.head()
    copy(saved, database)
    with HubProcess(database) as hub:
        assert hub.head().split(":")[0] != before.split(":")[0]
        replay(database, before, tmp_path / "out.db")
    assert run_sql(tmp_path / "out.db", "SELECT id FROM t") == [[1], [2]]


def test_what_can_not_be_replayed_is_one_line(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(a)")
    out = tmp_path / "out.db"
    refused(database, "now", out, 1, "cdchub init")
    with HubProcess(database, "--no-base") as hub:
        run_sql(database, "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)")
        hub.wait_for_lsn(2)
    refused(database, "now", out, 1, "no base snapshot")
    assert cdchub("init", database).returncode == 0
    replay(database, "now", out)
    # What the log still has, but no base snapshot reaches back to.
    refused(database, "1", tmp_path / "early.db", 1, "LSN 1", "the oldest is at: LSN 2")
    refused(database, "3", tmp_path / "future.db", 1, "in the future", "2")
    refused(database, "elsewhere:1", tmp_path / "foreign.db", 1, "elsewhere")
    refused(database, "nonsense", tmp_path / "wrong.db", 2, "--to")
    run_sql(database, "INSERT INTO t VALUES (3)", "INSERT INTO t VALUES (4)")
    refused(database, "3", tmp_path / "unread.db", 1, "no hub has read")
    content_before = out.read_bytes()
    refused(database, "now", out, 2, "exists already")
    assert out.read_bytes() == content_before
    refused(database, "now", tmp_path / "no" / "such" / "out.db", 1, "can't be written")


@pytest.mark.parametrize("name", ["out.db", "o'ut ü.db"])
def test_it_needs_no_hub(database: Path, tmp_path: Path, name: str) -> None:
    assert cdchub("init", database).returncode == 0
    run_sql(database, "INSERT INTO todos(id) VALUES ('a')")
    replay(database, "now", tmp_path / name)
    assert content(tmp_path / name) == content(database)


def test_an_older_copy_that_no_hub_has_seen_is_another_history(database: Path, tmp_path: Path) -> None:
    """The log goes on where the copy did not: what the two tell together never was."""
    with HubProcess(database) as hub:
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "the base")
        run_sql(database, "INSERT INTO todos(id) VALUES ('old')")
        hub.wait_for_lsn(1)
        assert hub.stop() == 0
        run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        copy = tmp_path / "copy.db"
        shutil.copy(database, copy)
        hub.start()
        run_sql(database, "INSERT INTO todos(id) VALUES ('lost')")
        hub.wait_for_lsn(2)
        assert hub.stop() == 0
    run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(copy, database)
    run_sql(database, *(f"INSERT INTO todos(id) VALUES ('new{n}')" for n in range(3)))
    script = tmp_path / "m.sql"
    script.write_text("ALTER TABLE todos DROP COLUMN completed;")
    for command in (
        ["replay", database, "--to", "now", "-o", tmp_path / "out.db"],
        ["migrate", database, script],
        ["verify", database],
    ):
        done = cdchub(*command)
        assert done.returncode == 1
        assert "restored" in done.stderr or "another row" in done.stderr, done.stderr
    told = cdchub("tail", database, "--since", "beginning", "--no-follow")
    assert told.returncode == 0
    assert [json.loads(line)["key"]["id"] for line in told.stdout.splitlines()] == ["old", "lost"]
    assert told.stderr.count("reset: the source was restored or replaced") == 1
    with HubProcess(database) as hub:
        with hub.stream("table=todos&snapshot=1") as stream:
            rows = [json.loads(e.data) for e in stream.until("caught-up") if e.name == "message"]
        assert [row["key"]["id"] for row in rows] == ["new0", "new1", "new2", "old"]
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "the new history's base")
    assert cdchub("verify", database).returncode == 0
