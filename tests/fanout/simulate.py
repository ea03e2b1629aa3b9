"""The long run: `make simulate`, or `python -m tests.fanout.simulate --steps 1000000 --from 0`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.fanout.simulation import HELD_BYTES_MAX, Simulation

# Steps of one run, which has one seed: enough for many cuts, resets and expired positions, and few
# enough that its history fits into memory and a failure can be repeated in seconds.
_RUN_STEPS = 10_000
_BREAKS_MAX = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first run's seed")
    options = parser.parse_args()
    began_s, failed, most_bytes, changes = time.monotonic(), [], 0, 0
    runs = -(-options.steps // _RUN_STEPS)
    for seed in range(options.first, options.first + runs):
        with tempfile.TemporaryDirectory() as folder:
            simulation = Simulation(
                seed, Path(folder), steps=min(_RUN_STEPS, options.steps), breaks_max=_BREAKS_MAX
            )
            try:
                asyncio.run(simulation.run())
            except Exception as fault:
                failed.append(seed)
                print(f"seed {seed}: {type(fault).__name__}: {fault}", flush=True)
        most_bytes = max(most_bytes, *(client.most_bytes for client in simulation.clients))
        changes += sum(map(len, simulation.source.committed.values()))
    print(
        f"{runs} runs of {min(_RUN_STEPS, options.steps)} steps, {changes} changes: {len(failed)} "
        f"failed {failed or ''}; at most {most_bytes} bytes held for a reader, of {HELD_BYTES_MAX} "
        f"allowed; {time.monotonic() - began_s:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
