"""kill -9 between any two steps of the hub, and at random moments: nothing is lost, repeated or split.

Whatever step it was, the next hub goes on where the log ends: `cdchub verify` agrees, LSNs have no
hole, every transaction of the writer's is there once, whole and under one txid.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cdchub.log import LogReader
from tests.harness import (
    PATIENCE_S,
    HubProcess,
    cdchub,
    clean_environment,
    log_entries,
    make_database,
    run_sql,
    wait_for,
)
from tests.killed_hub import RETENTION_STEPS, STEPS
from tests.tagging_writer import SCHEMA

ROOT = Path(__file__).parent.parent
SEED = 20_240_607
# Steps of a stop, which the hub is asked for when the writer has written enough.
CLOSING = ("close the source", "close the spools", "close cleanly")
ENOUGH_TAGS = 25
# Up to here a hub that dies leaves no epoch that a later one could go on with.
BEFORE_THE_EPOCH_STANDS = {
    ("begin an epoch", "after", 1),
    ("read a base", "before", 1),
    ("read a base", "after", 1),
    ("take up the epoch", "before", 1),
    ("take up the epoch", "after", 1),
    ("adopt the source", "before", 1),
    ("commit in the source", "after", 1),
}
# What happens once in the life of a log, or of a hub.
ONCE = {"own the source", "create the log", "rename the new log", "pin what a base sees", *CLOSING}
ONCE |= {"begin an epoch", "adopt the source", "take up the epoch"}
# The first time, and a later one that meets a log which is in use.
POINTS = [(step, when, 1) for step in STEPS for when in ("before", "after")]
POINTS += [(step, "before", 15 if step in RETENTION_STEPS else 3) for step in STEPS if step not in ONCE]
# After a step is mostly before the next one, and the second time mostly like the first.
# And every other one is enough for each day. CDCHUB_ALL_KILLS=1 takes every point, which takes some
# minutes.
if not os.environ.get("CDCHUB_ALL_KILLS"):
    POINTS = [
        (step, when, number)
        for step, when, number in POINTS
        if (when == "before" and number == 1) or step == "commit in the source"
    ][::2]


class Worker:
    """A process that is told to end by the end of its standard input."""

    def __init__(self, *words: str | Path) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean_environment(),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def ask_to_end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> int:
        """Its exit code."""
        if self.process.poll() is None and not self.process.stdin.closed:  # type: ignore[union-attr]
            self.ask_to_end()
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def tags(self) -> dict[int, int]:
        """By transaction, how many marks it has committed."""
        found = [line.split() for line in self.lines]
        return {int(tag): int(marks) for tag, marks in found}


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    return make_database(tmp_path / "app.db", *SCHEMA)


@pytest.fixture
def writer(tagged: Path) -> Iterator[Worker]:
    with Worker("tests.tagging_writer", tagged, str(SEED)) as process:
        yield process


@pytest.mark.parametrize(("step", "when", "number"), POINTS, ids=str)
def test_a_kill_at_any_step_loses_repeats_and_splits_nothing(
    tagged: Path, writer: Worker, step: str, when: str, number: int
) -> None:
    wait_for(lambda: len(writer.lines) > 3, "the writer to begin")
    with Worker("tests.killed_hub", tagged, step, when, str(number)) as victim:
        if step in CLOSING:
            wait_for(lambda: victim.lines, "the hub to be ready")
            wait_for(lambda: len(writer.lines) > ENOUGH_TAGS, "the writer to write")
            victim.ask_to_end()
        code = victim.process.wait(PATIENCE_S)
    assert code == -signal.SIGKILL, f"seed {SEED}: the hub never came to this step"
    with HubProcess(tagged) as hub:
        ready_at = len(writer.lines)
        wait_for(lambda: len(writer.lines) > ready_at + 5, "the writer to write on")
        assert writer.end() == 0
        caught_up(hub)
        verified(tagged)
        assert "interrupted" not in hub.log
        assert hub.stop() == 0
    verified(tagged)
    epochs = epochs_of(tagged)
    early = (step, when, number) in BEFORE_THE_EPOCH_STANDS
    assert epochs <= (2 if early else 1), f"seed {SEED}: a kill is no break in history"
    check_log(tagged, writer.tags(), epochs)


def caught_up(hub: HubProcess) -> None:
    """Waits until the log has all of the source, and a base."""
    ((head,),) = run_sql(hub.database, "SELECT seq FROM sqlite_sequence WHERE name = '_cdchub_outbox'")
    hub.wait_for_lsn(head)
    wait_for(
        lambda: hub.get("/cdc/status").json()["log"]["baseLsn"] is not None, "the log to have a base"
    )


def verified(database: Path) -> None:
    done = cdchub("verify", database)
    assert done.returncode == 0, f"seed {SEED}: {done.stdout}{done.stderr}"


def epochs_of(database: Path) -> int:
    """The number of the log's present epoch."""
    reader = LogReader(database.with_name(database.name + "-cdchub"))
    try:
        return reader.state().present.number
    finally:
        reader.close()


def check_log(database: Path, committed: dict[int, int], epoch: int) -> None:
    """LSNs without a hole; the last transactions, each whole, once and under one txid."""
    entries = log_entries(database.with_name(database.name + "-cdchub"), epoch)
    lsns = [entry.lsn for entry in entries]
    assert lsns == list(range(lsns[0], lsns[0] + len(lsns))), f"seed {SEED}"
    changes: list[dict[str, Any]] = [json.loads(entry.data) for entry in entries]
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for change in changes:
        if change["table"] == "marks":
            found[change["key"]["tag"]].append(change)
    assert found, f"seed {SEED}: the log holds no mark"
    first = min(found)
    assert sorted(found) == [tag for tag in sorted(committed) if tag >= first], f"seed {SEED}"
    for tag, marks in found.items():
        numbers = [mark["key"]["n"] for mark in marks]
        assert numbers == list(range(1, committed[tag] + 1)), f"seed {SEED}: transaction {tag}"
        between = changes[marks[0]["lsn"] - lsns[0] : marks[-1]["lsn"] - lsns[0] + 1]
        assert len({change["txid"] for change in between}) == 1, f"seed {SEED}: transaction {tag}"
    check_transactions(changes)


def check_transactions(changes: list[dict[str, Any]]) -> None:
    """Each txid is the LSN of its first change, and its last change alone has the mark."""
    for before, after in pairwise(changes):
        begins = after["txid"] == after["lsn"]
        assert begins == before["commit"], f"seed {SEED}: {before} {after}"
        assert begins or after["txid"] == before["txid"], f"seed {SEED}: {before} {after}"
    assert changes[-1]["commit"]


def test_kills_at_random_moments_under_several_writers() -> None:
    """A few of what `make kills` does; it prints its seed."""
    script = ROOT / "loadtest" / "kills.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "8", "--within-s", "0.5"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
