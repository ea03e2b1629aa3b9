"""What capture costs a writer: the time of the same writes with and without it, as a table.

Run it by hand (python loadtest/capture_cost.py). Each cell is the median over the rounds of one
workload on a new database, divided by the median without capture; each round runs all variants one
after the other, so that whatever else the machine does hits them alike. The writer is this process,
once with the standard library's SQLite and once with APSW's.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

SCHEMA = "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, a INTEGER, b REAL, c TEXT)"
COLUMNS = ("id", "u", "a", "b", "c")
INSERT = "INSERT INTO t VALUES (?, ?, ?, ?, ?)"
TRANSACTION_ROWS = 1_000
PRESENT_ROWS = 5_000

Row = tuple[Any, ...]
Statements = tuple[str, Sequence[Row], int]
Setup = Callable[[Path], None]


def row(number: int) -> Row:
    return (number, f"user-{number}", number * 7, number * 0.37, "some text of about thirty chars")


def rows(count: int) -> list[Row]:
    return [row(number % PRESENT_ROWS) for number in range(count)]


# Each workload: whether rows are there before, the statement, its rows, and rows a transaction.
WORKLOADS: dict[str, tuple[bool, Statements]] = {
    "insert, one row a commit": (False, (INSERT, [row(n) for n in range(2_000)], 1)),
    "insert": (False, (INSERT, [row(n) for n in range(15_000)], TRANSACTION_ROWS)),
    "update": (
        True,
        (
            "UPDATE t SET a = a + 1, b = ? WHERE id = ?",
            [(number * 0.1, number % PRESENT_ROWS) for number in range(10_000)],
            TRANSACTION_ROWS,
        ),
    ),
    "delete": (
        True,
        ("DELETE FROM t WHERE id = ?", [(n,) for n in range(PRESENT_ROWS)], TRANSACTION_ROWS),
    ),
    "upsert, all conflict": (
        True,
        (f"{INSERT} ON CONFLICT(id) DO UPDATE SET a = excluded.a + 1", rows(8_000), TRANSACTION_ROWS),
    ),
    "OR IGNORE, all conflict": (
        True,
        (INSERT.replace("INSERT", "INSERT OR IGNORE"), rows(8_000), TRANSACTION_ROWS),
    ),
    "OR REPLACE, all conflict": (
        True,
        (INSERT.replace("INSERT", "INSERT OR REPLACE"), rows(5_000), TRANSACTION_ROWS),
    ),
}


def nothing(_path: Path) -> None:
    """No capture: what the others are compared with."""


def json_triggers(path: Path) -> None:
    """Plain AFTER triggers that write JSON, as other systems have them: blind to REPLACE."""

    def image(name: str) -> str:
        pairs = ", ".join(f"'{column}', {name}.{column}" for column in COLUMNS)
        return f"json_object({pairs})"

    now = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(
        "CREATE TABLE changes(id INTEGER PRIMARY KEY AUTOINCREMENT, tbl, op, old, new, ts)"
    )
    for event, old, new in (
        ("INSERT", "NULL", image("NEW")),
        ("UPDATE", image("OLD"), image("NEW")),
        ("DELETE", image("OLD"), "NULL"),
    ):
        values = f"'t', '{event[0].lower()}', {old}, {new}, {now}"
        database.execute(
            f"CREATE TRIGGER on_{event} AFTER {event} ON t BEGIN"
            f" INSERT INTO changes(tbl, op, old, new, ts) VALUES ({values}); END"
        )
    database.close()


def cdchub(grade: str) -> Setup:
    def install(path: Path) -> None:
        command = [sys.executable, "-m", "cdchub", "init", path, "--table", f"t:capture={grade}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)

    return install


VARIANTS: dict[str, Setup] = {
    "none": nothing,
    "JSON triggers": json_triggers,
    "cdchub plain": cdchub("plain"),
    "cdchub full": cdchub("full"),
}


def standard_library(path: Path) -> Any:
    return sqlite3.connect(path, isolation_level=None)


LIBRARIES: dict[str, Callable[[Path], Any]] = {
    f"sqlite3 {sqlite3.sqlite_version}": standard_library,
    f"APSW {apsw.sqlite_lib_version()}": lambda path: apsw.Connection(str(path)),
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7, help="runs of each cell")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        templates = make_templates(Path(folder))
        for line in measure(Path(folder), templates, options.rounds):
            print(line, flush=True)
    return 0


def make_templates(folder: Path) -> dict[tuple[str, bool], bytes]:
    """The databases to begin with, by variant and by whether they hold rows. Capture is installed
    once each, which takes longer than a measurement."""
    templates = {}
    for variant, install in VARIANTS.items():
        for filled in (False, True):
            path = folder / "template.db"
            database = standard_library(path)
            database.execute("PRAGMA journal_mode = WAL").fetchall()
            database.execute(SCHEMA)
            database.close()
            install(path)
            if filled:
                database = standard_library(path)
                write(database, (INSERT, [row(n) for n in range(PRESENT_ROWS)], TRANSACTION_ROWS))
                database.close()
            templates[variant, filled] = path.read_bytes()
            for found in folder.glob("template.db*"):
                found.unlink()
    return templates


def measure(folder: Path, templates: dict[tuple[str, bool], bytes], rounds: int) -> Iterator[str]:
    """The lines of the report."""
    for library, connect in LIBRARIES.items():
        yield f"| {library} | rows/s without | {' | '.join(list(VARIANTS)[1:])} |"
        yield "|---" * (len(VARIANTS) + 1) + "|"
        for workload, (filled, statements) in WORKLOADS.items():
            times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            for _ in range(rounds):
                for variant in VARIANTS:
                    path = folder / "measured.db"
                    path.write_bytes(templates[variant, filled])
                    times[variant].append(timed(connect(path), statements))
                    for found in folder.glob("measured.db*"):
                        found.unlink()
            base, *others = (statistics.median(times[variant]) for variant in VARIANTS)
            ratios = " | ".join(f"{other / base:.2f}" for other in others)
            yield f"| {workload} | {len(statements[1]) / base:,.0f} | {ratios} |"
        yield ""


def timed(database: Any, statements: Statements) -> float:
    database.execute("PRAGMA synchronous = NORMAL")
    began_s = time.perf_counter()
    write(database, statements)
    took_s = time.perf_counter() - began_s
    database.close()
    return took_s


def write(database: Any, statements: Statements) -> None:
    sql, parameters, each = statements
    if each == 1:
        for values in parameters:
            database.execute(sql, values)
        return
    for start in range(0, len(parameters), each):
        database.execute("BEGIN")
        database.executemany(sql, parameters[start : start + each])
        database.execute("COMMIT")


if __name__ == "__main__":
    raise SystemExit(main())
