"""Cores, limits, and what a process has taken: CPU time to the nanosecond, resident memory, a curve.

The server gets one core and whoever loads it another one, so that neither takes the other's time.
A child inherits the cores of whoever starts it; that is how every thread of a server is bound.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loadtest.wire import LoadTestError

# What clock_getcpuclockid(3) makes of a process id: the clock of all its threads, ended ones too.
_CPUCLOCK_SCHED = 2
# What a server has open besides: files, its listener, its loop, connections of those who ask it.
_OTHER_FILES = 200


class Cores(NamedTuple):
    """Which core serves and which one loads; None where there is only one, and nothing is bound."""

    server: int | None
    client: int | None

    @classmethod
    def of_machine(cls) -> Cores:
        available = sorted(os.sched_getaffinity(0))
        return cls(available[0], available[1]) if len(available) > 1 else cls(None, None)


@contextlib.contextmanager
def bound_to(core: int | None) -> Iterator[None]:
    """Processes that are started inside begin, and stay, on that core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_descriptor_limit(connections: int = 0) -> int:
    """As many open files as the system lets us have; children inherit it. Returns the limit.

    Raises `LoadTestError` where a process could not have so many connections.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < connections + _OTHER_FILES:
        raise LoadTestError(f"{connections:,} connections are more than {hard:,} open files allow")
    return hard


class ProcessCost:
    """What a process, with the children it has now, takes from here on."""

    def __init__(self, pid: int) -> None:
        self._pids = [pid, *_children(pid)]
        self._cpu_ns = self._cpu()
        self.rss_kib_before = self.rss_kib()

    def _cpu(self) -> int:
        return sum(time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) for pid in self._pids)

    @property
    def cpu_s(self) -> float:
        return (self._cpu() - self._cpu_ns) / 1e9

    def rss_kib(self) -> int:
        return sum(_status_kib(pid, "VmRSS") for pid in self._pids)

    @property
    def rss_kib_more(self) -> int:
        return self.rss_kib() - self.rss_kib_before


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *_children(child)]
    return found


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


class MemoryCurve:
    """Resident memory of a process over time: pairs of seconds and MiB, until it is left."""

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        self._cost = ProcessCost(pid)
        self._every_s = every_s
        self.points: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        began_s, ending = time.monotonic(), False
        while True:
            point = (time.monotonic() - began_s, self._cost.rss_kib() / 1024)
            self.points.append((round(point[0], 2), round(point[1], 2)))
            if ending:
                return
            # The last point is the one at the end, however short the curve.
            ending = self._stop.wait(self._every_s)

    def __enter__(self) -> MemoryCurve:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_mib(self) -> float:
        return max(mib for _, mib in self.points)
