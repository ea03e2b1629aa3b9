"""The fan-out under what the comparison lacks: filters, a stalled reader, storms, memory, catch-up.

`fanout.py filters stall reconnect epoch memory new catch-up` runs the sections that are named, all of
them by default, each on a hub of its own. A figure never fails the run, because machines differ; a
gap, a repeat or a reader that never arrives does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from loadtest import fanout_filters, fanout_stall, fanout_storms, fanout_streams
from loadtest.fanout_bench import Measured
from loadtest.machine import Cores, bound_to, raise_descriptor_limit
from loadtest.spine import describe_machine, show
from loadtest.wire import LoadTestError

_SECTIONS: dict[str, Callable[[argparse.Namespace], Measured]] = {
    "filters": fanout_filters.measure,
    "stall": fanout_stall.measure,
    "reconnect": fanout_storms.measure_reconnect,
    "epoch": fanout_storms.measure_epoch,
    "memory": fanout_streams.measure_memory,
    "new": fanout_streams.measure_new,
    "catch-up": fanout_streams.measure_catch_up,
}

# Name, default, size of a smoke test, what it is.
_SIZES: list[tuple[str, float, float, str]] = [
    ("filter-rate", 100, 100, "filters: commits a second"),
    ("filter-s", 5, 0.3, "filters: seconds of load"),
    ("readers", 1_000, 20, "stall: readers beside the stalled one"),
    ("before-s", 20, 0.5, "stall: seconds of load before"),
    ("stall-s", 60, 1, "stall: seconds of load during it"),
    ("stall-rate", 50, 50, "stall: commits a second"),
    ("stall-pad", 1_000, 20_000, "stall: bytes of a row"),
    ("clients", 10_000, 50, "reconnect, memory: connections"),
    ("live", 100, 5, "reconnect: readers that stay"),
    ("calm-s", 10, 0.5, "reconnect: seconds of load before the storm"),
    ("storm-rate", 10, 20, "reconnect: commits a second all the while"),
    ("changes", 1_000, 200, "reconnect: changes while everyone is away"),
    ("epoch-streams", 1_000, 20, "epoch: streams with snapshot=1"),
    ("rows", 1_000, 100, "epoch: rows of the table"),
    ("churn", 100_000, 200, "memory: connections that come and go"),
    ("streams", 1_000, 20, "new: streams a round"),
    ("backlog", 1_000_000, 5_000, "catch-up: changes in the log"),
]
_FEEDS = (1, 10, 100, 1_000)
_FEEDS_SMALL = (1, 20)


def main() -> int:
    options = _options()
    print(describe_machine())
    limit = raise_descriptor_limit()
    print(f"open files: {limit:,}", flush=True)
    with bound_to(Cores.of_machine().client):
        for name in options.sections or _SECTIONS:
            try:
                raise_descriptor_limit(options.live + _connections(name, options))
                measured = _SECTIONS[name](options)
            except LoadTestError as error:
                print(f"{name} has failed: {error}", file=sys.stderr)
                return 1
            show(measured)
            if options.out is not None:
                line = {"figure": "fanout", "at": int(time.time())} | asdict(measured)
                with options.out.open("a") as out:
                    out.write(json.dumps(line) + "\n")
    return 0


def _connections(section: str, options: argparse.Namespace) -> int:
    """About how many the hub has at a time."""
    counts = {
        "filters": max(options.feeds),
        "stall": options.readers,
        "epoch": options.epoch_streams,
        "new": options.streams,
        "catch-up": 1,
    }
    return int(counts.get(section, options.clients))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(_SECTIONS))
    parser.add_argument("--small", action="store_true", help="a smoke test in seconds")
    parser.add_argument("--out", type=Path, help="append the results here, a JSON object a line")
    parser.add_argument(
        "--feeds", type=lambda text: [int(n) for n in text.split(",")], help="filters: 1,10,100,1000"
    )
    for name, default, small, what in _SIZES:
        kind = int if isinstance(default, int) and isinstance(small, int) else float
        parser.add_argument(f"--{name}", type=kind, help=f"{what} ({default:,g})")
    options = parser.parse_args()
    for name in options.sections:
        if name not in _SECTIONS:
            parser.error(f"there is no section {name!r}: choose from {', '.join(_SECTIONS)}")
    # After parsing, so that a size that is given holds in a smoke test too.
    for name, default, small, _ in _SIZES:
        attribute = name.replace("-", "_")
        if getattr(options, attribute) is None:
            setattr(options, attribute, small if options.small else default)
    if options.feeds is None:
        options.feeds = _FEEDS_SMALL if options.small else _FEEDS
    return options


if __name__ == "__main__":
    raise SystemExit(main())
