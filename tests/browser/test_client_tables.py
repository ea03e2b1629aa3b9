"""Several tables at once in the browser library: one snapshot, and then whole transactions only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.client_page import (
    library,
    status,
    tab,
    told,
    wait_for_streams,
    wait_live,
)
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess, make_database, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

_IDS = list(range(10))
_BOTH: dict[str, Any] = {"orders": {}, "refunds": {}}

_COLLECT = """([name, tables]) => {
  const store = lib.collections(tables);
  const told = { store, emissions: [], changes: [] };
  window[name] = told;
  store.subscribe((data) => told.emissions.push(structuredClone(data)));
  store.onChange((change) => told.changes.push(change));
}"""

# Moves rows between two tables and back, a transaction for each, until its input ends. A line of the
# input is a statement: from elsewhere it would hardly find the database unlocked.
_MOVER = """
import itertools, select, sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
print("moving", flush=True)
for n in itertools.count():
    if select.select([sys.stdin], [], [], 0)[0]:
        statement = sys.stdin.readline()
        if not statement:
            break
        db.execute(statement)
    id = n % 10
    there, here = ("orders", "refunds") if n // 10 % 2 else ("refunds", "orders")
    db.execute("BEGIN IMMEDIATE")
    db.execute(f"INSERT INTO {there}(id, total) SELECT id, total FROM {here} WHERE id = ?", [id])
    db.execute(f"DELETE FROM {here} WHERE id = ?", [id])
    db.execute("COMMIT")
    time.sleep(0.005)  # a busy writer, whom a browser on a busy machine can follow
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(
        tmp_path / "app.db",
        "CREATE TABLE orders(id INTEGER PRIMARY KEY, total INTEGER)",
        "CREATE TABLE refunds(id INTEGER PRIMARY KEY, total INTEGER)",
        "CREATE TABLE audit(n INTEGER PRIMARY KEY)",
        f"INSERT INTO orders SELECT value, 10 * value FROM json_each('{_IDS}')",
    )


# Where WebSockets don't get through, it is an event stream.
both_transports = pytest.mark.parametrize(
    "websockets", [True, False], ids=["websocket", "sse"], indirect=True
)


@pytest.fixture
def websockets(request: pytest.FixtureRequest) -> bool:
    """Whether they get through."""
    return bool(getattr(request, "param", True))


@pytest.fixture
def way(hub: HubProcess, websockets: bool) -> Iterator[Relay]:
    with Relay(hub.port, websockets=websockets) as relay:
        yield relay


@contextmanager
def moving(database: Path) -> Iterator[Callable[[str], None]]:
    """Until the block ends. Gives what runs a statement in between."""
    program = [sys.executable, "-c", _MOVER, str(database)]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True) as mover:
        assert mover.stdin is not None
        assert mover.stdout is not None
        assert mover.stdout.readline() == "moving\n"
        yield lambda statement: print(statement, file=mover.stdin, flush=True)
        mover.communicate()
        assert mover.returncode == 0


def collect(page: Page, name: str = "both", tables: dict[str, Any] = _BOTH) -> None:
    """`lib.collections(tables)`, noting what it tells; live when this returns."""
    page.evaluate(_COLLECT, [name, tables])
    wait_live(page, name)


def data(page: Page, name: str = "both") -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = page.evaluate("(name) => window[name].store.data", name)
    return found


def ids(page: Page, table: str) -> list[int]:
    return sorted(row["id"] for row in data(page)[table])


def wait_for_ids(page: Page, table: str, wanted: list[int]) -> None:
    wait_for(lambda: ids(page, table) == wanted, f"{table} to be {wanted}")


def wait_for_more(page: Page, count: int) -> None:
    """Until so many more states were shown."""
    page.wait_for_function(
        "(wanted) => both.emissions.length >= wanted",
        arg=page.evaluate("both.emissions.length") + count,
    )


def expect_whole(page: Page, everything: list[int] = _IDS) -> None:
    """Whatever was shown has each row in exactly one of the tables."""
    shown = told(page, "emissions", "both")
    assert shown[0] == {"orders": [], "refunds": []}, "before there was a snapshot"
    assert len(shown) > 1
    for each in shown[1:]:
        assert sorted(row["id"] for rows in each.values() for row in rows) == everything


@both_transports
def test_each_row_is_in_exactly_one_table_at_any_time(
    hub: HubProcess, windows: Windows, way: Relay
) -> None:
    windows.network_errors_expected = True
    page = library(windows, way.url)
    with moving(hub.database):
        collect(page)
        wait_for_more(page, 30)
        # Filled from what the first one has, in the middle of it all.
        second = tab(page.context, way.url)
        collect(second)
        way.cut()
        wait_for_more(page, 30)
        hub.kill()
        page.wait_for_function("() => both.store.status === 'reconnecting'")
        hub.start()
        wait_for_more(page, 30)
        wait_for_more(second, 1)
    for table in ("orders", "refunds"):
        stored = [id for (id,) in run_sql(hub.database, f"SELECT id FROM {table} ORDER BY id")]
        wait_for_ids(page, table, stored)
        wait_for_ids(second, table, stored)
    expect_whole(page)
    expect_whole(second)


def test_it_is_one_snapshot_and_one_subscription_for_all_tabs(
    hub: HubProcess, windows: Windows, way: Relay, websockets: bool
) -> None:
    first = library(windows, way.url)
    pages = [first, tab(first.context, way.url), tab(first.context, way.url)]
    for page in pages:
        collect(page)
    wait_for_streams(hub, {"ws" if websockets else "sse": 1})
    assert hub.status()["log"]["snapshotsTaken"] == 1
    run_sql(hub.database, "INSERT INTO refunds VALUES (70, 7)")
    for page in pages:
        wait_for_ids(page, "refunds", [70])
        assert page.evaluate("both.store.position") == hub.head()
    first.evaluate("both.store.close()")
    assert status(first, "both") == "closed"
    assert status(pages[1], "both") == "live"


def test_an_array_stays_the_same_while_its_table_does(
    hub: HubProcess, windows: Windows, way: Relay
) -> None:
    page = library(windows, way.url)
    collect(page)
    page.evaluate("window.before = both.store.data")
    run_sql(hub.database, "INSERT INTO refunds VALUES (70, 7)")
    wait_for_ids(page, "refunds", [70])
    same = "(table) => both.store.data[table] === before[table]"
    assert page.evaluate(same, "orders")
    assert not page.evaluate(same, "refunds")
    assert page.evaluate("both.store.data === both.store.data")


def test_each_table_is_narrowed_by_itself(hub: HubProcess, windows: Windows, way: Relay) -> None:
    page = library(windows, way.url)
    tables = {
        "orders": {"where": ["total=gte.80"], "columns": ["id"], "key": "id"},
        "refunds": {"where": {"id": 3}},
    }
    collect(page, tables=tables)
    assert data(page) == {"orders": [{"id": 8}, {"id": 9}], "refunds": []}
    run_sql(
        hub.database,
        "INSERT INTO refunds VALUES (2, 20)",
        "INSERT INTO refunds VALUES (3, 30)",
        "UPDATE orders SET total = 0 WHERE id = 9",
    )
    wait_for_ids(page, "orders", [8])
    assert data(page)["refunds"] == [{"id": 3, "total": 30}]


@both_transports
def test_a_restart_of_the_hub_loses_and_repeats_nothing(
    hub: HubProcess, windows: Windows, way: Relay
) -> None:
    windows.network_errors_expected = True
    page = library(windows, way.url)
    collect(page)
    first = int(hub.head().split(":")[1]) + 1

    def refund(*ids: int) -> None:
        run_sql(hub.database, *(f"INSERT INTO refunds VALUES ({id}, 1)" for id in ids))

    refund(1, 2)
    wait_for_ids(page, "refunds", [1, 2])
    hub.kill()
    page.wait_for_function("() => both.store.status === 'reconnecting'")
    refund(3)
    run_sql(hub.database, "UPDATE orders SET total = 5 WHERE id = 5")
    hub.start()
    refund(4)
    wait_for_ids(page, "refunds", [1, 2, 3, 4])
    wait_live(page, "both")
    assert [change["lsn"] for change in told(page, "changes", "both")] == list(range(first, first + 5))
    assert hub.status()["log"]["snapshotsTaken"] == 0, "since it was started again"


def test_a_transaction_that_is_cut_on_its_way_is_not_shown_until_it_is_whole(
    hub: HubProcess, windows: Windows, way: Relay
) -> None:
    windows.network_errors_expected = True
    run_sql(
        hub.database,
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 2999)"
        " INSERT OR REPLACE INTO orders SELECT i, 1 FROM n",
    )
    page = library(windows, way.url)
    collect(page)
    page.wait_for_function("() => both.store.data.orders.length === 3000")
    way.hold()
    way.cut_next_after(200_000)
    way.cut()
    page.wait_for_function("() => both.store.status === 'reconnecting'")
    head = int(hub.head().split(":")[1])
    run_sql(
        hub.database,
        "BEGIN",
        "INSERT INTO refunds SELECT * FROM orders",
        "DELETE FROM orders",
        "COMMIT",
    )
    # So that all of it is behind a resume, whose end is told.
    hub.wait_for_lsn(head + 6_000)
    way.release()
    page.wait_for_function("() => both.store.data.refunds.length === 3000")
    wait_live(page, "both")
    assert any(len(stream.answer) == 200_000 for stream in way.streams), "cut in the middle"
    # The rows that are stored at the start may come in a snapshot or behind it.
    shown = [(len(each["orders"]), len(each["refunds"])) for each in told(page, "emissions", "both")]
    assert shown[-1] == (0, 3_000)
    assert set(shown[1:-1]) <= {(10, 0), (3_000, 0)}


@both_transports
def test_a_line_that_stalls_in_a_transaction_shows_nothing_of_it(
    hub: HubProcess, windows: Windows, way: Relay
) -> None:
    page = library(windows, way.url)
    page.clock.install()
    collect(page)
    way.stall_before(b'"table":"refunds"')
    run_sql(
        hub.database,
        "BEGIN",
        "DELETE FROM orders WHERE id = 4",
        "INSERT INTO refunds VALUES (4, 40)",
        "INSERT INTO audit VALUES (1)",
        "COMMIT",
    )
    wait_for(lambda: way.is_stalled, "the line to stall")
    # What came before it is there by now, and no time that passes makes it whole.
    for _ in range(5):
        page.evaluate("fetch('/healthz').then((answer) => answer.text())")
        page.clock.run_for(1_000)
    expect_whole(page)
    assert ids(page, "refunds") == []
    way.release()
    wait_for_ids(page, "refunds", [4])
    expect_whole(page)


@both_transports
def test_a_transaction_that_ends_in_another_table_is_shown(
    hub: HubProcess, windows: Windows, way: Relay
) -> None:
    page = library(windows, way.url)
    collect(page)
    run_sql(
        hub.database,
        "BEGIN",
        "INSERT INTO refunds SELECT * FROM orders WHERE id = 4",
        "DELETE FROM orders WHERE id = 4",
        "INSERT INTO audit VALUES (1)",
        "COMMIT",
    )
    wait_for_ids(page, "refunds", [4])
    expect_whole(page)


def test_a_table_whose_columns_change_is_filled_anew_and_only_that_one(
    database: Path, windows: Windows, websockets: bool
) -> None:
    # Without a base snapshot a new column is a break, and no difference that is told row by row.
    with (
        HubProcess(database, "--no-base") as hub,
        Relay(hub.port, websockets=websockets) as relay,
    ):
        run_sql(database, "INSERT INTO audit VALUES (1), (2)")
        page = library(windows, relay.url)
        collect(page, tables={**_BOTH, "audit": {}})
        page.evaluate("window.before = both.store.data")
        with moving(database) as run:
            wait_for_more(page, 10)
            run("ALTER TABLE orders ADD COLUMN color TEXT DEFAULT 'red'")
            page.wait_for_function("() => both.store.data.orders[0]?.color === 'red'")
            wait_for_more(page, 10)
        assert hub.outcomes("reset_schema") == 1
        assert page.evaluate("both.store.data.audit === before.audit")
        wire = "".join(stream.text for stream in relay.streams)
        assert '"tables":["orders"]' in wire
        assert wire.count('"type":"SNAPSHOT","table":"audit"') == 2
        for each in told(page, "emissions", "both")[1:]:
            shown = [row["id"] for table in ("orders", "refunds") for row in each[table]]
            assert sorted(shown) == _IDS
            assert len(each["audit"]) == 2


def test_without_one_of_the_tables_there_is_none(hub: HubProcess, windows: Windows, way: Relay) -> None:
    windows.network_errors_expected = True
    page = library(windows, way.url)
    page.evaluate(_COLLECT, ["both", {"orders": {}, "nothing_of_the_kind": {}}])
    page.wait_for_function("() => both.store.status === 'closed'")
    assert "nothing_of_the_kind" in page.evaluate("both.store.error")
    assert data(page) == {"orders": [], "nothing_of_the_kind": []}
    refusal = "() => { try { lib.collections({}); } catch (error) { return error.message; } }"
    assert "no table" in page.evaluate(refusal)
