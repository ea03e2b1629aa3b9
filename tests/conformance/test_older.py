"""The same programs with a writer on SQLite 3.35.2, the oldest that capture promises to serve, while
the hub reads with a recent one. `make conformance ARGS=--older` runs many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
