"""The soak: random changes by another process while the hub is killed with -9 and started again.

Four subscribers reconnect by themselves with Last-Event-ID. In the end each must hold exactly the rows
of its tables, and must have seen exactly the LSNs that the log has for them, in order. Exit code 1 and
a report if anything differs; the database is kept then. `--seed` repeats the writer's statements and
the places of the kills; what the kills meet inside the hub is the machine's own.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.rows import Rows, apply, lsn_problems, read_database, row_problems
from loadtest.soak_writer import END_MARK, KEYS, SCHEMA
from loadtest.wire import HOST, Event, EventReader, Hub, LoadTestError, make_database, wait_for

# A heartbeat every second; a stream that stays silent for so long, between kills, is a fault.
_HEARTBEAT_S = 1
_SILENCE_S = 30.0
# The wait before a reconnection. A browser takes longer; here the streams shall be cut often.
_RETRY_S = (0.02, 0.3)
# The pace of the writer: a minute for 50,000 changes, beside what the restarts take.
_ROW_MS = 1.2
# What a run may take beside the writer's pace: starts of the hub, and the reading of the log.
_OVERHEAD_S = 240.0
_PAGE = 10_000


class Subscriber:
    """One stream that comes back after every cut, and what it has made of its changes."""

    def __init__(self, hub: Hub, query: str, tables: tuple[str, ...]) -> None:
        self.query = query
        self.tables = tables
        self.rows: Rows = {table: {} for table in tables}
        self.lsns: list[int] = []
        self.snapshot_lsn = 0
        self.snapshots = self.connections = self.refusals = 0
        self.problems: list[str] = []
        # Set when the first position is known, and when the writer's last row has come.
        self.placed = threading.Event()
        self.ended = threading.Event()
        self._hub = hub
        self._last_id = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"subscriber {query}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(_SILENCE_S + 10)
        if self._thread.is_alive():
            self._problem("the stream did not end")

    def _problem(self, text: str) -> None:
        self.problems.append(f"{text} (connection {self.connections}, Last-Event-ID {self._last_id!r})")

    def _run(self) -> None:
        jitter = random.Random()
        while not self._stopping.is_set():
            connection = http.client.HTTPConnection(HOST, self._hub.port, timeout=_SILENCE_S)
            try:
                self._follow(connection)
            except TimeoutError:
                self._problem(f"the stream was silent for {_SILENCE_S:g} s")
            except (OSError, http.client.HTTPException):
                pass  # the hub was killed, or is not there yet
            except (ValueError, KeyError, TypeError) as error:
                self._problem(f"what came is not of the protocol: {error!r}")
                return
            finally:
                connection.close()
            self._stopping.wait(jitter.uniform(*_RETRY_S))

    def _follow(self, connection: http.client.HTTPConnection) -> None:
        """One connection, until it is cut."""
        headers = {"Accept": "text/event-stream"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        connection.request("GET", f"/cdc/stream?{self.query}", headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            self._problem(f"the stream was answered with {response.status}: {response.read()[:300]!r}")
            return
        self.connections += 1
        reader = EventReader(self._last_id)
        while not self._stopping.is_set():
            data = response.read1(65_536)
            if not data:
                return
            for event in reader.feed(data):
                self._take(event)
            self._last_id = reader.last_id
            if self._last_id:
                self.placed.set()

    def _take(self, event: Event) -> None:
        # What counts for a reconnection is the id of the last block that came whole.
        self._last_id = event.last_id
        match event.name:
            case "message":
                self._take_change(json.loads(event.data), event.last_id)
            case "snapshot":
                self._begin_snapshot(json.loads(event.data))
            case "refused":
                self.refusals += 1
            case "caught-up" | "transaction-end":
                pass
            case _:
                self._problem(f"event {event.name}: {event.data[:300]}")

    def _begin_snapshot(self, data: dict[str, Any]) -> None:
        self.snapshots += 1
        if self.snapshot_lsn and self.lsns:
            self._problem("a second snapshot after the first was complete")
        self.snapshot_lsn = int(data["position"].split(":")[1])
        self.lsns.clear()
        for table in data["tables"]:
            self.rows[table] = {}

    def _take_change(self, change: dict[str, Any], last_id: str) -> None:
        lsn = change["lsn"]
        apply(self.rows, change)
        if change["type"] == "SNAPSHOT":
            if lsn != self.snapshot_lsn:
                self._problem(f"a row with LSN {lsn} in the snapshot of {self.snapshot_lsn}")
            return
        if not last_id.endswith(f":{lsn}"):
            self._problem(f"LSN {lsn} came with id {last_id!r}")
        self.lsns.append(lsn)
        new = change["newValue"] or {}
        if END_MARK in new.values() and change["table"] == self.tables[-1]:
            self.ended.set()

    def verdict(self, database: Rows, log: dict[str, list[int]]) -> list[str]:
        """Everything that is wrong, one line each."""
        expected = {table: database[table] for table in self.tables}
        lsns = [lsn for table in self.tables for lsn in log[table] if lsn > self.snapshot_lsn]
        found = [*self.problems, *lsn_problems(self.lsns, lsns), *row_problems(self.rows, expected)]
        return [f"subscriber {self.query}: {text}" for text in found]


class WriterProcess:
    """The writer. Its lines tell how far it is; ours tell how far it may go."""

    def __init__(self, database: Path, changes: int, seed: int) -> None:
        pace = ["--changes", str(changes), "--seed", str(seed), "--row-ms", str(_ROW_MS)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.soak_writer", database, *pace],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        # If anything hangs, the writer's end ends the run.
        self._limit = threading.Timer(_OVERHEAD_S + 3 * changes * _ROW_MS / 1000, self._process.kill)
        self._limit.daemon = True
        self._limit.start()

    def allow(self, changes: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{changes}\n")
        self._process.stdin.flush()

    def progress(self) -> Iterator[int]:
        """The number of changes after each commit, until its end. Raises `LoadTestError`."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "end\n":
                return
            yield int(line)
        raise LoadTestError("the writer has failed, or the run took too long")

    def close(self) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def write_and_kill(
    hub: Hub, writer: WriterProcess, late: Subscriber, options: argparse.Namespace
) -> tuple[list[float], int]:
    """The run itself. How long each restart took, from its start to ready, and the rows pruned."""
    changes, kills = options.changes, options.kills
    jitter = random.Random(options.seed)
    step = changes // (kills + 1)
    restarts: list[float] = []
    pruned = 0
    # Half a step beyond the next kill: so far it goes on while the hub is down, then it waits.
    writer.allow(step + step // 2)
    for made in writer.progress():
        if not late.connections and made > step // 4:
            late.start()
            wait_for(lambda: late.snapshots > 0, "the snapshot to begin")
        if len(restarts) < kills and made >= step * (len(restarts) + 1):
            # A commit has just returned; a random moment of what the hub does then shall be hit.
            pruned += pruned_rows(hub)
            time.sleep(jitter.uniform(0.0, 0.04))
            hub.kill()
            restarts.append(hub.start())
            reach = step * (len(restarts) + 1) + step // 2
            writer.allow(reach if len(restarts) < kills else changes)
            print(
                f"{made:>6} changes: kill {len(restarts)}, ready after {restarts[-1]:.2f} s", flush=True
            )
    if len(restarts) < kills:
        raise LoadTestError(f"only {len(restarts)} kills in {changes} changes: take more changes")
    return restarts, pruned + pruned_rows(hub)


def pruned_rows(hub: Hub) -> int:
    """Rows that this hub process has removed from its outbox."""
    return int(hub.get_json("/cdc/status")["capture"]["rowsPruned"])


def read_log(hub: Hub) -> tuple[dict[str, list[int]], list[str]]:
    """The LSNs of each table as the log has them, and what is wrong with the log itself."""
    everything = _page_through(hub, "*")
    lsns = [change["lsn"] for change in everything]
    problems = [f"log: {text}" for text in lsn_problems(lsns, range(1, hub.head_lsn() + 1))]
    by_table: dict[str, list[int]] = {}
    for table in KEYS:
        by_table[table] = [change["lsn"] for change in _page_through(hub, table)]
        among_all = [change["lsn"] for change in everything if change["table"] == table]
        found = lsn_problems(by_table[table], among_all)
        problems += [f"log of table {table} against the log of all: {text}" for text in found]
    return by_table, problems


def _page_through(hub: Hub, table: str) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = []
    since = "beginning"
    while True:
        page = hub.get_json(f"/cdc/changes?table={table}&since={since}&limit={_PAGE}")
        changes += page["changes"]
        if page["upToDate"]:
            return changes
        if page["next"] == since:
            raise LoadTestError(f"/cdc/changes of {table} stays at {since} and is not up to date")
        since = page["next"]


def run(folder: Path, options: argparse.Namespace) -> list[str]:
    """One soak. Everything that went wrong, one line each."""
    database = make_database(folder / "soak.db", SCHEMA)
    hub = Hub(database, "--heartbeat", str(_HEARTBEAT_S))
    writer = None
    subscribers = [
        Subscriber(hub, "table=a&since=beginning", ("a",)),
        Subscriber(hub, "table=b", ("b",)),
        Subscriber(hub, "table=*&since=0", ("a", "b", "c")),
        Subscriber(hub, "table=a,c&snapshot=1", ("a", "c")),
    ]
    *early, late = subscribers
    began_s = time.monotonic()
    try:
        hub.start()
        for subscriber in early:
            subscriber.start()
        # The one without `since` begins at the present, which must not have begun yet.
        wait_for(lambda: all(s.placed.is_set() for s in early), "the subscribers' first positions")
        writer = WriterProcess(database, options.changes, options.seed)
        restarts, pruned = write_and_kill(hub, writer, late, options)
        problems = _await_end(subscribers)
        log, log_problems = read_log(hub)
        for subscriber in subscribers:
            subscriber.stop()
        code = hub.stop()
    finally:
        if writer is not None:
            writer.close()
        hub.close()
    if code != 0:
        problems.append(f"the hub ended with code {code} on SIGTERM")
    rows = read_database(database, KEYS)
    problems += log_problems
    for subscriber in subscribers:
        problems += subscriber.verdict(rows, log)
    _summary(subscribers, rows, log)
    slowest_s, took_s = max(restarts, default=0.0), time.monotonic() - began_s
    print(f"{len(restarts)} kills, the slowest restart took {slowest_s:.2f} s; {pruned} rows pruned")
    print(f"{took_s:.0f} s in all")
    return problems


def _await_end(subscribers: list[Subscriber]) -> list[str]:
    """Gives each one time to receive the last row."""
    deadline_s = time.monotonic() + 60.0
    late = [s for s in subscribers if not s.ended.wait(max(0.0, deadline_s - time.monotonic()))]
    return [f"subscriber {s.query}: the writer's last row did not come within 60 s" for s in late]


def _summary(subscribers: list[Subscriber], rows: Rows, log: dict[str, list[int]]) -> None:
    changes = {table: len(lsns) for table, lsns in log.items()}
    left = {table: len(found) for table, found in rows.items()}
    print(f"log: {sum(changes.values())} changes {changes}; rows in the end: {left}")
    for subscriber in subscribers:
        print(
            f"  {subscriber.query:26} {len(subscriber.lsns):>6} changes, "
            f"{subscriber.connections} connections, {subscriber.snapshots} snapshots"
            f" (at LSN {subscriber.snapshot_lsn}), {subscriber.refusals} refusals"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--changes", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None, help="repeats a run's statements")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(2**31)
    print(f"soak: {options.changes} changes, {options.kills} kills, --seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="cdchub-soak-"))
    try:
        problems = run(folder, options)
    except LoadTestError as error:
        problems = [str(error)]
    if problems:
        print("\n".join(["VIOLATED:", *problems, f"kept: {folder}"]))
        return 1
    shutil.rmtree(folder)
    print("ok: every row and every LSN is where it belongs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
