"""Large rows: what the hub holds at a time is bounded, and one that is too large stops no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdchub.capture.scan import BATCH_BYTES_MAX, BATCH_ROWS, take
from tests.harness import HubProcess, make_database, run_sql, wait_for

Serving = Callable[..., HubProcess]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(
        tmp_path / "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        "CREATE TABLE u(id INTEGER PRIMARY KEY)",
    )


def peak_bytes(hub: HubProcess) -> int:
    """The most memory that a hub has ever had."""
    status = Path(f"/proc/{hub.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_rows_are_taken_up_to_a_number_or_a_size() -> None:
    assert take(iter([]), 5) == []
    assert take(iter([(n,) for n in range(9)]), 5) == [(n,) for n in range(5)]
    small = [(n, "x") for n in range(2 * BATCH_ROWS)]
    assert take(iter(small), BATCH_ROWS) == small[:BATCH_ROWS]
    large = [(n, bytes(2**20)) for n in range(40)]
    assert take(iter(large), BATCH_ROWS) == large[: BATCH_BYTES_MAX // 2**20]
    # Also where small ones came first.
    rows = iter([*small[:300], *large])
    found = take(rows, BATCH_ROWS)
    assert len(found) <= 300 + 32
    assert next(rows)[1] == bytes(2**20)
    assert take(iter([(1, bytes(2 * BATCH_BYTES_MAX)), (2,)]), 5) == [(1, bytes(2 * BATCH_BYTES_MAX))]


@pytest.mark.parametrize("value", ["zeroblob(1000000)", "CAST(x'ff' || zeroblob(1000000) AS TEXT)"])
def test_a_transaction_of_large_rows_is_read_in_parts(database: Path, value: str) -> None:
    with HubProcess(database) as hub:
        before = peak_bytes(hub)
        run_sql(
            database,
            "BEGIN",
            f"INSERT INTO t(v) SELECT {value} FROM (SELECT 1 UNION SELECT 2), pragma_function_list"
            " LIMIT 120",
            "UPDATE t SET id = id + 1000",
            "COMMIT",
        )
        hub.wait_for_lsn(360)
        # 360 rows of 1.3 MB as JSON.
        assert peak_bytes(hub) - before < 300 * 2**20
        assert hub.stop() == 0


def test_a_change_that_is_too_large_is_a_break_of_its_table_alone(
    database: Path, serving: Serving
) -> None:
    with (
        serving(database, "--set", "capture.change_bytes_max=100000") as hub,
        hub.stream("table=t,u&snapshot=1") as stream,
    ):
        stream.until("caught-up")
        run_sql(
            database,
            "INSERT INTO t VALUES (1, 'small')",
            "INSERT INTO t VALUES (2, zeroblob(90000))",
            "INSERT INTO u VALUES (7)",
        )
        assert stream.changes(1)[0]["key"] == {"id": 1}
        reset = json.loads(stream.until("reset")[-1].data)
        assert (reset["reason"], reset["tables"]) == ("schema", ["t"])
        rows = [stream.changes(1)[0] for _ in range(3)]
        assert [
            (row["type"], row["table"], row["key"]["id"]) for row in rows if row["table"] == "t"
        ] == [
            ("SNAPSHOT", "t", 1),
            ("SNAPSHOT", "t", 2),
        ]
        assert [row["key"]["id"] for row in rows if row["table"] == "u"] == [7]
        run_sql(database, "INSERT INTO t VALUES (3, 'small again')")
        assert stream.changes(1)[0]["key"] == {"id": 3}
        assert hub.status()["capture"]["changesTooLarge"] == 1
        wait_for(lambda: "LSN 2, has 120" in hub.log, "the warning")
