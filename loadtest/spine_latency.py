"""How long a committed row takes to a subscriber, and how long it takes straight over TCP."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

from loadtest.spine_figures import Section, WriterProcess, open_stream, percentile
from loadtest.spine_writers import LATENCY_SCHEMA
from loadtest.wire import HOST, PATIENCE_S, Hub, LoadTestError, make_database

_EVENT = re.compile(rb'"newValue":\s?\{"seq":\s?(\d+),[^\n]*\n\n')
_MS = 1e6
# No machine's noise takes so long: beyond it, something waited for a timer or for the next commit.
_LATE_MS = 50.0


class Arrivals:
    """Notes when bytes arrive, in a tight loop; what they were is looked at in the end."""

    def __init__(self, connection: socket.socket, last_seq: int) -> None:
        self._socket = connection
        self._last = re.compile(rb'"seq":\s?%d,[^\n]*\n\n' % last_seq)
        self._received: list[tuple[int, bytes]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        tail = b""
        try:
            while True:
                data = self._socket.recv(65_536)
                self._received.append((time.monotonic_ns(), data))
                tail = tail[-2_000:] + data
                if not data or self._last.search(tail):
                    return
        except OSError:
            return  # what is missing shows in `times`

    def times(self, count: int) -> list[int]:
        """When each row was whole. Raises `LoadTestError` if one did not come."""
        self._thread.join(PATIENCE_S)
        self._socket.close()
        found: dict[int, int] = {}
        rest = b""
        for moment_ns, data in self._received:
            rest += data
            end = 0
            for match in _EVENT.finditer(rest):
                found[int(match[1])] = moment_ns
                end = match.end()
            rest = rest[end:]
        missing = [seq for seq in range(count) if seq not in found]
        if missing:
            raise LoadTestError(f"{len(missing)} rows did not arrive, the first is {missing[0]}")
        return [found[seq] for seq in range(count)]


class Load(NamedTuple):
    name: str
    synchronous: str
    rows: int
    every_ms: int


def measure(folder: Path, rows: int) -> Section:
    section = Section("latency")
    # FULL is SQLite's own default: the commit waits for an fsync. NORMAL is what WAL is often run with.
    # The sparse load is there because a wake that found nothing is made good by the next commit: at
    # one commit per 4 ms that hides it.
    loads = [
        Load("FULL", "FULL", rows, 4),
        Load("NORMAL", "NORMAL", rows, 4),
        Load("FULL, sparse", "FULL", max(20, rows // 10), 100),
    ]
    for number, load in enumerate(loads):
        _measure(section, folder / f"latency-{number}.db", load)
    return section


def _measure(section: Section, path: Path, load: Load) -> None:
    rows = load.rows
    database = make_database(path, LATENCY_SCHEMA)
    hub = Hub(database)
    listener = socket.create_server((HOST, 0))
    listener.settimeout(PATIENCE_S)
    try:
        hub.start()
        events = Arrivals(open_stream(hub, "table=ticks"), rows - 1)
        port = str(listener.getsockname()[1])
        pace = ["--count", str(rows), "--every-ms", str(load.every_ms)]
        more = ["--floor-port", port, "--synchronous", load.synchronous]
        writer = WriterProcess("latency", database, *pace, *more)
        floor = Arrivals(listener.accept()[0], rows - 1)
        sent = writer.result()
        event_ns, floor_ns = events.times(rows), floor.times(rows)
    finally:
        hub.close()
        listener.close()
    before = [(t - s[0]) / _MS for t, s in zip(event_ns, sent, strict=True)]
    after = [(t - s[1]) / _MS for t, s in zip(event_ns, sent, strict=True)]
    commit = [(s[1] - s[0]) / _MS for s in sent]
    direct = [(t - s[2]) / _MS for t, s in zip(floor_ns, sent, strict=True)]
    _add(section, f"{load.name}: COMMIT returned → client", after, p50=1.0, p99=5.0)
    _add(section, f"{load.name}: COMMIT issued → client", before)
    _add(section, f"{load.name}: the COMMIT itself", commit)
    _add(section, f"{load.name}: floor, straight over TCP", direct)
    late = sum(1 for value in after if value > _LATE_MS)
    section.notes.append(f"{load.name}: {late} of {rows} rows came more than {_LATE_MS:g} ms late")
    early = sum(1 for value in after if value < 0)
    if early:
        section.notes.append(f"{load.name}: {early} rows were with the client before COMMIT returned")


def _add(
    section: Section,
    name: str,
    values: list[float],
    *,
    p50: float | None = None,
    p99: float | None = None,
) -> None:
    section.add(f"{name}, p50", percentile(values, 50), "ms", p50)
    section.add(f"{name}, p90", percentile(values, 90), "ms")
    section.add(f"{name}, p99", percentile(values, 99), "ms", p99)
    section.add(f"{name}, max", max(values), "ms")
