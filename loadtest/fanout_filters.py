"""What filters cost: N feeds with different equality filters, of which each change matches one.

A hub that asks every feed about every change pays N times; one that looks the value up pays once.
"""

from __future__ import annotations

import argparse

from loadtest.fanout_bench import Bench, Measured
from loadtest.wire import LoadTestError


def measure(options: argparse.Namespace) -> Measured:
    section = Measured("filters")
    points = []
    for feeds in options.feeds:
        cpu_us = _cpu_per_change(feeds, options)
        section.add(f"{feeds:,} feeds: CPU a change", cpu_us, "µs")
        points.append((float(feeds), cpu_us))
    section.add("the most feeds to the fewest", points[-1][1] / points[0][1], "×")
    section.curves["CPU µs a change, by feeds"] = points
    return section


def _cpu_per_change(feeds: int, options: argparse.Namespace) -> float:
    rows = int(options.filter_rate * options.filter_s)
    with (
        Bench() as bench,
        bench.crowd("table=bench&filter=owner=eq.{n}", "--follow", "--sparse") as crowd,
    ):
        crowd.open(feeds)
        cost = bench.cost()
        # Owner 0 is the filter of the first reader, and of nobody else.
        bench.write("--rate", options.filter_rate, "--rows", rows, "--owner", 0)
        crowd.until("delivered", rows, within_s=60.0)
        cpu_us = 1e6 * cost.cpu_s / rows
        found = crowd.flawless()
        if (found["delivered"], found["most"]) != (rows, rows):
            raise LoadTestError(f"{rows:,} changes were due to one reader: {found}")
    return cpu_us
