"""The soak, small, and that its judgement can fail."""

import subprocess
import sys
from pathlib import Path

from loadtest.rows import Rows, apply, lsn_problems, row_problems

_SOAK = Path(__file__).parent.parent / "loadtest" / "soak.py"


def test_kills_in_the_midst_of_writing_lose_and_repeat_nothing() -> None:
    done = subprocess.run(
        [sys.executable, _SOAK, "--changes", "3000", "--kills", "3", "--seed", "7"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_soak_notices_lsns_that_are_missing_foreign_or_out_of_order() -> None:
    assert lsn_problems([1, 2, 4], [1, 2, 4]) == []
    assert lsn_problems([1, 4], [1, 2, 4]) == ["LSN 2 never came"]
    assert lsn_problems([1, 2, 3], [1, 2]) == ["LSN 3 is not in the log"]
    assert lsn_problems([1, 2, 2], [1, 2]) == ["LSN 2 came after 2"]
    assert lsn_problems([2, 1], [1, 2]) == ["LSN 1 came after 2"]


def _held(new: object) -> Rows:
    rows: Rows = {}
    change = {"type": "INSERT", "table": "t", "key": {"id": 1}, "newValue": {"id": 1, "v": new}}
    apply(rows, change)
    return rows


def test_the_soak_notices_rows_that_are_missing_left_over_or_of_another_value() -> None:
    assert row_problems(_held("x"), _held("x")) == []
    assert row_problems({"t": {}}, _held("x")) == ["t: row {'id': 1} is missing"]
    assert row_problems(_held("x"), {"t": {}}) == ["t: row {'id': 1} should be gone"]
    for held, expected in [(1, 1.0), (1, "1"), (0.0, -0.0), ("eA==", {"$blob": "eA=="}), (None, "")]:
        (problem,) = row_problems(_held(held), _held(expected))
        assert problem.startswith("t: row {'id': 1} is ")


def test_a_delete_takes_the_row_away() -> None:
    rows = _held("x")
    apply(rows, {"type": "DELETE", "table": "t", "key": {"id": 1}, "newValue": None})
    assert rows == {"t": {}}
