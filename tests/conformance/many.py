"""Running many programs: one process a part, and what there is to say of a failure."""

from __future__ import annotations

import dataclasses
import functools
import logging
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.hubs import Logs
from tests.conformance.programs import Program, random_program
from tests.conformance.world import Tally, run

# Seeds that a process takes at a time.
_PART = 50
_FAILURES_SHOWN = 5


@dataclass
class Failure:
    program: Program
    reason: str

    def __str__(self) -> str:
        return f"{self.program}\n=> {self.reason}"


@dataclass
class Result:
    tally: Tally = field(default_factory=Tally)
    failures: list[Failure] = field(default_factory=list)
    took_s: float = 0.0

    def summary(self) -> str:
        tally = self.tally
        return (
            f"{tally.programs} programs, {len(self.failures)} failed; {tally.statements} statements"
            f" ({tally.refused} refused), {tally.changes} changes, {tally.breaks} breaks,"
            f" {tally.subscribers} subscribers, {tally.resumes} resumes;"
            f" {tally.on_file} programs on files, {tally.migrating} change the schema,"
            f" {tally.hooked} agree with the preupdate hook.\n"
            f"Plain AFTER triggers would have got {tally.missed} of {tally.rivalled} programs wrong.\n"
            f"{self.took_s:.0f} s in all"
        )

    def report(self) -> str:
        shown = [str(failure) for failure in self.failures[:_FAILURES_SHOWN]]
        return "\n\n".join([*shown, self.summary()])


def run_seed(seed: int, logs: Logs, *, older: bool) -> Result:
    program = random_program(random.Random(seed), seed=seed, older=older)
    try:
        return Result(run(program, logs))
    except Exception as error:
        # Whatever it is: the smallest program that ends alike tells the most.
        smallest = shrunk(program, error, logs)
        failed = reason_of(smallest, logs) or error
        return Result(Tally(programs=1), [Failure(smallest, f"{type(failed).__name__}: {failed}")])


def shrunk(program: Program, error: Exception, logs: Logs) -> Program:
    """The program without the steps that it fails without, too; the last one, a check, stays."""
    smaller = True
    while smaller:
        smaller = False
        for place in range(len(program.steps) - 2, -1, -1):
            steps = program.steps[:place] + program.steps[place + 1 :]
            candidate = dataclasses.replace(program, steps=steps)
            if type(reason_of(candidate, logs)) is type(error):
                program, smaller = candidate, True
    return program


def reason_of(program: Program, logs: Logs) -> Exception | None:
    """Why a program fails, or None."""
    try:
        run(program, logs)
    except Exception as error:
        return error
    return None


def run_part(seeds: range, *, older: bool) -> Result:
    # Tables without a key and breaks are warned of, thousands of times.
    logging.getLogger("cdchub").setLevel(logging.CRITICAL)
    result = Result()
    with tempfile.TemporaryDirectory(prefix="cdchub-conformance-") as folder:
        logs = Logs(Path(folder))
        try:
            for seed in seeds:
                each = run_seed(seed, logs, older=older)
                result.tally.add(each.tally)
                result.failures += each.failures
        finally:
            logs.close()
    return result


def run_many(seeds: range, *, jobs: int | None = None, older: bool = False) -> Result:
    """Runs the programs of these seeds in several processes. `older`: with writers on an old SQLite."""
    began_s = time.monotonic()
    whole = Result()
    for part in _parts(seeds, jobs or os.cpu_count() or 1, older):
        whole.tally.add(part.tally)
        whole.failures += part.failures
    whole.took_s = time.monotonic() - began_s
    return whole


def _parts(seeds: range, jobs: int, older: bool) -> Iterator[Result]:
    parts = [seeds[place : place + _PART] for place in range(0, len(seeds), _PART)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(functools.partial(run_part, older=older), parts)
