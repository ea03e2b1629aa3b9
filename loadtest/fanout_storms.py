"""Two storms: everyone reconnects at once, and everyone's history ends at once.

Both are judged by what readers see: no gap, no repeat, and how long until all have what they are due.
"""

from __future__ import annotations

import argparse

from loadtest.crowd import Program
from loadtest.fanout_bench import Bench, Measured
from loadtest.machine import MemoryCurve, ProcessCost
from loadtest.wire import LoadTestError

_BURST_ROWS = 100
_STORM_S_MAX = 300.0


def measure_reconnect(options: argparse.Namespace) -> Measured:
    """All are cut, changes are committed, all resume at once while a writer goes on slowly."""
    section = Measured("reconnect")
    with (
        Bench() as bench,
        bench.crowd("table=bench", "--follow", "--preferred") as live,
        bench.crowd("table=bench", "--follow") as crowd,
        bench.writer("--rate", options.storm_rate) as writer,
    ):
        live.open(options.live)
        bench.head_at_least(1)
        crowd.open(options.clients)
        live.do("clear")
        bench.head_at_least(bench.hub.head_lsn() + int(options.storm_rate * options.calm_s))
        live.do("until", field="delivered", least=options.live, withinS=30.0)
        section.add("live readers' p99 before", live.figures()["p99Ms"], "ms")
        crowd.do("cut")
        bench.subscribers(options.live)
        due = bench.hub.head_lsn() + options.changes
        with bench.writer("--rows", options.changes, "--each", _BURST_ROWS) as burst:
            burst.result(60.0)
        target = bench.head_at_least(due)
        live.until("lsn", target, within_s=60.0)
        live.do("clear")
        # Not `bench.cost()`: with a writer going on, the hub is never idle.
        cost = ProcessCost(bench.hub.pid)
        client_s = crowd.figures()["cpuS"]
        with MemoryCurve(bench.hub.pid, every_s=0.1) as curve:
            began_ns = crowd.do("resume")["atNs"]
            ended_ns = crowd.until("lsn", target, within_s=_STORM_S_MAX)
        took_s, cpu_s = (ended_ns - began_ns) / 1e9, cost.cpu_s
        section.add(f"until all {options.clients:,} have caught up", took_s, "s")
        section.add("the hub's CPU meanwhile", cpu_s, "s")
        section.add("CPU a reader that comes back", 1e6 * cpu_s / options.clients, "µs")
        section.add("the readers' own CPU meanwhile", crowd.figures()["cpuS"] - client_s, "s")
        # A storm can be over before the slow writer's next commit: then that one is what is told.
        live.do("until", field="delivered", least=options.live, withinS=30.0)
        section.add("live readers' p99 meanwhile", live.figures()["p99Ms"], "ms")
        section.add("live readers' latest meanwhile", live.figures()["maxMs"], "ms")
        section.add("the hub's memory, more at its peak", curve.peak_mib - curve.points[0][1], "MiB")
        section.curves["the hub's memory, MiB by seconds"] = curve.points
        writer.stop()
        head = bench.hub.head_lsn()
        for each in (live, crowd):
            each.until("lsn", head, within_s=60.0)
        live.flawless()
        found = crowd.flawless()
        section.notes.append(f"no gap and no repeat; refused and tried again: {found['refused']:,}")
    return section


def measure_epoch(options: argparse.Namespace) -> Measured:
    """The database is replaced by an older copy under streams that asked for snapshots."""
    section = Measured("epoch")
    streams, rows = options.epoch_streams, options.rows
    with Bench() as bench:
        bench.write("--rows", rows, "--each", rows)
        copy = bench.database.with_name("copy.db")
        _copy(bench, bench.database, copy)
        # What the copy does not have, so that everybody's position lies beyond it.
        bench.write("--rows", rows // 10, "--each", rows // 10)
        before_rows = rows + rows // 10
        with bench.crowd("table=bench&snapshot=1", "--follow") as crowd:
            crowd.open(streams)
            crowd.until("caughtUp", 1, within_s=_STORM_S_MAX)
            if (seen := crowd.figures()["rows"]) != streams * before_rows:
                raise LoadTestError(f"{streams * before_rows:,} snapshot rows were due, not {seen:,}")
            taken = bench.status()["log"]["snapshotsTaken"]
            epoch, cost = bench.status()["epoch"], bench.cost()
            replaced_ns = _copy(bench, copy, bench.database)
            told_ns = crowd.until("resets", 1, within_s=_STORM_S_MAX)
            crowd.until("snapshots", 2, within_s=_STORM_S_MAX)
            done_ns = crowd.until("caughtUp", 2, within_s=_STORM_S_MAX)
            cpu_s, status = cost.cpu_s, bench.status()
            found = crowd.flawless()
            if status["epoch"] == epoch or found["resets"] != streams:
                raise LoadTestError(f"one reset each was due: {found}")
            if found["rows"] != streams * (before_rows + rows):
                raise LoadTestError(f"{rows:,} rows each were due again: {found}")
        section.add(f"until all {streams:,} were told reset", (told_ns - replaced_ns) / 1e9, "s")
        section.add("until all have the snapshot and caught-up", (done_ns - replaced_ns) / 1e9, "s")
        section.add("the hub's CPU meanwhile", cpu_s, "s")
        again = status["log"]["snapshotsTaken"] - taken
        section.add("snapshots taken before", taken, "")
        section.add("snapshots taken for the storm", again, "")
    return section


def _copy(bench: Bench, origin: object, target: object) -> int:
    with Program(bench.cores.client, "database_copy", origin, target) as copying:
        return int(copying.result(60.0)["atNs"])
