"""The browser library and what pages do with it: odd values, odd keys, subscribers that write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.browser.client_page import begin, collect, insert, library, rows, wait_for_titles, wait_live
from tests.browser.conftest import Windows
from tests.browser.test_client_faults import node
from tests.harness import HubProcess, make_database, run_sql

_NOTE_PROBLEMS = """() => {
  window.problems = [];
  addEventListener("error", (event) => {
    problems.push(event.message);
    event.preventDefault();
  });
}"""


def note_problems(page: Page) -> None:
    page.evaluate(_NOTE_PROBLEMS)


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE numbers(id INTEGER PRIMARY KEY, n INTEGER, title TEXT)",
        "INSERT INTO numbers VALUES (1, 1, 'a')",
    )
    with HubProcess(database) as hub:
        yield hub


@pytest.mark.needs("chromium")
def test_a_bigint_in_an_optimistic_patch(numbers: HubProcess, windows: Windows) -> None:
    page = library(windows, numbers.url)
    collect(page, table="numbers")
    page.evaluate("() => { todos.store.update(1, { n: 2n ** 60n }, () => new Promise(() => {})); }")
    run_sql(
        numbers.database,
        f"UPDATE numbers SET n = {2**60}, title = 'b'",
        "INSERT INTO numbers VALUES (2, 1, 'c')",
    )
    wait_for_titles(page, ["b", "c"])
    assert rows(page)[0]["n"] == {"$int": str(2**60)}


@pytest.mark.needs("chromium")
def test_a_key_function_that_throws_loses_one_row(hub: HubProcess, windows: Windows) -> None:
    page = library(windows, hub.url)
    note_problems(page)
    page.evaluate(
        """() => {
          const key = (row) => row.title.toLowerCase();
          window.todos = { store: lib.collection({ table: "todos", key }) };
        }"""
    )
    wait_live(page)
    run_sql(
        hub.database,
        "INSERT INTO todos(id, title) VALUES ('n', NULL), ('a', 'a')",
    )
    insert(hub.database, "c")
    wait_for_titles(page, ["a", "c"])
    assert page.evaluate("[problems.length, todos.store.status]") == [1, "live"]
    assert "left out" in page.evaluate("todos.store.error")


@pytest.mark.needs("chromium")
def test_a_key_that_is_no_column_is_told(hub: HubProcess, windows: Windows) -> None:
    page = library(windows, hub.url)
    note_problems(page)
    insert(hub.database, "a", "b")
    begin(page, key="Id")
    page.wait_for_function("() => todos.store.error")
    assert '"Id" is none of the columns' in page.evaluate("todos.store.error")
    assert rows(page) == []


@pytest.mark.needs("node")
def test_subscribers_see_the_newest_and_only_while_they_want_it() -> None:
    found = node(
        """
        const never = () => new Promise(() => {});
        const store = lib.collection({ table: "t", key: "id", initialData: [{ id: 1, n: 0 }] });
        const seen = [], late = [];
        store.subscribe(([row]) => { if (row.n === 1) store.update(1, { n: 2 }, never); });
        store.subscribe(([row]) => seen.push(row.n));
        let end = () => {};
        store.subscribe(() => end());
        end = store.subscribe(([row]) => late.push(row.n));
        store.update(1, { n: 1 }, never);
        let refused;
        store.subscribe((rows) => { try { rows.pop(); } catch (error) { refused = error.name; } });
        console.log(JSON.stringify([seen, late, store.data[0].n, refused]));
        process.exit();
        """
    )
    assert found == [[0, 2], [0], 2, "TypeError"]


@pytest.mark.needs("node")
def test_a_closed_collection_waits_for_nothing() -> None:
    found = node(
        """
        const store = lib.collection({ table: "t", key: "id", initialData: [{ id: 1, n: 0 }] });
        let answer;
        const done = store.update(1, { n: 1 }, () => new Promise((resolve) => { answer = resolve; }));
        store.close();
        answer();
        await done;
        const timers = process.getActiveResourcesInfo().filter((name) => name === "Timeout");
        console.log(JSON.stringify(timers));
        process.exit();
        """
    )
    assert found == []


@pytest.mark.needs("node")
def test_values_and_keys_in_whatever_form() -> None:
    found = node(
        """
        const refused = (where) => {
          try { return lib.filtersOf(where); } catch (error) { return error.message; }
        };
        const never = () => new Promise(() => {});
        const pairs = lib.collection({
          table: "t", key: ["a", "b"], initialData: [{ a: 1, b: 2, n: 0 }] });
        pairs.update({ b: 2, a: 1 }, { n: 1 }, never);
        console.log(JSON.stringify([
          lib.filtersOf({ id: { $int: "9223372036854775807" } }), lib.filtersOf({ id: 5n }),
          refused({ a: undefined }), refused({ a: [1, 2] }), refused({ a: { $blob: "" } }),
          pairs.data[0].n, lib.keyText(5n), lib.keyText(2n ** 60n),
        ]));
        process.exit();
        """
    )
    why = "where: a has to be a text, a number, a boolean or null"
    big = '[{"$int":"1152921504606846976"}]'
    assert found == [['"id"=eq."9223372036854775807"'], ['"id"=eq."5"'], why, why, why, 1, "[5]", big]
