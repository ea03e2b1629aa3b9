"""The simulation, in short runs.

A failure names its seed in the test id; `pytest -k "no_repeat[17]"` runs that one again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fanout.simulation import Simulation

SEEDS = range(24)
STEPS = 400


@pytest.mark.parametrize("seed", SEEDS)
async def test_simulation_no_gap_no_repeat(seed: int, tmp_path: Path) -> None:
    await Simulation(seed, tmp_path, steps=STEPS).run()
