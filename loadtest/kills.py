"""kill -9 of the hub at random moments, many times, while several processes write.

After each kill the next hub starts, and `cdchub verify` compares log and tables. At its beginning all
go on writing; then they rest, because it replays the whole log each time. In the end the log must hold
every LSN, no transaction may be split, and every restart but a break of the schema's must have gone on
in the same epoch. Exit code 1 and a report if anything differs; the database is kept then. `--seed`
repeats the writers' statements and the moments of the kills.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.soak_writer import SCHEMA
from loadtest.wire import PATIENCE_S, Hub, LoadTestError, make_database, wait_for

_PAGE = 10_000
_VERIFY_S = 600.0
_VERIFY_TRIES = 20
# So long verify has writers beside it.
_BESIDE_S = 0.5


class Writers:
    """Some writers, as processes, until they are stopped."""

    def __init__(self, database: Path, count: int, seed: int) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "loadtest.kills_writer", database, "--seed", str(seed + n)]
                + (["--schema"] if n == 0 else []),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                cwd=Path(__file__).parent.parent,
            )
            for n in range(count)
        ]

    def tell(self, word: bytes) -> None:
        """`r`: rest, `g`: go on."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(word)

    def stop(self) -> int:
        """How many transactions they made. Raises `LoadTestError` if one has failed."""
        made = 0
        for process in self._processes:
            output, _ = process.communicate(b"", timeout=PATIENCE_S)
            if process.returncode != 0:
                raise LoadTestError("a writer has failed")
            made += int(output)
        return made

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def verify(database: Path, writers: Writers | None = None) -> list[str]:
    """What `cdchub verify` has to say against it. `writers` rest after a while."""
    program = Path(sys.executable).with_name("cdchub")
    pipe = subprocess.PIPE
    for _ in range(_VERIFY_TRIES):
        with subprocess.Popen(
            [program, "verify", database], stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                said, errors = _answer(process, writers)
            except BaseException:
                process.kill()
                raise
        if process.returncode == 0:
            return []
        if "try again" not in errors:
            break
        # The schema changed in that moment, so that there was nothing to compare with.
    return [f"verify: {said}{errors}".strip()]


def _answer(process: subprocess.Popen[str], writers: Writers | None) -> tuple[str, str]:
    try:
        return process.communicate(timeout=_VERIFY_S if writers is None else _BESIDE_S)
    except subprocess.TimeoutExpired:
        if writers is None:
            raise
        writers.tell(b"r")
        try:
            return process.communicate(timeout=_VERIFY_S)
        finally:
            writers.tell(b"g")


def settled(hub: Hub) -> None:
    """Waits until the log has a base, from which everything can be told."""

    def has_base() -> bool:
        return hub.get_json("/cdc/status")["log"]["baseLsn"] is not None

    wait_for(has_base, "the log's base snapshot", every_s=0.02)


def run(folder: Path, options: argparse.Namespace) -> list[str]:
    """One run. Everything that went wrong, one line each."""
    database = make_database(folder / "kills.db", SCHEMA)
    hub, pick = Hub(database), random.Random(options.seed)
    problems: list[str] = []
    restarts = [hub.start()]
    settled(hub)
    epoch = hub.get_json("/cdc/status")["epoch"]
    writers = Writers(database, options.writers, options.seed)
    try:
        for kill in range(1, options.kills + 1):
            time.sleep(pick.uniform(0.0, options.within_s))
            hub.kill()
            # Also a while in which what is written waits in the outbox.
            time.sleep(pick.choice([0.0, 0.05, 0.3]))
            restarts.append(hub.start())
            problems += [f"kill {kill}: {text}" for text in verify(database, writers)]
            if hub.get_json("/cdc/status")["epoch"] != epoch:
                problems.append(f"kill {kill}: the history was broken")
            if problems:
                return problems
            if kill % 20 == 0:
                print(f"{kill} kills, LSN {hub.head_lsn()}", flush=True)
        made = writers.stop()
        problems += _end(hub, database)
    finally:
        writers.close()
        hub.close()
    median_s, slowest_s = statistics.median(restarts), max(restarts)
    print(f"{options.kills} kills, {made} transactions of {options.writers} writers")
    print(f"ready after {median_s:.2f} s, the median; the slowest start took {slowest_s:.2f} s")
    return problems


def _end(hub: Hub, database: Path) -> list[str]:
    """Reads the whole log through the wire, and verifies it with and without a hub."""
    reading = _Reading()
    for change in _changes(hub):
        reading.take(change)
    print(f"{reading.count} changes in the log, {reading.txids} txids")
    problems = reading.problems[:10] + verify(database)
    if hub.stop() != 0:
        problems.append("the hub did not stop cleanly")
    return problems + verify(database)


def _changes(hub: Hub) -> Iterator[dict[str, Any]]:
    last = -1
    while last != (last := hub.head_lsn()):
        # The writers have ended: when the head stands still, everything is in the log.
        time.sleep(0.5)
    since = "beginning"
    while True:
        status, body = hub.get(f"/cdc/changes?table=*&since={since}&limit={_PAGE}")
        page = json.loads(body)
        if status == 410 and page["code"] == "schema_changed":
            # A table came and went while no hub ran: its followers are told, the others go on.
            since = page["position"]
            continue
        if status != 200:
            raise LoadTestError(f"/cdc/changes answered {status}: {body[:300]!r}")
        yield from page["changes"]
        if page["upToDate"]:
            return
        since = page["next"]


class _Reading:
    """LSNs ascend (what lies between them are notes of schema changes, which are no changes of rows),
    and a txid begins after the end of the one before it, and never comes again."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.count = self.txids = 0
        self._lsn = self._txid = 0
        self._ended = True

    def take(self, change: dict[str, Any]) -> None:
        lsn, txid = change["lsn"], change["txid"]
        if lsn <= self._lsn:
            self.problems.append(f"LSN {lsn} came after {self._lsn}")
        if txid == self._txid and self._ended:
            self.problems.append(f"txid {txid} goes on after its end, at LSN {lsn}")
        if txid != self._txid:
            self.txids += 1
            if txid <= self._lsn:
                self.problems.append(f"txid {txid} at LSN {lsn} begins too early")
        self.count += 1
        self._lsn, self._txid, self._ended = lsn, txid, change["commit"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--within-s", type=float, default=1.0, help="the longest life of a hub")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run's statements")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(2**31)
    print(f"kills: {options.kills}, {options.writers} writers, --seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="cdchub-kills-"))
    try:
        problems = run(folder, options)
    except LoadTestError as error:
        problems = [str(error)]
    if problems:
        print("\n".join(["VIOLATED:", *problems, f"kept: {folder}"]))
        return 1
    shutil.rmtree(folder)
    print("ok: log and tables agreed after every kill")
    return 0


if __name__ == "__main__":
    sys.exit(main())
