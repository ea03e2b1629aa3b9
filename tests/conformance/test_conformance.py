"""The promise of INTERFACE §2, end to end, under random programs; and that the suite can fail.

`CDCHUB_PROGRAMS=100000` in the environment runs more of them, `CDCHUB_PROGRAMS_FROM` other ones;
`make conformance` is the same outside of pytest.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdchub.capture.table import Grade
from loadtest.rows import Row, Table
from tests.capture.shapes import CASES
from tests.conformance.hubs import Logs
from tests.conformance.many import reason_of, run_many, shrunk
from tests.conformance.programs import (
    CHECK,
    LAST_INT,
    LOOK,
    READ,
    VALUES_WILD,
    Program,
    random_program,
    replaces,
)
from tests.conformance.rivals import disagreements, typed
from tests.conformance.world import run

PROGRAMS = int(os.environ.get("CDCHUB_PROGRAMS", "2000"))
FIRST = int(os.environ.get("CDCHUB_PROGRAMS_FROM", "0"))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    logs = Logs(tmp_path_factory.mktemp("logs"))
    yield logs
    logs.close()


@pytest.mark.timeout(120 + PROGRAMS)
def test_random_programs_replay_to_the_tables_that_they_made() -> None:
    result = run_many(range(FIRST, FIRST + PROGRAMS))
    print(result.summary())
    assert not result.failures, result.report()
    assert result.tally.programs == PROGRAMS
    # So many that the suite would notice if a part of it were no longer run.
    tally = result.tally
    assert tally.changes > 5 * PROGRAMS
    assert tally.hooked > PROGRAMS / 20
    assert tally.migrating > PROGRAMS / 10
    assert tally.on_file > PROGRAMS / 100
    # The usual way of capture does not keep the promise: that is why ours is another.
    assert tally.missed > 0


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_programs_that_hypothesis_makes_replay_too(logs: Logs, rng: random.Random, seed: int) -> None:
    program = random_program(rng, seed=seed)
    failed = reason_of(program, logs)
    assert failed is None, f"{program}\n=> {failed!r}"


ENCODINGS = ["UTF-8", "UTF-16le", "UTF-16be"]
BIG = ["zeroblob(300000)", "replace(hex(zeroblob(50000)), '00', 'aö')"]


@pytest.mark.parametrize(("encoding", "on_file"), [*((e, False) for e in ENCODINGS), ("UTF-8", True)])
@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
def test_every_value_arrives_as_it_is(library: str, encoding: str, on_file: bool, logs: Logs) -> None:
    """As a key, as an old value and as a new one, alone and in one transaction with all others."""
    steps: list[str] = []
    for number, value in enumerate([*VALUES_WILD, LAST_INT, *BIG]):
        first = f"INSERT OR REPLACE INTO t(id, u, v) VALUES ({value}, {number}, {value})"
        steps += [first, LOOK, f"UPDATE t SET v = u, u = v WHERE id IS {value}", READ]
    steps += ["BEGIN", "UPDATE t SET u = NULL", "UPDATE t SET v = id", "COMMIT", CHECK, "DELETE FROM t"]
    for case in ("untyped_key",) if on_file else ("untyped_key", "without_rowid_unique"):
        program = program_of(case, *steps, library=library)
        run(dataclasses.replace(program, encoding=encoding, on_file=on_file), logs)


@pytest.mark.parametrize("end", ["", " WITHOUT ROWID"])
@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
def test_a_key_may_change_its_type_alone(library: str, end: str, logs: Logs) -> None:
    """Where the check of a foreign key converts OLD, its key looks like the new one already."""
    changes = [
        ("1.0", "1"),
        ("1", "'1'"),
        ("'1'", "1"),
        ("1", "'01'"),
        ("'01'", "1.0"),
        ("1.0", "NULL"),
    ]
    steps = ["INSERT INTO t(id, u, v) VALUES (1.0, 'a', 1), (7, 'b', 2)"]
    for old, new in changes:
        steps += [f"UPDATE OR IGNORE t SET id = {new} WHERE id IS {old}", CHECK]
    program = program_of("converted_key_without_rowid", *steps, library=library)
    first, *rest = program.case.create
    case = dataclasses.replace(
        program.case, create=(first.replace(" WITHOUT ROWID", end), *rest), rooms=False
    )
    run(dataclasses.replace(program, case=case, foreign_keys=True), logs)


# That it can fail.


def program_of(
    case_name: str, *steps: str, grade: Grade = Grade.FULL, library: str = "apsw"
) -> Program:
    return Program(
        case=next(case for case in CASES if case.name == case_name),
        library=library,
        grade=grade,
        recursive_triggers=False,
        foreign_keys=False,
        room=None,
        follows="a",
        on_file=False,
        migrates=False,
        steps=(*steps, CHECK),
    )


REPLACING = (
    "INSERT INTO t(id, u, v) VALUES (1, 'a', 1), (2, 'b', 2)",
    "UPDATE t SET v = 3",
    "INSERT OR REPLACE INTO t(id, u, v) VALUES (3, 'a', 3)",
)


@pytest.mark.parametrize("library", ["apsw", "sqlite3"])
def test_a_row_that_replace_removes_is_missed_by_plain_triggers_alone(library: str, logs: Logs) -> None:
    tally = run(program_of("integer_key", *REPLACING, library=library), logs)
    assert tally.missed == 1
    tally = run(program_of("integer_key", *REPLACING[:2], library=library), logs)
    assert tally.missed == 0


def test_capture_that_misses_evictions_is_found_and_told_in_the_fewest_steps(logs: Logs) -> None:
    """The plain grade is not for REPLACE: what a whole class of defects would look like."""
    program = program_of("integer_key", *REPLACING, grade=Grade.PLAIN)
    failed = reason_of(program, logs)
    assert isinstance(failed, AssertionError)
    assert "row {'id': 1} should be gone" in str(failed)
    smallest = shrunk(program, failed, logs)
    assert smallest.steps == (REPLACING[0], REPLACING[2], CHECK)
    assert "INSERT OR REPLACE INTO t(id, u, v) VALUES (3, 'a', 3);" in str(smallest)


def test_random_programs_find_capture_that_misses_evictions(logs: Logs) -> None:
    programs = (random_program(random.Random(seed), seed=seed) for seed in range(300))
    blinded = (
        dataclasses.replace(program, grade=Grade.PLAIN)
        for program in programs
        if program.grade is Grade.FULL and not program.migrates and not replaces(program.case)
    )
    assert any(reason_of(program, logs) is not None for program in blinded)


def test_what_the_hook_saw_and_the_log_did_not_is_a_disagreement() -> None:
    def row(value: object) -> Row:
        return {"id": typed(1), "v": typed(value)}

    one, two = (("id", typed(1)),), (("id", typed(2)),)
    start: Table = {one: row("old")}
    assert disagreements(start, [(1, {one: row("new")})], [(1, one, row("new"))]) == []
    # What is as it was, the other need not mention.
    assert disagreements(start, [(1, {one: row("old"), two: None})], []) == []
    assert disagreements(start, [(0, {})], []) == []
    for value in ("other", 1, None):
        (found,) = disagreements(start, [(1, {one: row("new")})], [(1, one, row(value))])
        assert found.startswith("up to LSN 1, {'id': ('integer', 1)}: hook ")
    assert len(disagreements(start, [(1, {one: None})], [])) == 1
    assert len(disagreements(start, [(1, {})], [(1, one, None)])) == 1
    # In another commit is another thing.
    assert len(disagreements(start, [(1, {one: None}), (2, {})], [(2, one, None)])) == 1
    assert len(disagreements(start, [(1, {})], [(2, one, None)])) == 1


def test_a_program_prints_as_a_script(tmp_path: Path) -> None:
    text = str(program_of("integer_key", "BEGIN", "DELETE FROM t"))
    assert text.splitlines()[1] == "PRAGMA encoding = 'UTF-8';"
    assert text.splitlines()[2] == "CREATE TABLE t(id INTEGER PRIMARY KEY, u TEXT UNIQUE, v);"
    assert text.splitlines()[-3:] == ["BEGIN;", "DELETE FROM t;", CHECK]
