"""The long run: `make conformance`, or `python -m tests.conformance --programs 100000 --from 0`."""

from __future__ import annotations

import argparse
import sys

from tests.conformance.many import Result, run_many
from tests.conformance.older import build

# Programs between two lines of progress.
_LAP = 2_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=100_000)
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=None, help="processes; one a core by default")
    parser.add_argument(
        "--older", action="store_true", help="writers on SQLite 3.35, which npm and cc build first"
    )
    options = parser.parse_args()
    if options.older:
        build()
    whole = Result()
    end = options.first + options.programs
    for first in range(options.first, end, _LAP):
        lap = run_many(range(first, min(first + _LAP, end)), jobs=options.jobs, older=options.older)
        whole.tally.add(lap.tally)
        whole.failures += lap.failures
        whole.took_s += lap.took_s
        for failure in lap.failures:
            print(f"{failure}\n", flush=True)
        print(f"{whole.tally.programs} programs, {len(whole.failures)} failed", flush=True)
    print(whole.summary())
    return 1 if whole.failures else 0


if __name__ == "__main__":
    sys.exit(main())
