"""Optimistic writes of the browser library: shown at once, confirmed by the stream, taken back.

Every emission is noted. What a person saw is checked from the first to the last, not just the end.
"""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.client_page import collect, library, rows, titles, told, wait_for_titles
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.browser.todo_page import put, stored_titles
from tests.harness import HubProcess, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

# Requests as the demo's page would make them; `window.hold()` keeps answers until `window.release()`.
_API = """() => {
  let gate = Promise.resolve();
  window.hold = () => { gate = new Promise((open) => { window.release = open; }); };
  window.api = async (method, path, body) => {
    const answer = await fetch(`/api/todos${path}`, {
      method, body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", Accept: "application/json" },
    });
    await gate;
    if (!answer.ok) throw new Error((await answer.json()).detail);
  };
  window.fail = async () => { await gate; throw new Error("no"); };
  window.noteResult = (promise) => {
    window.result = "pending";
    promise.then(() => { window.result = "done"; }, (error) => { window.result = error.message; });
  };
}"""


def demo_page(windows: Windows, demo: HubProcess, *todos: str | dict[str, Any]) -> Page:
    put(demo.database, *todos)
    page = library(windows, demo.url)
    page.evaluate(_API)
    collect(page)
    wait_for_titles(page, [each if isinstance(each, str) else each["title"] for each in todos])
    return page


def shown(page: Page) -> list[Any]:
    """What was shown since the last call, without what followed from nothing."""
    return [
        [(row["title"], row["completed"]) for row in sorted(each, key=lambda row: row["position"])]
        for each in page.evaluate("todos.emissions.splice(0)")
    ]


def result(page: Page) -> str:
    page.wait_for_function("() => result !== 'pending'")
    return str(page.evaluate("result"))


def wait_for_change(page: Page, count: int) -> None:
    page.wait_for_function("(count) => todos.changes.length >= count", arg=count)


def test_an_update_shows_at_once_and_nothing_flickers(demo: HubProcess, windows: Windows) -> None:
    page = demo_page(windows, demo, "milk")
    shown(page)
    page.evaluate("todos.changes.length = 0")
    at_once = page.evaluate(
        """() => {
          noteResult(todos.store.update("todo-0", { completed: true },
            () => api("PATCH", "/todo-0", { completed: true })));
          return todos.store.data[0].completed;
        }"""
    )
    assert at_once is True
    assert result(page) == "done"
    wait_for_change(page, 1)
    assert rows(page)[0]["completed"] == 1
    assert {row[0][1] for row in shown(page)} == {1}, "never unticked again"


@pytest.mark.parametrize("first", ["stream", "answer"])
def test_it_does_not_matter_which_comes_first(demo: HubProcess, windows: Windows, first: str) -> None:
    page = demo_page(windows, demo, "milk")
    page.evaluate("todos.changes.length = 0")
    shown(page)
    if first == "stream":
        page.evaluate("hold()")
    page.evaluate(
        """() => noteResult(todos.store.update("todo-0", { title: "oat milk" },
             () => api("PATCH", "/todo-0", { title: "oat milk" })))"""
    )
    wait_for_change(page, 1)
    if first == "stream":
        assert page.evaluate("result") == "pending"
        page.evaluate("release()")
    assert result(page) == "done"
    assert {each[0][0] for each in shown(page)} == {"oat milk"}
    # The edit is over: what others write next shows.
    run_sql(demo.database, "UPDATE todos SET title = 'theirs'")
    wait_for_titles(page, ["theirs"])


def test_a_failed_update_is_taken_back_with_the_reason(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = demo_page(windows, demo, "milk", "bread")
    shown(page)
    page.evaluate(
        """() => noteResult(todos.store.update("todo-0", { title: "" },
             () => api("PATCH", "/todo-0", { title: "" })))"""
    )
    assert "title" in result(page).lower()
    assert shown(page) == [[("", 0), ("bread", 0)], [("milk", 0), ("bread", 0)]]


def test_somebody_elses_change_of_the_row_does_not_undo_an_edit(
    demo: HubProcess, windows: Windows
) -> None:
    page = demo_page(windows, demo, "milk")
    page.evaluate("todos.changes.length = 0")
    shown(page)
    # Their change is committed while our request is on its way.
    page.evaluate(
        """() => {
          let go;
          const gone = new Promise((run) => { go = run; });
          window.go = go;
          noteResult(todos.store.update("todo-0", { completed: 1 },
            async () => { await gone; await api("PATCH", "/todo-0", { completed: true }); }));
        }"""
    )
    run_sql(demo.database, "UPDATE todos SET title = 'their milk'")
    wait_for_change(page, 1)
    assert [(row["title"], row["completed"]) for row in rows(page)] == [("their milk", 1)]
    page.evaluate("go()")
    assert result(page) == "done"
    wait_for_change(page, 2)
    assert {each[0][1] for each in shown(page)} == {1}


def test_two_edits_of_a_row_end_in_their_order(demo: HubProcess, windows: Windows) -> None:
    page = demo_page(windows, demo, "milk")
    page.evaluate("todos.changes.length = 0")
    shown(page)
    page.evaluate(
        """() => {
          const tick = (completed) => todos.store.update("todo-0", { completed },
            () => api("PATCH", "/todo-0", { completed }));
          noteResult((async () => {
            const first = tick(true);
            const second = tick(false);
            await Promise.all([first, second]);
          })());
        }"""
    )
    assert result(page) == "done"
    wait_for_change(page, 2)
    seen = [int(each[0][1]) for each in shown(page)]
    assert seen[:2] == [1, 0]
    # The hub may take two requests that run side by side in either order; the page ends as it does.
    wait_for(lambda: rows(page)[0]["completed"] == bool(_completed(demo)), "the stored state")


def _completed(demo: HubProcess) -> int:
    ((completed,),) = run_sql(demo.database, "SELECT completed FROM todos")
    return int(completed)


_INSERT = """([id, title]) => noteResult(todos.store.insert(
  { id, title, completed: 0, position: 99, created_at: 1, updated_at: 1 },
  () => api("POST", "", { id, title })))"""


def test_an_insert_shows_once_and_becomes_the_stored_row(demo: HubProcess, windows: Windows) -> None:
    page = demo_page(windows, demo, "milk")
    page.evaluate("todos.changes.length = 0")
    shown(page)
    id = "6f9619ff-8b86-4d11-b42d-00c04fc964ff"
    page.evaluate(_INSERT, [id, "bread"])
    assert titles(page) == ["milk", "bread"]
    assert result(page) == "done"
    wait_for_change(page, 1)
    page.wait_for_function("() => todos.store.data.length === 2 && todos.store.data[1].position === 1")
    assert all([title for title, _ in each] == ["milk", "bread"] for each in shown(page))
    assert stored_titles(demo) == ["milk", "bread"]


def test_a_failed_insert_is_gone_again(demo: HubProcess, windows: Windows) -> None:
    page = demo_page(windows, demo, "milk")
    shown(page)
    page.evaluate(
        """() => noteResult(todos.store.insert({ id: "x", title: "bread", completed: 0, position: 1 },
             fail))"""
    )
    assert result(page) == "no"
    assert shown(page) == [[("milk", 0), ("bread", 0)], [("milk", 0)]]


def test_a_deleted_row_is_gone_at_once_and_a_failed_one_is_back_in_its_place(
    demo: HubProcess, windows: Windows
) -> None:
    page = demo_page(windows, demo, "milk", "bread", "salt")
    page.evaluate("todos.changes.length = 0")
    shown(page)
    page.evaluate("() => noteResult(todos.store.delete('todo-1', fail))")
    assert result(page) == "no"
    assert titles(page) == ["milk", "bread", "salt"]
    page.evaluate("() => noteResult(todos.store.delete('todo-1', () => api('DELETE', '/todo-1')))")
    assert result(page) == "done"
    wait_for_change(page, 1)
    assert [[title for title, _ in each] for each in shown(page)] == [
        ["milk", "salt"],
        ["milk", "bread", "salt"],
        ["milk", "salt"],
    ]


def test_several_edits_are_one_write(demo: HubProcess, windows: Windows) -> None:
    page = demo_page(windows, demo, "a", "b", "c")
    page.evaluate("todos.changes.length = 0")
    shown(page)
    reorder = """(send) => {
      const ids = ["todo-2", "todo-0", "todo-1"];
      const edits = ids.map((key, position) => ({ key, patch: { position } }));
      noteResult(todos.store.optimistic(edits, send === "fail" ? fail
        : () => api("POST", "/reorder", { ids })));
    }"""
    page.evaluate(reorder, "fail")
    assert result(page) == "no"
    page.evaluate(reorder, "send")
    assert result(page) == "done"
    wait_for_change(page, 3)
    seen = ["".join(title for title, _ in each) for each in shown(page)]
    assert seen[:3] == ["cab", "abc", "cab"]
    assert set(seen[3:]) <= {"cab"}, "no order in between"


def test_a_value_that_the_hub_mends_shows_in_the_end(demo: HubProcess, windows: Windows) -> None:
    page = demo_page(windows, demo, "milk")
    shown(page)
    page.evaluate("todos.changes.length = 0")
    page.clock.install()
    page.evaluate(
        """() => noteResult(todos.store.update("todo-0", { title: "  oat milk " },
             () => api("PATCH", "/todo-0", { title: "  oat milk " })))"""
    )
    assert result(page) == "done"
    wait_for_change(page, 1)
    page.clock.run_for(5_000)
    wait_for_titles(page, ["oat milk"])
    assert list(dict.fromkeys(each[0][0] for each in shown(page))) == ["  oat milk ", "oat milk"]


def test_an_edit_outlives_a_connection_that_breaks(
    demo: HubProcess, relay: Relay, windows: Windows
) -> None:
    """Stored by the hub, while its change can't come through: the edit stays until it has."""
    windows.network_errors_expected = True
    put(demo.database, "milk")
    page = library(windows, relay.url)
    page.evaluate(_API)
    collect(page)
    wait_for_titles(page, ["milk"])
    page.clock.install()
    shown(page)
    relay.hold()
    relay.cut()
    page.wait_for_function("() => !todos.store.connected")
    page.evaluate(
        """() => noteResult(todos.store.update("todo-0", { title: "bread" },
             () => api("PATCH", "/todo-0", { title: "bread" })))"""
    )
    assert result(page) == "done"
    page.clock.run_for(60_000)
    assert titles(page) == ["bread"]
    relay.release()
    page.wait_for_function("() => todos.store.connected")
    assert {each[0][0] for each in shown(page)} == {"bread"}
    assert told(page, "statuses")[-1] == "live"
