"""The writers of the measurements: plain sqlite3 in processes of their own, as an application writes.

Each prints one JSON document at its end. Times are CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

LATENCY_SCHEMA = "CREATE TABLE ticks(seq INTEGER PRIMARY KEY, made_ns INTEGER, title TEXT);"
TITLE = "a row of the size that rows have, more or less"
FILL_SCHEMA = "CREATE TABLE items(id INTEGER PRIMARY KEY, title TEXT, done INTEGER);"
BUSY_SCHEMA = """
CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE visits(id INTEGER PRIMARY KEY, account INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
INSERT INTO accounts SELECT i, 1000 FROM n;
"""


def main() -> int:
    modes: dict[str, Callable[[argparse.Namespace], object]] = {
        "latency": latency,
        "fill": fill,
        "deferred": deferred,
        "visits": visits,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=modes)
    parser.add_argument("database", type=Path)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--every-ms", type=float, default=4.0)
    parser.add_argument("--floor-port", type=int, default=0)
    parser.add_argument("--synchronous", choices=["FULL", "NORMAL"], default="FULL")
    parser.add_argument("--rows", type=int, default=1_000, help="rows that a transaction writes")
    parser.add_argument("--steady", action="store_true", help="`deferred` makes no pauses")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(modes[options.mode](options)))
    return 0


def _open(options: argparse.Namespace) -> sqlite3.Connection:
    database = sqlite3.connect(options.database, timeout=5.0, isolation_level=None)
    database.execute(f"PRAGMA synchronous = {options.synchronous}")
    return database


def latency(options: argparse.Namespace) -> list[list[int]]:
    """One-row commits, and between them the same row straight over TCP: the floor.

    For each: the moments before COMMIT, after it, and before the direct send.
    """
    database = _open(options)
    floor = socket.create_connection(("127.0.0.1", options.floor_port), timeout=10.0)
    floor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    every_ns = int(options.every_ms * 1e6)
    found = []
    slot_ns = time.monotonic_ns()
    for seq in range(options.count):
        slot_ns = max(slot_ns + every_ns, time.monotonic_ns())
        _until(slot_ns)
        database.execute("BEGIN IMMEDIATE")
        row = (seq, time.monotonic_ns(), TITLE)
        database.execute("INSERT INTO ticks VALUES (?, ?, ?)", row)
        before_ns = time.monotonic_ns()
        database.execute("COMMIT")
        after_ns = time.monotonic_ns()
        # Halfway to the next commit, when the last one's change is long through.
        _until(slot_ns + every_ns // 2)
        line = json.dumps({"newValue": {"seq": seq, "made_ns": row[1], "title": TITLE}})
        # As long as the event of the stream is, so that as many bytes are moved.
        line = line.replace(" ", "", 2) + " " * 150 + "\n\n"
        sent_ns = time.monotonic_ns()
        floor.sendall(line.encode())
        found.append([before_ns, after_ns, sent_ns])
    floor.close()
    database.close()
    return found


def _until(moment_ns: int) -> None:
    left_ns = moment_ns - time.monotonic_ns()
    if left_ns > 0:
        time.sleep(left_ns / 1e9)


def fill(options: argparse.Namespace) -> dict[str, float]:
    """Many rows in large transactions, as fast as it goes."""
    database = _open(options)
    began_s = time.monotonic()
    for first in range(0, options.count, options.rows):
        numbers = range(first, min(first + options.rows, options.count))
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO items VALUES (?, ?, ?)", ((n, f"item number {n}", n % 2) for n in numbers)
        )
        database.execute("COMMIT")
    took_s = time.monotonic() - began_s
    database.close()
    return {"seconds": took_s}


def deferred(options: argparse.Namespace) -> dict[str, object]:
    """Transactions that read, think and then write. SQLite refuses the write (SQLITE_BUSY_SNAPSHOT)
    if anybody has committed since the read: so each commit of the hub's own is a danger to them."""
    database = _open(options)
    pick = random.Random(options.seed)
    errors: list[tuple[str, int, int]] = []
    began_s = time.monotonic()
    for number in range(options.count):
        if number % 250 == 249 and not options.steady:
            # A pause, as applications have them: the hub does its own writing in pauses, and looks
            # for one after half a second to a second. Some of ours end in the midst of it.
            time.sleep(pick.uniform(0.4, 1.2))
        began_ns = time.monotonic_ns()
        try:
            _read_then_write(database, pick, options.rows)
        except sqlite3.OperationalError as error:
            errors.append((error.sqlite_errorname, began_ns, time.monotonic_ns()))
            if database.in_transaction:
                database.execute("ROLLBACK")
            # Trying again at once would meet the same lock many times, and count it many times.
            time.sleep(pick.uniform(0.002, 0.01))
    took_s = time.monotonic() - began_s
    database.close()
    return {"seconds": took_s, "errors": errors}


def _read_then_write(database: sqlite3.Connection, pick: random.Random, rows: int) -> None:
    account = pick.randint(1, 1_000 - rows)
    database.execute("BEGIN")
    database.execute("SELECT balance FROM accounts WHERE id = ?", (account,)).fetchone()
    time.sleep(pick.uniform(0.0, 0.001))
    database.execute(
        "UPDATE accounts SET balance = balance + 1 WHERE id >= ? AND id < ?",
        (account, account + rows),
    )
    database.execute("COMMIT")


def visits(options: argparse.Namespace) -> list[tuple[int, int]]:
    """One-row commits now and then, until standard input ends. When each one held the write lock."""
    database = _open(options)
    # No waiting inside SQLite: the time from before the attempt that had the lock to after the commit
    # is all the time in which it can have been held, and has no time in it that was only waited.
    database.execute("PRAGMA busy_timeout = 0")
    pick = random.Random(options.seed)
    made = []
    while not select.select([sys.stdin], [], [], pick.uniform(0.02, 0.2))[0]:
        asked_ns = _begin_immediate(database)
        database.execute("INSERT INTO visits(account) VALUES (?)", (pick.randint(1, 1_000),))
        database.execute("COMMIT")
        made.append((asked_ns, time.monotonic_ns()))
    database.close()
    return made


def _begin_immediate(database: sqlite3.Connection) -> int:
    """Begins a write transaction, and returns the moment before the attempt that succeeded."""
    limit_ns = time.monotonic_ns() + 5 * 10**9
    while True:
        asked_ns = time.monotonic_ns()
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or asked_ns > limit_ns:
                raise
            time.sleep(0.001)
        else:
            return asked_ns


if __name__ == "__main__":
    sys.exit(main())
