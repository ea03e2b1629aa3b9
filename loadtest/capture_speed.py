"""How fast changes and rows go through the hub, and what they take: speed, memory, bytes, the -wal.

`capture_speed.py drain busy transaction table` measures the sections that are named, all of them by
default, each on a database of its own, and prints a Markdown table with the goals. Nothing fails when
a goal is missed, because machines differ: read the ratios and the medians of `--rounds`.

Longer than a module should be by a few lines: the sections share how they watch a hub and fill a table.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from loadtest.wire import HOST, PATIENCE_S, Hub, LoadTestError, make_database, wait_for

SCHEMA = "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, a INTEGER, b REAL, c TEXT);"
INSERT = "INSERT INTO t VALUES (?, ?, ?, ?, ?)"
TRANSACTION_ROWS = 1_000
# About 220 bytes a row, in the columns that a table of that size has.
TABLE = "CREATE TABLE wide(id INTEGER PRIMARY KEY, name TEXT, mail TEXT, price REAL, note TEXT);"
ROW_BYTES = 220
_TICKS_S = os.sysconf("SC_CLK_TCK")
_SLOW_BYTES_S = 2**20
_DRAIN_S_MAX = 900.0

# Name, value, unit, and the goal with its sign ("" where there is none).
Line = tuple[str, float, str, str]


class Watch:
    """What the hub's process and the source's -wal have been since it was made."""

    def __init__(self, hub: Hub, database: Path) -> None:
        self._proc = Path(f"/proc/{hub.pid}")
        self._wal = database.with_name(database.name + "-wal")
        # From here on the peak counts anew (proc(5), clear_refs).
        (self._proc / "clear_refs").write_text("5")
        self._rss_kib = self._status("VmRSS")
        self._cpu_s = self._cpu()
        self._began_s = time.monotonic()
        self.wal_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            if self._wal.exists():
                self.wal_bytes = max(self.wal_bytes, self._wal.stat().st_size)

    def _status(self, name: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

    def _cpu(self) -> float:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_S

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def cpu_s(self) -> float:
        return self._cpu() - self._cpu_s

    @property
    def peak_mib(self) -> float:
        return self._status("VmHWM") / 1024

    @property
    def extra_mib(self) -> float:
        """By how much the resident memory has grown at its peak."""
        return (self._status("VmHWM") - self._rss_kib) / 1024

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def init(database: Path) -> None:
    program = Path(sys.executable).with_name("cdchub")
    subprocess.run([program, "init", database], check=True, stdout=subprocess.DEVNULL)


def fill(database: Path, first: int, count: int, each: int) -> None:
    """Rows in transactions of `each`, as fast as it goes."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=60.0)
    connection.execute("PRAGMA synchronous = NORMAL")
    for start in range(first, first + count, each):
        connection.execute("BEGIN IMMEDIATE")
        numbers = range(start, min(start + each, first + count))
        rows = ((n, f"user-{n}", n * 7, n * 0.37, "some text of about thirty chars") for n in numbers)
        connection.executemany(INSERT, rows)
        connection.execute("COMMIT")
    connection.close()


def drained(hub: Hub, lsn: int) -> None:
    wait_for(lambda: hub.head_lsn() >= lsn, f"LSN {lsn}", within_s=_DRAIN_S_MAX, every_s=0.05)


def drain(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    """A full outbox into the log, with nobody writing; and what the log takes then."""
    speeds, costs, ratios = [], [], []
    for number in range(options.rounds):
        database = make_database(folder / f"drain{number}.db", SCHEMA)
        init(database)
        fill(database, 0, options.changes, TRANSACTION_ROWS)
        hub = Hub(database)
        hub.start()
        try:
            before, watch = hub.head_lsn(), Watch(hub, database)
            drained(hub, options.changes)
            speeds.append((options.changes - before) / watch.seconds)
            costs.append(1e6 * watch.cpu_s / (options.changes - before))
            watch.end()
            encoded = sum(size for _, size, _ in _pages(hub))
            hub.stop()
        finally:
            hub.close()
        ratios.append(_changes_bytes(database) / encoded)
    yield "outbox to log, nobody writes", statistics.median(speeds), "changes/s", "≥ 150000"
    yield "CPU of the hub", statistics.median(costs), "µs a change", ""
    yield "log, without its bases, to bytes of the changes", statistics.median(ratios), "×", "≤ 1.3"


def busy(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    """The same while a bulk writer writes, in a process of its own."""
    database = make_database(folder / "busy.db", SCHEMA)
    hub = Hub(database)
    hub.start()
    try:
        watch = Watch(hub, database)
        writer = subprocess.Popen(
            [sys.executable, __file__, "--fill", str(database), "--changes", str(options.changes)]
        )
        if writer.wait(_DRAIN_S_MAX) != 0:
            raise LoadTestError("the writer has failed")
        wrote_s, head = watch.seconds, hub.head_lsn()
        drained(hub, options.changes)
        yield "bulk writer, beside the hub", options.changes / wrote_s, "rows/s", ""
        yield "captured when it ended", 100 * head / options.changes, "%", ""
        yield "outbox to log meanwhile", options.changes / watch.seconds, "changes/s", ""
        yield "the source's -wal, at most", watch.wal_bytes / 2**20, "MiB", ""
        watch.end()
    finally:
        hub.close()


def transaction(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    """One transaction of many rows: memory doesn't grow with it, and it stays whole."""
    peaks = []
    for rows in (1_000, options.transaction // 10, options.transaction):
        database = make_database(folder / f"one{rows}.db", SCHEMA)
        init(database)
        fill(database, 0, rows, rows)
        hub = Hub(database, "--no-base")
        hub.start()
        try:
            watch = Watch(hub, database)
            drained(hub, rows)
            peaks.append(watch.peak_mib)
            watch.end()
            txids = {txid for _, _, found in _pages(hub) for txid in found}
        finally:
            hub.close()
        yield f"one transaction of {rows:,} rows: memory at its peak", peaks[-1], "MiB", ""
        yield f"one transaction of {rows:,} rows: txids", len(txids), "", "≤ 1"
    yield "the largest to the one before", peaks[-1] / peaks[-2], "×", "≤ 1.1"


def table(folder: Path, options: argparse.Namespace) -> Iterator[Line]:
    """A large table: its base snapshot, its snapshots, and the -wal while a slow client reads."""
    database = make_database(folder / "table.db", SCHEMA + TABLE)
    rows = options.megabytes * 10**6 // ROW_BYTES
    _fill_table(database, rows)
    yield "the table", database.stat().st_size / 10**6, "MB", ""
    hub = Hub(database)
    hub.start()
    try:
        with _Writing(database) as writing:
            watch = Watch(hub, database)
            wait_for(lambda: _has_base(hub), "the base", within_s=_DRAIN_S_MAX, every_s=0.05)
            yield "its base snapshot, beside a writer", rows / watch.seconds, "rows/s", "≥ 100000"
            yield "its base snapshot: memory", watch.extra_mib, "MiB", "≤ 64"
            yield "its base snapshot: -wal, at most", watch.wal_bytes / 2**20, "MiB", ""
            yield "what the writer wrote meanwhile", writing.written_mib(), "MiB", ""
            watch.end()
        for name, path, accept in (
            ("/cdc/snapshot", "/cdc/snapshot?table=wide", "application/x-ndjson"),
            ("/cdc/stream?snapshot=1", "/cdc/stream?table=wide&snapshot=1", "text/event-stream"),
        ):
            watch = Watch(hub, database)
            found, first_s = _read(hub, path, accept, rows)
            yield f"{name}", found / watch.seconds, "rows/s", "≥ 100000"
            yield f"{name}: first byte of a row after", first_s, "s", ""
            yield f"{name}: memory", watch.extra_mib, "MiB", "≤ 64"
            watch.end()
        _empty_wal(database)
        with _Writing(database) as writing:
            watch = Watch(hub, database)
            reading = _read_slowly(hub, options.slow_s)
            next(reading)
            copied_mib, written_mib = watch.wal_bytes / 2**20, writing.written_mib()
            yield "1 MiB/s: -wal when the first row comes", copied_mib, "MiB", ""
            yield "what the writer wrote until then", written_mib, "MiB", ""
            next(reading, None)
            grown_mib = watch.wal_bytes / 2**20 - copied_mib
            yield f"1 MiB/s for {options.slow_s:g} s more: the -wal grows by", grown_mib, "MiB", "≤ 16"
            yield "what the writer wrote meanwhile", writing.written_mib() - written_mib, "MiB", ""
            yield "1 MiB/s: memory", watch.extra_mib, "MiB", "≤ 64"
            watch.end()
    finally:
        hub.close()


def _fill_table(database: Path, rows: int) -> None:
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    text = "a note as people write them, neither long nor short; "
    values = ((n, f"name number {n}", f"user{n}@example.org", n * 0.01, text * 3) for n in range(rows))
    connection.executemany("INSERT INTO wide VALUES (?, ?, ?, ?, ?)", values)
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


def _empty_wal(database: Path) -> None:
    """SQLite keeps the file as long as it has once been."""
    connection = sqlite3.connect(database, isolation_level=None, timeout=60.0)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


class _Writing:
    """A writer in a process of its own, that goes on until the end of the block."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def __enter__(self) -> _Writing:
        self._first = self._count()
        words = ["--first", str(self._first), "--changes", str(10**9), "--pause-s", "0.02"]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--fill", str(self._database), *words]
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _count(self) -> int:
        connection = sqlite3.connect(self._database, timeout=60.0)
        (found,) = connection.execute("SELECT coalesce(max(id), -1) + 1 FROM t").fetchone()
        connection.close()
        return int(found)

    def written_mib(self) -> float:
        """About: a row of ours, its index entry and its row in the outbox."""
        return (self._count() - self._first) * 220 / 2**20


def _has_base(hub: Hub) -> bool:
    return hub.get_json("/cdc/status")["log"]["baseLsn"] is not None


def _pages(hub: Hub) -> Iterator[tuple[int, int, set[int]]]:
    """The log in pages: changes, bytes of their JSON, and the txids in them."""
    since = "beginning"
    while True:
        document = hub.get_json(f"/cdc/changes?table=*&since={since}&limit=10000")
        status, body = hub.get(
            f"/cdc/changes?table=*&since={since}&limit=10000", "application/x-ndjson"
        )
        if status != 200:
            raise LoadTestError(f"/cdc/changes answered {status}")
        changes = document["changes"]
        yield len(changes), len(body) - len(changes), {change["txid"] for change in changes}
        if document["upToDate"]:
            return
        since = document["next"]


def _changes_bytes(database: Path) -> int:
    """What the log's file takes after a checkpoint, but for its base snapshots."""
    log = database.with_name(database.name + "-cdchub")
    connection = sqlite3.connect(log, isolation_level=None)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    size = log.stat().st_size
    (bases,) = connection.execute("SELECT coalesce(sum(length(data)), 0) FROM base_chunks").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    return int(size - bases - free * page)


def _read(hub: Hub, path: str, accept: str, rows: int) -> tuple[int, float]:
    """Reads as fast as it comes, until all rows are there. The rows, and when the first came."""
    connection = http.client.HTTPConnection(HOST, hub.port, timeout=10 * PATIENCE_S)
    began_s, first_s, found, mark = time.monotonic(), 0.0, 0, b"\n"
    if accept == "text/event-stream":
        mark = b'data: {"lsn"'
    try:
        connection.request("GET", path, headers={"Accept": accept})
        response = connection.getresponse()
        tail = b""
        while found < rows:
            data = response.read1(2**20)
            if not data:
                raise LoadTestError(f"{path} ended after {found} of {rows} rows")
            if not first_s and mark in data:
                first_s = time.monotonic() - began_s
            data = tail + data
            found += data.count(mark)
            # A mark may be cut; the rest is shorter than one, so that none counts twice.
            tail = data[len(data) - len(mark) + 1 :] if len(mark) > 1 else b""
    finally:
        connection.close()
    return found, first_s


def _read_slowly(hub: Hub, seconds: float) -> Iterator[None]:
    """Comes back when the first row has come, and ends `seconds` later."""
    connection = http.client.HTTPConnection(HOST, hub.port, timeout=10 * PATIENCE_S)
    try:
        connection.request(
            "GET", "/cdc/snapshot?table=wide", headers={"Accept": "application/x-ndjson"}
        )
        response = connection.getresponse()
        taken = len(response.read1(65_536))
        yield
        began_s = time.monotonic()
        while time.monotonic() - began_s < seconds:
            taken += len(response.read1(65_536))
            time.sleep(max(0.0, taken / _SLOW_BYTES_S - (time.monotonic() - began_s)))
    finally:
        connection.close()


SECTIONS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Line]]] = {
    "drain": drain,
    "busy": busy,
    "transaction": transaction,
    "table": table,
}


def show(line: Line) -> None:
    name, value, unit, goal = line
    verdict = ""
    if goal:
        sign, bound = goal.split()
        met = value >= float(bound) if sign == "≥" else value <= float(bound)
        verdict = "ok" if met else "MISSED"
        goal = f"{sign} {float(bound):,g}"
    shown = f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
    print(f"| {name} | {shown} {unit} | {goal} | {verdict} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--changes", type=int, default=500_000, help="changes of drain and busy")
    parser.add_argument("--rounds", type=int, default=3, help="runs of drain")
    parser.add_argument("--transaction", type=int, default=1_000_000, help="rows of the largest one")
    parser.add_argument("--megabytes", type=int, default=100, help="the size of the table")
    parser.add_argument("--slow-s", type=float, default=15.0, help="how long the slow client reads")
    parser.add_argument("--folder", type=Path, help="where the databases are made")
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--pause-s", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill is not None:
        for first in range(options.first, options.first + options.changes, TRANSACTION_ROWS):
            fill(options.fill, first, TRANSACTION_ROWS, TRANSACTION_ROWS)
            time.sleep(options.pause_s)
        return 0
    for name in options.sections:
        if name not in SECTIONS:
            parser.error(f"there is no section {name!r}: choose from {', '.join(SECTIONS)}")
    print("| what | measured | goal | |\n|---|---|---|---|", flush=True)
    for name in options.sections or SECTIONS:
        with tempfile.TemporaryDirectory(prefix="cdchub-bench-", dir=options.folder) as folder:
            try:
                for line in SECTIONS[name](Path(folder), options):
                    show(line)
            except LoadTestError as error:
                print(f"{name} has failed: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
