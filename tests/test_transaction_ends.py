"""A position without a change says that every transaction before it is whole (INTERFACE §2, `commit`):
it is told at once where a reader can't see a transaction's last change, and never in the middle of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import HubProcess, Stream, make_database, run_sql
from tests.ws_client import opened

Serving = Callable[..., HubProcess]
# Only ends tell a position, never the time.
SELDOM = ("--heartbeat", "3600")
SEEN = "CREATE TABLE seen(id INTEGER PRIMARY KEY, room TEXT)"
HIDDEN = "CREATE TABLE hidden(id INTEGER PRIMARY KEY)"
# A transaction is delivered in parts of so many changes.
PARTS = ("--set", "capture.batch_rows=50")
ROWS = 20_000
FILL = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
    " INSERT INTO seen SELECT i, 'r' FROM n"
)


@pytest.fixture(scope="module")
def shared(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(tmp_path_factory.mktemp("ends") / "app.db", SEEN, HIDDEN)
    with serving(database, *SELDOM) as hub:
        yield hub


def lsn(position: str) -> int:
    return int(position.rpartition(":")[2])


def caught_up(stream: Stream) -> int:
    """The LSN at which a stream says that its backlog is done."""
    return lsn(json.loads(stream.until("caught-up")[-1].data)["position"])


@pytest.mark.parametrize("query", ["table=seen", "table=seen&room=r", "table=seen&filter=id=gt.0"])
def test_an_end_that_a_stream_does_not_see_is_told(shared: HubProcess, query: str) -> None:
    with shared.stream(query) as stream:
        begin = caught_up(stream)
        run_sql(
            shared.database,
            "BEGIN",
            "INSERT OR REPLACE INTO seen VALUES (1, 'r'), (2, 'r')",
            "INSERT OR REPLACE INTO seen VALUES (-1, 'other')",
            "INSERT INTO hidden VALUES (NULL)",
            "COMMIT",
        )
        changes = stream.changes(2)
        assert not any(change["commit"] for change in changes)
        told = stream.until("transaction-end")[-1]
        assert lsn(json.loads(told.data)["position"]) == lsn(told.last_id) >= begin + 4
        run_sql(shared.database, "DELETE FROM seen")


def test_an_end_that_a_subscription_does_not_see_is_told(shared: HubProcess) -> None:
    with opened(shared) as peer:
        peer.ask("subscribe", sub="s", table="seen")
        peer.until("caught-up")
        run_sql(
            shared.database,
            "BEGIN",
            "INSERT INTO seen VALUES (1, 'r')",
            "INSERT INTO hidden VALUES (NULL)",
            "COMMIT",
        )
        (change,) = peer.changes(1, "s")
        told = peer.until("heartbeat")
        assert lsn(told["position"]) == change["lsn"] + 1
        # Where the last change is seen, nothing more is said.
        run_sql(shared.database, "DELETE FROM seen")
        (change,) = peer.changes(1, "s")
        assert change["commit"]
        run_sql(shared.database, "INSERT INTO hidden VALUES (NULL)", "INSERT INTO seen VALUES (2, 'r')")
        assert peer.next()["type"] == "change"
        run_sql(shared.database, "DELETE FROM seen")


def test_whoever_comes_from_before_the_end_is_told_it_too(shared: HubProcess) -> None:
    begin = shared.head()
    run_sql(
        shared.database,
        "BEGIN",
        "INSERT INTO seen VALUES (1, 'r'), (2, 'r')",
        "INSERT INTO hidden VALUES (NULL)",
        "COMMIT",
    )
    shared.wait_for_lsn(lsn(begin) + 3)
    for since in (begin, f"{begin.rpartition(':')[0]}:{lsn(begin) + 1}"):
        with shared.stream(f"table=seen&since={since}") as stream:
            assert caught_up(stream) == lsn(begin) + 3
    run_sql(shared.database, "DELETE FROM seen")


def test_no_position_is_told_in_the_middle_of_a_large_transaction(
    serving: Serving, tmp_path: Path
) -> None:
    """To nobody: who is live, who comes in the middle, and who resumes in the middle."""
    database = make_database(tmp_path / "app.db", SEEN, HIDDEN)
    with serving(database, *PARTS, "--heartbeat", "0.1") as hub, hub.stream("table=seen") as live:
        begin = caught_up(live)
        end = begin + ROWS + 1
        run_sql(database, "BEGIN", FILL.format(rows=ROWS), "INSERT INTO hidden VALUES (NULL)", "COMMIT")
        streams = [live]
        middle = live.changes(100)[-1]["lsn"]
        streams.append(hub.stream(f"table=seen&since={middle}"))
        streams.append(hub.stream("table=seen"))
        for stream in streams:
            with stream:
                stream.read_until(lambda s: lsn(s.last_id or "0") >= end)
                asked, *told = re.findall(r"id: ?\S+:(\d+)\n(?!data)", stream.text)
                assert told, f"nothing was told of what began at {asked}"
                assert not [at for at in map(int, told) if begin < at < end]
