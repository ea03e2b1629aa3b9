"""`init` and `deinit` leave a database as they should; what is excluded is nowhere."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE_S, HubProcess, cdchub, make_database, run_sql, wait_for

SENTINEL = "sentinel-9f3c-value"
WIDE = ", ".join(f"c{n} DEFAULT {n}" for n in range(199))
WEIRD = """ "we""ird 'table' [x] `y`" """
# Tables of every shape, and a row for each.
SHAPES = [
    ("CREATE TABLE plain(id INTEGER PRIMARY KEY, v)", "INSERT INTO plain VALUES (1, 2)"),
    ("CREATE TABLE keyless(a, b)", "INSERT INTO keyless VALUES (1, 2)"),
    ("CREATE TABLE pair(a, b, v, PRIMARY KEY(b, a))", "INSERT INTO pair VALUES (1, 2, 3)"),
    (
        "CREATE TABLE bare(a TEXT COLLATE NOCASE, b, PRIMARY KEY(a, b)) WITHOUT ROWID",
        "INSERT INTO bare VALUES ('A', 2)",
    ),
    (
        "CREATE TABLE many(id INTEGER PRIMARY KEY, a, b, UNIQUE(b))",
        "INSERT INTO many VALUES (1, 'N', 3)",
    ),
    (
        "CREATE TABLE made(a, d AS (a * 2), id INTEGER PRIMARY KEY, s AS (a || 'x') STORED UNIQUE)",
        "INSERT INTO made(id, a) VALUES (1, 2)",
    ),
    (
        "CREATE TABLE strict(id ANY PRIMARY KEY, i INTEGER, r REAL, t TEXT, b BLOB, a ANY) STRICT",
        "INSERT INTO strict VALUES ('k', 1, 2.5, 't', x'00', NULL)",
    ),
    (
        f"""CREATE TABLE{WEIRD}("a""b" PRIMARY KEY, "select", "😀", "", "new.x")""",
        f"INSERT INTO{WEIRD}VALUES (1, 2, 3, 4, 5)",
    ),
    (f"CREATE TABLE wide(id INTEGER PRIMARY KEY, {WIDE})", "INSERT INTO wide(id) VALUES (1)"),
    ("CREATE TABLE named(rowid TEXT, v)", "INSERT INTO named VALUES ('a', 1)"),
    (
        "CREATE TABLE rowids(rowid TEXT, oid TEXT, _rowid_ TEXT, id INTEGER PRIMARY KEY)",
        "INSERT INTO rowids VALUES ('a', 'b', 'c', 1)",
    ),
    ("CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, v)", "INSERT INTO auto(v) VALUES (2)"),
    (
        "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES plain ON DELETE CASCADE)",
        "INSERT INTO child VALUES (1, NULL)",
    ),
    (
        "CREATE TABLE ours(_o INTEGER PRIMARY KEY, _r, _k, slot, live, k0, s0, lsn, v0)",
        "INSERT INTO ours VALUES (1, 2, 3, 4, 5, 6, 7, 8, 9)",
    ),
]
AROUND = [
    "PRAGMA user_version = 7",
    "CREATE UNIQUE INDEX by_expression ON many(lower(a), abs(b))",
    "CREATE UNIQUE INDEX partial ON many(a) WHERE b IS NOT NULL AND a > 'm'",
    "CREATE TRIGGER users_own AFTER INSERT ON child BEGIN UPDATE plain SET v = NEW.id; END",
    "CREATE VIEW look AS SELECT * FROM child",
    "INSERT INTO auto(v) VALUES (0), (1)",
]


def schema(path: Path) -> list[list[Any]]:
    """What is in the schema, in the order of the file, but for sqlite_sequence, which stays."""
    rows = run_sql(path, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid")
    return [row for row in rows if row[1] != "sqlite_sequence"]


def sequences(path: Path) -> list[list[Any]]:
    return run_sql(path, "SELECT name FROM sqlite_sequence")


def triggers(path: Path) -> set[str]:
    """The user's tables that have triggers."""
    rows = run_sql(path, "SELECT tbl_name FROM sqlite_schema WHERE type = 'trigger'")
    return {row[0] for row in rows if not row[0].startswith("_cdchub")}


def settings(path: Path) -> list[Any]:
    names = ("user_version", "application_id", "journal_mode", "auto_vacuum", "page_size", "encoding")
    return [run_sql(path, f"PRAGMA {name}") for name in names]


def test_init_is_idempotent_and_deinit_leaves_nothing(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", *(create for create, _ in SHAPES), *AROUND)
    before = schema(database), settings(database), sequences(database)
    assert cdchub("init", database).returncode == 0
    installed = schema(database)
    assert installed[: len(before[0])] == before[0] != installed
    again = cdchub("init", database)
    assert (again.returncode, schema(database)) == (0, installed), again.stderr
    with HubProcess(database) as hub:
        with hub.stream("table=*") as stream:
            stream.until("caught-up")
            run_sql(database, *(insert for _, insert in SHAPES))
            changes = stream.changes(len(SHAPES) + 1)  # the user's trigger updates `plain`
        assert schema(database) == installed
        assert hub.stop() == 0
    inserted = {change["table"] for change in changes if change["type"] == "INSERT"}
    assert len(inserted) == len(SHAPES)
    done = cdchub("deinit", database, "--yes")
    assert done.returncode == 0, done.stderr
    assert (schema(database), settings(database), sequences(database)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]
    assert run_sql(database, "PRAGMA integrity_check") == [["ok"]]
    run_sql(
        database, *(f"DELETE FROM {create.split('TABLE')[1].split('(')[0]}" for create, _ in SHAPES)
    )
    run_sql(database, *(insert for _, insert in SHAPES))


def test_deinit_of_a_database_that_had_no_sequence_leaves_at_most_an_empty_one(database: Path) -> None:
    before = schema(database)
    assert cdchub("init", database).returncode == 0
    assert cdchub("deinit", database, "--yes").returncode == 0
    assert (schema(database), sequences(database)) == (before, [])


def test_deinit_without_yes_asks_and_does_nothing(database: Path) -> None:
    assert cdchub("init", database).returncode == 0
    installed = schema(database)
    done = cdchub("deinit", database, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert schema(database) == installed


def test_capture_appears_in_one_transaction(tmp_path: Path) -> None:
    """Another process counts the triggers all the time: it sees none or all."""
    tables = [f"CREATE TABLE t{n}(id INTEGER PRIMARY KEY, v UNIQUE)" for n in range(150)]
    database = make_database(tmp_path / "app.db", *tables)
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=30)\n"
        "sql = \"SELECT count(*) FROM sqlite_schema WHERE name LIKE '\\\\_cdchub%' ESCAPE '\\\\'\"\n"
        "seen = [db.execute(sql).fetchone()[0]]\n"
        "print('ready', flush=True)\n"
        "while seen[-1] == 0 or len(seen) < 20000 and seen[-1] != seen[-500 % len(seen)]:\n"
        "    seen.append(db.execute(sql).fetchone()[0])\n"
        "print(*sorted(set(seen)))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, database], stdout=subprocess.PIPE, text=True
    ) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "ready\n"
        assert cdchub("init", database).returncode == 0
        counts = [int(word) for word in watcher.communicate(timeout=PATIENCE_S)[0].split()]
    after = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '\\_cdchub%' ESCAPE '\\'"
    assert counts == [0, run_sql(database, after)[0][0]]


def test_only_the_tables_that_are_named_are_captured(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    database = make_database(tmp_path / "app.db", *(f"CREATE TABLE {n}(id PRIMARY KEY)" for n in names))
    assert cdchub("init", database, "--table", "a", "--table", "b").returncode == 0
    assert triggers(database) == {"a", "b"}
    assert cdchub("init", database, "--table", "b", "--table", "c").returncode == 0
    assert {"b", "c"} <= triggers(database)


@pytest.fixture
def guarded(tmp_path: Path) -> Path:
    return make_database(
        tmp_path / "app.db",
        "CREATE TABLE accounts(id INTEGER PRIMARY KEY, name TEXT, pin TEXT UNIQUE, room TEXT)",
        "CREATE TABLE vault(id INTEGER PRIMARY KEY, content TEXT)",
    )


@pytest.mark.parametrize("via", ["init", "serve"])
def test_what_is_excluded_is_nowhere(guarded: Path, via: str) -> None:
    options = ("--exclude", "vault", "--exclude", "accounts.pin")
    if via == "init":
        assert cdchub("init", guarded, *options).returncode == 0
    with HubProcess(guarded, *options) as hub:
        with hub.stream("table=*&snapshot=1") as stream:
            stream.until("caught-up")
            run_sql(
                guarded,
                f"INSERT INTO vault VALUES (1, '{SENTINEL}')",
                f"INSERT INTO accounts VALUES (1, 'Ann', '{SENTINEL}', 'a')",
                f"REPLACE INTO accounts VALUES (2, 'Bob', '{SENTINEL}', 'a')",
                f"UPDATE accounts SET pin = pin || '{SENTINEL}'",
                "DELETE FROM accounts",
                f"INSERT INTO accounts VALUES (3, 'Eve', '{SENTINEL}', 'a')",
            )
            changes = stream.changes(6)
            shown = stream.text
        assert {change["table"] for change in changes} == {"accounts"}
        assert changes[-1]["newValue"] == {"id": 3, "name": "Eve", "room": "a"}
        for path in ("changes?table=*", "snapshot?table=accounts", "tables", "status"):
            shown += hub.get(f"/cdc/{path}").body.decode()
        assert hub.get("/cdc/stream?table=vault").status == 404
        assert SENTINEL not in shown
        assert '"pin"' not in shown
        ours = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB '_cdchub*'"
        for (table,) in run_sql(guarded, ours):
            assert SENTINEL not in json.dumps(run_sql(guarded, f"SELECT * FROM {table}")), table
        assert triggers(guarded) == {"accounts"}
        beside = [path for path in guarded.parent.iterdir() if "-cdchub" in path.name]
        assert beside
        for path in beside:
            assert SENTINEL.encode() not in path.read_bytes(), path.name
        assert hub.stop() == 0


def test_a_table_that_is_named_and_excluded_is_not_captured(guarded: Path) -> None:
    done = cdchub("init", guarded, "--table", "vault", "--table", "accounts", "--exclude", "vault")
    assert "vault" not in triggers(guarded), done.stdout


def test_what_is_excluded_stays_out_under_another_name(guarded: Path) -> None:
    """An exclusion is by name, and names change: better no changes of a table than its secrets."""
    run_sql(
        guarded,
        f"INSERT INTO vault VALUES (1, '{SENTINEL}')",
        f"INSERT INTO accounts VALUES (1, 'Ann', '{SENTINEL}', 'a')",
        "CREATE TABLE other(id INTEGER PRIMARY KEY, a)",
    )
    with HubProcess(guarded, "--exclude", "vault", "--exclude", "accounts.pin") as hub:
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "a base snapshot")
        with hub.stream("table=*") as stream:
            stream.until("caught-up")
            run_sql(guarded, "INSERT INTO other(id) VALUES (1)")
            run_sql(guarded, "ALTER TABLE accounts RENAME COLUMN pin TO number")
            run_sql(guarded, "ALTER TABLE vault RENAME TO cellar", "INSERT INTO cellar VALUES (2, 'x')")
            wait_for(lambda: len([line for line in hub.lines if "--exclude" in line]) >= 2, "warnings")
            run_sql(guarded, "INSERT INTO other(id) VALUES (2)")
            while {"id": 2} not in (change["key"] for change in stream.changes(1)):
                pass
            assert SENTINEL not in stream.text
            assert "cellar" not in stream.text
        assert triggers(guarded) == {"other"}
        assert hub.stop() == 0
    log = guarded.with_name(guarded.name + "-cdchub")
    assert not any(SENTINEL.encode() in path.read_bytes() for path in log.parent.glob(f"{log.name}*"))
    # As the warning says.
    done = cdchub("init", guarded, "--exclude", "cellar", "--exclude", "accounts.number")
    assert done.returncode == 0, done.stderr
    assert triggers(guarded) == {"other", "accounts"}


def test_an_excluded_column_may_be_dropped(guarded: Path) -> None:
    assert cdchub("init", guarded, "--exclude", "accounts.pin").returncode == 0
    with HubProcess(guarded) as hub:
        run_sql(guarded, "DROP TABLE vault", "CREATE TABLE later(id INTEGER PRIMARY KEY)")
        run_sql(guarded, "CREATE TABLE pins AS SELECT pin FROM accounts WHERE 0")
        script = guarded.with_name("drop.sql")
        script.write_text(
            "CREATE TABLE a2(id INTEGER PRIMARY KEY, name TEXT, room TEXT);"
            "INSERT INTO a2 SELECT id, name, room FROM accounts;"
            "DROP TABLE accounts; ALTER TABLE a2 RENAME TO accounts;"
        )
        assert cdchub("migrate", guarded, script).returncode == 0
        with hub.stream("table=accounts") as stream:
            stream.until("caught-up")
            run_sql(guarded, "INSERT INTO accounts VALUES (1, 'Ann', 'a')")
            assert stream.changes(1)[0]["newValue"] == {"id": 1, "name": "Ann", "room": "a"}
        assert triggers(guarded) == {"accounts", "later", "pins"}


def test_a_table_that_only_the_application_can_read_stops_no_other(tmp_path: Path) -> None:
    """Its key is in an order that only the application knows: no base of it could be taken."""
    database = make_database(tmp_path / "app.db", "CREATE TABLE plain(id INTEGER PRIMARY KEY)")
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1])\n"
        "db.create_collation('mine', lambda a, b: (a > b) - (a < b))\n"
        "db.create_function('twice', 1, lambda x: 2 * x, deterministic=True)\n"
        "db.execute('CREATE TABLE sorted(id TEXT COLLATE mine PRIMARY KEY)')\n"
        "db.execute('CREATE TABLE made(id INTEGER PRIMARY KEY, v AS (twice(id)))')\n"
        "db.close()"
    )
    subprocess.run([sys.executable, "-c", script, database], check=True, timeout=60)
    done = cdchub("init", database)
    assert done.returncode == 0
    assert "'sorted' can't be captured: the hub can't read its rows" in done.stderr
    assert "'made' can't be captured: the hub can't read its rows" in done.stderr
    assert triggers(database) == {"plain"}
    run_sql(database, "INSERT INTO plain VALUES (1)")
    assert cdchub("tail", database, "--no-follow").returncode == 0
    assert cdchub("verify", database).returncode == 0


def test_an_exclusion_that_comes_later_takes_effect(guarded: Path) -> None:
    assert cdchub("init", guarded).returncode == 0
    with HubProcess(guarded, "--exclude", "vault", "--exclude", "accounts.pin") as hub:
        since = hub.head()
        run_sql(guarded, f"INSERT INTO vault VALUES (1, '{SENTINEL}')")
        run_sql(guarded, f"INSERT INTO accounts VALUES (1, 'Ann', '{SENTINEL}', 'a')")
        page = hub.get(f"/cdc/changes?table=*&since={since}&wait=20")
        if (
            page.status == 410
        ):  # the head was read before the exclusion was in the log: a break of vault
            assert page.json()["tables"] == ["vault"]
            page = hub.get(f"/cdc/changes?table=*&since={page.json()['position']}&wait=20")
        assert page.json()["changes"][-1]["newValue"] == {"id": 1, "name": "Ann", "room": "a"}
        assert SENTINEL.encode() not in page.body
        assert triggers(guarded) == {"accounts"}
        assert hub.stop() == 0


def test_columns_called_like_secrets_are_warned_of_at_start(tmp_path: Path) -> None:
    columns = ("password", "api_token", "client_secret", "password_hash")
    database = make_database(
        tmp_path / "app.db", f"CREATE TABLE people(id INTEGER PRIMARY KEY, name, {', '.join(columns)})"
    )
    for _ in range(2):  # at every start, not only when capture is installed
        with HubProcess(database) as hub:
            assert hub.stop() == 0
        warned = "".join(line for line in hub.lines if "WARNING" in line)
        assert [column for column in columns if column not in warned] == []
        assert "name" not in warned.replace("named", "").replace("names", "")
    excluded = [word for column in columns for word in ("--exclude", f"people.{column}")]
    with HubProcess(database, *excluded) as hub:
        assert hub.stop() == 0
    assert [line for line in hub.lines if "WARNING" in line and "secret" in line.lower()] == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_files_beside_the_database_have_its_mode_and_owner(database: Path, mode: int) -> None:
    database.chmod(mode)
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(database, owner, -1)
    with HubProcess(database) as hub:
        run_sql(database, "INSERT INTO todos(id) VALUES ('a')")
        hub.wait_for_lsn(1)
        with hub.stream("table=todos&snapshot=1") as stream:
            stream.until("caught-up")
            beside = [path for path in database.parent.rglob("*") if "-cdchub" in path.name]
            assert len(beside) >= 2
            for path in beside:
                status = path.stat()
                assert (path.name, oct(stat.S_IMODE(status.st_mode))) == (path.name, oct(mode))
                assert (path.name, status.st_uid) == (path.name, owner)
        assert hub.stop() == 0
