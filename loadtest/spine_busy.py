"""Whether the hub's own writes disturb an application: deferred transactions, with it and without.

A transaction that begins with a read can't write any more once somebody else has committed. With one
writing process only the hub is somebody else; so there, every error is the hub's doing.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

from loadtest.spine_figures import Drain, Section, WriterProcess
from loadtest.spine_writers import BUSY_SCHEMA
from loadtest.wire import Hub, make_database, wait_for


class Load(NamedTuple):
    name: str
    rows: int
    others: bool = False
    steady: bool = False


# Three rows a transaction, with pauses: the hub's pruning of its outbox, which begins at 10,000 rows,
# falls into the run several times. Thirty without a pause: pruning is forced, at 250,000 rows.
_LOADS = [
    Load("one writer", 3),
    Load("two writers", 3, others=True),
    Load("one steady writer", 30, steady=True),
]


class Outcome(NamedTuple):
    errors: int
    # Those during which the other writer did not hold the lock.
    unexplained: int
    seconds: float
    kinds: list[str]
    # How long the other writer held the write lock, each time.
    held_ms: list[float]


def measure(folder: Path, transactions: int) -> Section:
    section = Section("busy")
    for number, load in enumerate(_LOADS):
        for with_hub in (False, True):
            database = make_database(folder / f"busy-{number}-{with_hub}.db", BUSY_SCHEMA)
            name = f"{load.name}, {'hub' if with_hub else 'no hub'}"
            if with_hub:
                found = _write_with_hub(section, database, transactions, load)
            else:
                found = _write(database, transactions, load)
            _report(section, name, found, transactions, goal=1.0 if with_hub else None)
    return section


def _report(
    section: Section, name: str, found: Outcome, transactions: int, *, goal: float | None
) -> None:
    scale = 10_000 / transactions
    # With another writer, only what it does not explain can be the hub's.
    section.add(f"{name}: busy", found.errors * scale, "/10,000", None if found.held_ms else goal)
    if found.held_ms:
        section.add(f"{name}: not the other's", found.unexplained * scale, "/10,000", goal)
        median_ms, longest_ms = statistics.median(found.held_ms), max(found.held_ms)
        section.notes.append(
            f"{name}: the other writer held the lock {len(found.held_ms)} times, "
            f"{median_ms:.2f} ms (median), {longest_ms:.1f} ms at most"
        )
    section.add(f"{name}: speed", transactions / found.seconds, "/s")
    if found.kinds:
        counts = {kind: found.kinds.count(kind) for kind in sorted(set(found.kinds))}
        section.notes.append(f"{name}: {counts}")


def _write_with_hub(section: Section, database: Path, transactions: int, load: Load) -> Outcome:
    hub = Hub(database)
    try:
        hub.start()
        subscriber = Drain(hub, "table=*")
        found = _write(database, transactions, load)
        wanted = (transactions - found.errors) * load.rows
        wait_for(lambda: hub.head_lsn() >= wanted, "the head", every_s=0.02)
        capture = hub.get_json("/cdc/status")["capture"]
        shown = {key: capture[key] for key in ("prunesQuiet", "prunesForced", "rowsPruned", "busy")}
        section.notes.append(f"{load.name}: the hub counted {shown}")
        subscriber.close()
    finally:
        hub.close()
    return found


def _write(database: Path, transactions: int, load: Load) -> Outcome:
    other = WriterProcess("visits", database) if load.others else None
    options = ["--count", str(transactions), "--rows", str(load.rows)]
    writer = WriterProcess("deferred", database, *options, *(["--steady"] if load.steady else []))
    found = writer.result()
    commits = other.result() if other is not None else []
    unexplained = [
        name
        for name, began_ns, failed_ns in found["errors"]
        if not any(start <= failed_ns and end >= began_ns for start, end in commits)
    ]
    kinds = [name for name, _, _ in found["errors"]]
    held_ms = [(end - start) / 1e6 for start, end in commits]
    return Outcome(len(kinds), len(unexplained), found["seconds"], kinds, held_ms)
