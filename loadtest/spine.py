"""The measurements behind the hub's promises: latency, idle cost, restart, disturbance of writers.

`spine.py latency idle restart busy` runs the sections that are named, all of them by default. Every
figure stands beside its goal; nothing fails when one is missed, because machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from loadtest import spine_busy, spine_cost, spine_latency
from loadtest.spine_figures import Section
from loadtest.wire import LoadTestError

_SECTIONS: dict[str, Callable[[Path, argparse.Namespace], Section]] = {
    "latency": lambda folder, options: spine_latency.measure(folder, options.rows),
    "idle": lambda folder, options: spine_cost.measure_idle(folder, options.idle_s),
    "restart": lambda folder, options: spine_cost.measure_restart(folder, options.log_rows),
    "busy": lambda folder, options: spine_busy.measure(folder, options.transactions),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(_SECTIONS))
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--rows", type=int, default=2_000, help="rows of latency")
    parser.add_argument("--idle-s", type=float, default=20.0, help="seconds of idle")
    parser.add_argument("--log-rows", type=int, default=1_000_000, help="rows of restart")
    parser.add_argument("--transactions", type=int, default=10_000, help="transactions of busy")
    options = parser.parse_args()
    for name in options.sections:
        if name not in _SECTIONS:
            parser.error(f"there is no section {name!r}: choose from {', '.join(_SECTIONS)}")
    machine = describe_machine()
    print(machine, flush=True)
    done = []
    for name in options.sections or _SECTIONS:
        with tempfile.TemporaryDirectory(prefix="cdchub-bench-") as folder:
            try:
                section = _SECTIONS[name](Path(folder), options)
            except LoadTestError as error:
                print(f"{name} has failed: {error}", file=sys.stderr)
                return 1
        show(section)
        done.append(section)
    if options.json is not None:
        document = {"machine": machine, "time": int(time.time()), "sections": [asdict(s) for s in done]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def describe_machine() -> str:
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores, load before {load}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, the writers' SQLite {sqlite3.sqlite_version}"
    )


def show(section: Section) -> None:
    print(f"\n{section.name}")
    for figure in section.figures:
        goal = "" if figure.goal is None else f"goal ≤ {figure.goal:g}  {figure.verdict}"
        print(f"  {figure.name:44} {figure.value:>12,.3f} {figure.unit:8} {goal}".rstrip())
    for note in section.notes:
        print(f"  {note}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
