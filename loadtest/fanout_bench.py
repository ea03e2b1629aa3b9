"""What each section of `loadtest.fanout` stands on: a fresh hub on its core, crowds, and writers."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from loadtest.crowd import Crowd, Program
from loadtest.machine import Cores, ProcessCost, bound_to
from loadtest.row_writer import SCHEMA
from loadtest.spine_figures import Section
from loadtest.wire import Hub, make_database, wait_for

# No writer of a section takes longer; the largest one commits a million rows.
_WRITER_S_MAX = 600.0
_HEAD_S_MAX = 300.0

Points = list[tuple[float, float]]


@dataclass(slots=True)
class Measured(Section):
    """Figures, and curves for the plots."""

    curves: dict[str, Points] = field(default_factory=dict)


class Bench:
    """One database with one table `bench`, and its hub. Everything that it starts ends with it."""

    def __init__(self, *hub_options: str) -> None:
        self._hub_options = hub_options
        self.cores = Cores.of_machine()

    def __enter__(self) -> Bench:
        self._folder = tempfile.TemporaryDirectory(prefix="cdchub-fanout-")
        self.database = make_database(Path(self._folder.name) / "bench.db", SCHEMA)
        self.hub = Hub(self.database, *self._hub_options)
        with bound_to(self.cores.server):
            try:
                self.hub.start()
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.hub.close()
        self._folder.cleanup()

    def crowd(self, query: str = "table=bench", *options: str) -> Crowd:
        """Readers of /cdc/stream; `--follow` makes them check every LSN."""
        return Crowd(self.cores.client, self.hub.port, f"/cdc/stream?{query}", *options)

    def writer(self, *options: object) -> Program:
        """A writer process, running; see `loadtest.row_writer`."""
        return Program(self.cores.client, "row_writer", self.database, *options)

    def write(self, *options: object) -> int:
        """Writes to the end. Returns the head once the hub has captured it all."""
        before = self.hub.head_lsn()
        with self.writer(*options) as writer:
            written = int(writer.result(_WRITER_S_MAX)["published"])
        return self.head_at_least(before + written)

    def head_at_least(self, lsn: int) -> int:
        wait_for(lambda: self.hub.head_lsn() >= lsn, f"LSN {lsn:,}", within_s=_HEAD_S_MAX, every_s=0.02)
        return self.hub.head_lsn()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.hub.get_json("/cdc/status")
        return found

    def subscribers(self, count: int) -> None:
        """Waits until the hub has exactly so many."""
        wait_for(
            lambda: self.status()["subscribers"]["total"] == count,
            f"{count:,} subscribers",
            every_s=0.05,
        )

    def cost(self) -> ProcessCost:
        """What the hub takes from now on, once it has nothing left to do."""
        until_idle(self.hub.pid)
        return ProcessCost(self.hub.pid)


def until_idle(pid: int) -> None:
    """Until a process has taken less than 5 % of a core for a quarter of a second.

    An idle hub takes up to 4 % where the machine is slow to wake; see docs/performance.md.
    """
    cost, last_cpu_s, last_s = ProcessCost(pid), float("-inf"), 0.0

    def idle() -> bool:
        nonlocal last_cpu_s, last_s
        cpu_s, now_s = cost.cpu_s, time.monotonic()
        share = (cpu_s - last_cpu_s) / (now_s - last_s)
        last_cpu_s, last_s = cpu_s, now_s
        return share < 0.05

    wait_for(idle, f"process {pid} to be idle", within_s=30.0, every_s=0.25)
