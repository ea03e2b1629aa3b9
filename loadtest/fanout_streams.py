"""What streams themselves cost: memory of idle ones, of those that came and went, CPU of a new one,
and how fast one reader is served a long history."""

from __future__ import annotations

import argparse
import statistics
import time

from loadtest.fanout_bench import Bench, Measured
from loadtest.wire import LoadTestError

_CHURN_STEPS = 50
_NEW_ROUNDS = 5
_CATCH_UP_S_MAX = 300.0
_FILL_ROWS = 1_000


def measure_memory(options: argparse.Namespace) -> Measured:
    section = Measured("memory")
    with Bench() as bench:
        with bench.crowd() as crowd:
            cost = bench.cost()
            crowd.open(options.clients)
            bench.subscribers(options.clients)
            kib = cost.rss_kib_more / options.clients
            section.add(f"an idle connection of {options.clients:,}", kib, "KiB")
            crowd.do("cut")
            bench.subscribers(0)
        # The hub's pools and caches are filled by now: what grows from here on is a leak.
        with bench.crowd() as crowd:
            points = [(0.0, cost.rss_kib() / 1024)]
            each = max(1, options.churn // _CHURN_STEPS)
            for number in range(each, options.churn + 1, each):
                crowd.do("churn", count=each, concurrent=100)
                points.append((float(number), round(cost.rss_kib() / 1024, 2)))
            bench.subscribers(0)
            tenth = points[max(1, len(points) // 10)]
            gone = points[-1][0] - tenth[0]
            growth = 1024 * (points[-1][1] - tenth[1]) / max(1.0, gone)
            section.add(f"memory after {options.churn:,} came and went", points[-1][1], "MiB")
            section.add("growth a visit, after the first tenth", growth, "KiB")
            section.curves["the hub's memory, MiB by visits"] = points
    return section


def measure_new(options: argparse.Namespace) -> Measured:
    """CPU of the hub from connect to the stream's first bytes, medians of rounds."""
    section = Measured("new")
    costs, speeds = [], []
    with Bench() as bench, bench.crowd() as crowd:
        for _ in range(_NEW_ROUNDS):
            cost = bench.cost()
            took_s = crowd.open(options.streams)
            bench.subscribers(options.streams)
            costs.append(1e6 * cost.cpu_s / options.streams)
            speeds.append(options.streams / took_s)
            crowd.do("cut")
            bench.subscribers(0)
    section.add("CPU of a new stream", statistics.median(costs), "µs")
    section.add("spread", max(costs) - min(costs), "µs")
    section.add("new streams", statistics.median(speeds), "/s")
    return section


def measure_catch_up(options: argparse.Namespace) -> Measured:
    section = Measured("catch-up")
    # Without base snapshots: one that falls into the reading would be measured with it.
    with Bench("--no-base") as bench:
        head = bench.write("--rows", options.backlog, "--each", min(_FILL_ROWS, options.backlog))
        position = f"{bench.status()['epoch']}:0"
        with bench.crowd(f"table=bench&since={position}", "--follow") as crowd:
            started_s = crowd.figures()["cpuS"]
            cost, began_ns = bench.cost(), time.monotonic_ns()
            crowd.open(1)
            took_s = (crowd.until("lsn", head, within_s=_CATCH_UP_S_MAX) - began_ns) / 1e9
            cpu_s, found = cost.cpu_s, crowd.flawless()
        if found["changes"] != options.backlog:
            raise LoadTestError(f"{options.backlog:,} changes were due: {found}")
        section.add("changes", found["changes"] / took_s, "/s")
        section.add("bytes", found["bytes"] / took_s / 1e6, "MB/s")
        section.add("CPU of the hub", 1e6 * cpu_s / found["changes"], "µs each")
        section.add(
            "CPU of the reader", 1e6 * (found["cpuS"] - started_s) / found["changes"], "µs each"
        )
    return section
