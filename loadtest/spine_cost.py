"""What a hub costs that has nothing to do, and how soon it is back with a long log."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from loadtest.spine_figures import Drain, Section, WriterProcess
from loadtest.spine_writers import FILL_SCHEMA
from loadtest.wire import Hub, make_database, wait_for

_RESTARTS = 5
_FILL_S_MAX = 600.0


def measure_idle(folder: Path, seconds: float) -> Section:
    section = Section("idle")
    database = make_database(folder / "idle.db", FILL_SCHEMA)
    hub = Hub(database)
    try:
        hub.start()
        subscriber = Drain(hub, "table=items")
        WriterProcess("fill", database, "--count", "1000").result()
        wait_for(lambda: hub.head_lsn() >= 1_000, "the first rows")
        # What the hub does after work (a checkpoint after half a second) is over before we begin.
        time.sleep(2.0)
        used_s, began_s = cpu_s(hub.pid), time.monotonic()
        time.sleep(seconds)
        used_s, took_s = cpu_s(hub.pid) - used_s, time.monotonic() - began_s
        section.add("CPU of one core", 100 * used_s / took_s, "%", 1.0)
        _add_memory(section, hub.pid, goal=60.0)
        subscriber.close()
    finally:
        hub.close()
    return section


def cpu_s(pid: int) -> float:
    """CPU time of all threads in seconds; the scheduler counts nanoseconds, where `stat` has ticks."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def _add_memory(section: Section, pid: int, *, goal: float | None = None) -> None:
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split(":")
        sizes[name] = int(size.split()[0])
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    section.add("memory, RSS", sizes["Rss"] / 1024, "MiB", goal)
    section.add("memory, PSS", sizes["Pss"] / 1024, "MiB")
    section.add("memory, private", private / 1024, "MiB")


def measure_restart(folder: Path, rows: int) -> Section:
    section = Section("restart")
    database = make_database(folder / "restart.db", FILL_SCHEMA)
    hub = Hub(database)
    try:
        section.add("first start, empty log", hub.start(), "s")
        began_s = time.monotonic()
        writer = WriterProcess("fill", database, "--count", str(rows), "--synchronous", "NORMAL")
        writing_s = float(writer.result()["seconds"])
        lag = rows - hub.head_lsn()
        wait_for(lambda: hub.head_lsn() >= rows, "the head", within_s=_FILL_S_MAX, every_s=0.02)
        took_s = time.monotonic() - began_s
        section.add("writing with capture installed", rows / writing_s, "rows/s")
        section.add("captured into the log", rows / took_s, "rows/s")
        section.add("behind when the writer ended", lag, "rows")
        _add_memory(section, hub.pid)
        ready_s = []
        for _ in range(_RESTARTS):
            hub.kill()
            ready_s.append(hub.start())
        if hub.head_lsn() != rows:
            section.notes.append(f"VIOLATED: the head is {hub.head_lsn()}, should be {rows}")
        section.add(f"kill -9 → ready, median of {_RESTARTS}", statistics.median(ready_s), "s", 1.0)
        section.add("kill -9 → ready, slowest", max(ready_s), "s")
        section.notes.append("kill -9 → ready: " + ", ".join(f"{s:.3f}" for s in ready_s) + " s")
        section.notes.append(_file_sizes(database))
    finally:
        hub.close()
    return section


def _file_sizes(database: Path) -> str:
    found = sorted(database.parent.glob(database.name + "*"))
    sizes = (f"{path.name} {path.stat().st_size / 2**20:.1f} MiB" for path in found)
    return "files: " + ", ".join(sizes)
