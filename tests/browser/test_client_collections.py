"""Collections of the browser library: filled, live, reset, resumed, narrowed, refused."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.browser.client_page import (
    begin,
    collect,
    insert,
    library,
    rows,
    status,
    stored,
    titles,
    told,
    wait_for_titles,
)
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess, make_database, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

# Where a page reaches a hub.
Reach = Callable[[HubProcess], str]


@pytest.fixture(params=["websocket", "sse"])
def reach(request: pytest.FixtureRequest) -> Iterator[Reach]:
    """On each of the transports: a proxy that cuts WebSockets leaves the event stream."""
    with ExitStack() as relays:

        def way(hub: HubProcess) -> str:
            if request.param == "websocket":
                return hub.url
            return relays.enter_context(Relay(hub.port, websockets=False)).url

        yield way


def test_filled_then_live(hub: HubProcess, windows: Windows, reach: Reach) -> None:
    insert(hub.database, "a", "b")
    hub.wait_for_lsn(2)
    page = library(windows, reach(hub))
    collect(page)
    assert titles(page) == ["a", "b"]
    assert told(page, "statuses")[-1] == "live"
    assert told(page, "changes") == []

    insert(hub.database, "c")
    wait_for_titles(page, ["a", "b", "c"])
    run_sql(
        hub.database, "UPDATE todos SET title = 'B' WHERE id = 'b'", "DELETE FROM todos WHERE id = 'a'"
    )
    wait_for_titles(page, ["B", "c"])
    assert titles(page) == ["B", "c"], "in the order in which they were first seen"
    changes = told(page, "changes")
    assert [(change["type"], change["lsn"]) for change in changes] == [
        ("INSERT", 3),
        ("UPDATE", 4),
        ("DELETE", 5),
    ]
    assert page.evaluate("todos.store.position") == hub.head()


def test_a_change_of_the_key_moves_the_row(hub: HubProcess, windows: Windows, reach: Reach) -> None:
    insert(hub.database, "a", "b")
    page = library(windows, reach(hub))
    collect(page)
    wait_for_titles(page, ["a", "b"])
    run_sql(hub.database, "UPDATE todos SET id = 'z', title = 'moved' WHERE id = 'a'")
    wait_for_titles(page, ["b", "moved"])
    assert {row["id"] for row in rows(page)} == {"b", "z"}
    # A transaction is one burst: no page saw one half of it.
    assert [len(each) for each in told(page, "emissions")][-1] == 2
    assert all(len(each) == 2 for each in told(page, "emissions")[-2:])


def test_rows_that_did_not_change_stay_the_same_objects(
    hub: HubProcess, windows: Windows, reach: Reach
) -> None:
    insert(hub.database, "a", "b")
    page = library(windows, reach(hub))
    collect(page)
    wait_for_titles(page, ["a", "b"])
    page.evaluate("window.before = [...todos.store.data]")
    run_sql(hub.database, "UPDATE todos SET title = 'B' WHERE id = 'b'")
    wait_for_titles(page, ["a", "B"])
    assert page.evaluate("todos.store.data.map((row, i) => row === before[i])") == [True, False]


@pytest.mark.parametrize("key", [None, "title", ["id", "title"]], ids=["primary", "other", "two"])
def test_rows_are_found_by_other_keys(
    hub: HubProcess, windows: Windows, reach: Reach, key: str | list[str] | None
) -> None:
    insert(hub.database, "a", "b")
    page = library(windows, reach(hub))
    if key is None:
        page.evaluate("window.todos = { store: lib.collection({ table: 'todos' }) }")
    else:
        begin(page, key=key)
    wait_for_titles(page, ["a", "b"])
    run_sql(
        hub.database, "UPDATE todos SET title = 'A' WHERE id = 'a'", "DELETE FROM todos WHERE id = 'b'"
    )
    wait_for_titles(page, ["A"])


def test_a_key_of_a_function(hub: HubProcess, windows: Windows, reach: Reach) -> None:
    insert(hub.database, "a", "b")
    page = library(windows, reach(hub))
    page.evaluate(
        """window.todos = { store: lib.collection({
          table: 'todos', key: (row, change) => `${change.table} ${row.id}` }) }"""
    )
    wait_for_titles(page, ["a", "b"])
    run_sql(hub.database, "UPDATE todos SET title = 'A' WHERE id = 'a'")
    wait_for_titles(page, ["A", "b"])


@pytest.mark.parametrize(
    "where",
    ["completed=eq.0", ["completed=eq.0", "title=neq.x"], {"completed": 0}, {"completed": False}],
)
def test_where_narrows(hub: HubProcess, windows: Windows, reach: Reach, where: object) -> None:
    insert(hub.database, "a", "b")
    run_sql(hub.database, "UPDATE todos SET completed = 1 WHERE id = 'b'")
    page = library(windows, reach(hub))
    collect(page, where=where)
    wait_for_titles(page, ["a"])
    run_sql(hub.database, "UPDATE todos SET completed = 1 - completed")
    wait_for_titles(page, ["b"])


def test_columns_narrow_and_the_key_is_there(hub: HubProcess, windows: Windows, reach: Reach) -> None:
    insert(hub.database, "a")
    page = library(windows, reach(hub))
    collect(page, columns=["title"])
    wait_for_titles(page, ["a"])
    assert rows(page) == [{"id": "a", "title": "a"}]


def test_several_collections_of_different_tables(
    tmp_path: Path, windows: Windows, reach: Reach
) -> None:
    tables = ("todos", "Notes", "a,b")
    database = make_database(
        tmp_path / "app.db",
        *(f'CREATE TABLE "{t}"(id TEXT PRIMARY KEY, title)' for t in tables),
    )
    with HubProcess(database) as hub:
        page = library(windows, reach(hub))
        for table in tables:
            collect(page, table, table=table)
        collect(page, "some", table="todos", where={"title": "x"})
        collect(page, "others", table="todos", where={"title": "y"}, columns=["id", "title"])
        for table in tables:
            run_sql(database, f"""INSERT INTO "{table}" VALUES (1, 'x'), (2, 'y')""")
        for table in tables:
            wait_for_titles(page, ["x", "y"], table)
        wait_for_titles(page, ["x"], "some")
        wait_for_titles(page, ["y"], "others")


def test_an_unknown_table_is_told_and_others_live_on(
    hub: HubProcess, windows: Windows, reach: Reach
) -> None:
    windows.network_errors_expected = True
    page = library(windows, reach(hub))
    collect(page)
    begin(page, "nothing", table="nothing_of_the_kind")
    page.wait_for_function("() => nothing.store.status === 'closed'")
    assert "nothing_of_the_kind" in page.evaluate("nothing.store.error")
    begin(page, "filtered", where="color=eq.red")
    page.wait_for_function("() => filtered.store.status === 'closed'")
    assert "color" in page.evaluate("filtered.store.error")
    insert(hub.database, "a")
    wait_for_titles(page, ["a"])
    assert status(page) == "live"


def test_a_closed_collection_is_left_alone(hub: HubProcess, windows: Windows, reach: Reach) -> None:
    page = library(windows, reach(hub))
    collect(page)
    collect(page, "other")
    page.evaluate("other.store.close()")
    assert status(page, "other") == "closed"
    insert(hub.database, "a")
    wait_for_titles(page, ["a"])
    assert titles(page, "other") == []
    page.evaluate("todos.store.close()")
    wait_for(lambda: hub.subscribers() == 0, "the subscription to end")


@pytest.mark.parametrize("end", [HubProcess.kill, HubProcess.stop], ids=["kill", "stop"])
def test_a_restart_of_the_hub_loses_and_repeats_nothing(
    hub: HubProcess, windows: Windows, reach: Reach, end: object
) -> None:
    windows.network_errors_expected = True
    page = library(windows, reach(hub))
    collect(page)
    ids = [f"{n:03d}" for n in range(60)]
    insert(hub.database, *ids[:20])
    wait_for_titles(page, ids[:20])
    end(hub)  # type: ignore[operator]
    page.wait_for_function("() => todos.store.status === 'reconnecting'")
    insert(hub.database, *ids[20:40])
    hub.start()
    insert(hub.database, *ids[40:])
    wait_for_titles(page, ids)
    page.wait_for_function("() => todos.store.connected")
    assert [change["lsn"] for change in told(page, "changes")] == list(range(1, 61))


def test_an_older_copy_of_the_database_replaces_the_rows(
    hub: HubProcess, tmp_path: Path, windows: Windows, reach: Reach
) -> None:
    windows.network_errors_expected = True
    insert(hub.database, "a", "b")
    hub.wait_for_lsn(2)
    copy = tmp_path / "copy.db"
    with sqlite3.connect(hub.database) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    page = library(windows, reach(hub))
    collect(page)
    insert(hub.database, "c", "d")
    run_sql(hub.database, "DELETE FROM todos WHERE id = 'a'")
    wait_for_titles(page, ["b", "c", "d"])
    hub.kill()
    for suffix in ("-wal", "-shm"):
        hub.database.with_name(hub.database.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, hub.database)
    hub.start()
    insert(hub.database, "e")
    wait_for_titles(page, ["a", "b", "e"])
    assert stored(hub.database) == ["a", "b", "e"]
    # At no time was it empty, or half of one and half of the other.
    seen = [sorted(row["title"] for row in each) for each in told(page, "emissions")]
    assert [] not in seen[1:]
    assert ["a", "b", "c", "d", "e"] not in seen


def test_a_new_column_takes_the_rows_anew(hub: HubProcess, windows: Windows, reach: Reach) -> None:
    insert(hub.database, "a")
    page = library(windows, reach(hub))
    collect(page)
    wait_for_titles(page, ["a"])
    run_sql(
        hub.database,
        "ALTER TABLE todos ADD COLUMN color TEXT DEFAULT 'red'",
        "UPDATE todos SET id = id",
    )
    page.wait_for_function("() => todos.store.data[0]?.color === 'red'")
    insert(hub.database, "b")
    wait_for_titles(page, ["a", "b"])


def test_initial_rows_show_at_once_and_are_replaced(
    hub: HubProcess, windows: Windows, reach: Reach
) -> None:
    insert(hub.database, "a")
    hub.wait_for_lsn(1)
    page = library(windows, reach(hub))
    begin(page, initialData=[{"id": "a", "title": "a", "completed": 0}, {"id": "x", "title": "gone"}])
    first = told(page, "emissions")[0]
    assert [row["title"] for row in first] == ["a", "gone"]
    wait_for_titles(page, ["a"])
    assert page.evaluate("todos.store.loaded")


def test_initial_rows_with_a_position_need_no_snapshot(
    hub: HubProcess, windows: Windows, reach: Reach
) -> None:
    insert(hub.database, "a")
    hub.wait_for_lsn(1)
    known = hub.get("/cdc/snapshot?table=todos").json()
    insert(hub.database, "b")
    hub.wait_for_lsn(2)
    page = library(windows, reach(hub))
    collect(page, initialData=known["rows"], since=known["position"])
    wait_for_titles(page, ["a", "b"])
    assert [change["lsn"] for change in told(page, "changes")] == [2]
    assert hub.status()["log"]["snapshotsTaken"] == 1
    # A second one with the same beginning is right too, though the first has moved on.
    insert(hub.database, "c")
    wait_for_titles(page, ["a", "b", "c"])
    collect(page, "second", initialData=known["rows"], since=known["position"])
    wait_for_titles(page, ["a", "b", "c"], "second")


def test_initial_rows_of_an_unknown_epoch_are_replaced(
    hub: HubProcess, windows: Windows, reach: Reach
) -> None:
    insert(hub.database, "a")
    page = library(windows, reach(hub))
    begin(page, initialData=[{"id": "x", "title": "gone"}], since="otherepoch:7")
    wait_for_titles(page, ["a"])
