"""The same programs with a writer on SQLite 3.35.2, the oldest that capture promises to serve, while
the hub reads with a recent one. `make conformance ARGS=--older` runs many."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from cdchub.capture.install import reconcile
from tests.conformance.many import run_many
from tests.conformance.older import VERSION, OlderSqlite, build
from tests.conformance.test_conformance import FIRST, PROGRAMS

pytestmark = [pytest.mark.needs("npm"), pytest.mark.needs("cc")]
OLDER_PROGRAMS = PROGRAMS // 20


@pytest.fixture(scope="module", autouse=True)
def library() -> Path:
    return build()


@pytest.mark.timeout(240 + PROGRAMS)
def test_random_programs_of_an_old_writer_replay_to_the_tables_that_they_made() -> None:
    result = run_many(range(FIRST, FIRST + OLDER_PROGRAMS), older=True)
    print(result.summary())
    assert not result.failures, result.report()
    assert result.tally.programs == result.tally.on_file == OLDER_PROGRAMS
    assert result.tally.changes > 5 * OLDER_PROGRAMS
    assert result.tally.missed > 0


def test_the_old_writer_is_an_old_one() -> None:
    with OlderSqlite() as older:
        connection = older.connect(":memory:")
        assert connection.execute("SELECT sqlite_version()") == [(".".join(map(str, VERSION)),)]
        connection.close()


@pytest.mark.parametrize("index", ["u", "lower(u)", '"no column", u', "u) WHERE (v > 0"])
@pytest.mark.parametrize(
    "failing",
    [
        "INSERT OR {} INTO t VALUES (NULL, 2, 2), ('B', 3, 3)",
        "UPDATE OR {} t SET id = CASE v WHEN 1 THEN 'B' ELSE id + 100 END, u = v",
    ],
)
def test_a_wrong_type_in_mid_statement_leaves_what_it_left_without_capture(
    tmp_path: Path, index: str, failing: str
) -> None:
    """SQLite keeps the rows before it, unless it takes the statement for one that may abort."""
    paths = [str(tmp_path / name) for name in ("plain.db", "captured.db")]
    for path in paths:
        with closing(apsw.Connection(path)) as db:
            db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, u, v)")
            db.execute(f"CREATE UNIQUE INDEX i ON t({index})")
            db.execute("INSERT INTO t VALUES (1, 'x', 0), (2, 'y', 1)")
            if path == paths[1]:
                reconcile(db)

    def left(db: Any, policy: str) -> list[tuple[Any, ...]]:
        db.execute("BEGIN")
        with pytest.raises(sqlite3.IntegrityError, match="datatype mismatch"):
            db.execute(failing.format(policy))
        rows: list[tuple[Any, ...]] = db.execute("SELECT * FROM t")
        db.execute("ROLLBACK")
        return rows

    with OlderSqlite() as older:
        plain, captured = map(older.connect, paths)
        for policy in ("ABORT", "FAIL", "IGNORE", "REPLACE", "ROLLBACK"):
            rows = left(plain, policy)
            assert left(captured, policy) == rows
            assert (rows[0] == (1, "x", 0)) == (policy == "ABORT" or "INSERT" in failing)
        plain.close()
        captured.close()


def test_a_hub_that_would_read_with_an_old_library_says_what_to_do(
    database: Path, library: Path
) -> None:
    program = (
        "import asyncio, sys\n"
        "from cdchub import Hub\n"
        "from cdchub.errors import StartError\n"
        "async def main(driver):\n"
        "    async with Hub(sys.argv[1], driver=driver):\n"
        "        print('fine')\n"
        "try:\n"
        "    asyncio.run(main(sys.argv[2]))\n"
        "except StartError as error:\n"
        "    print(error)\n"
    )

    def said(driver: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program, database, driver],
            env=os.environ | {"LD_LIBRARY_PATH": str(library)},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout

    assert "is SQLite 3.35.2, and a hub needs 3.37 or newer" in said("sqlite3")
    assert 'driver="apsw"' in said("sqlite3")
    assert said("apsw") == "fine\n"
