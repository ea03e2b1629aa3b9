"""What one does on the todo page shows at once, and what the hub refuses is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Windows
from tests.browser.todo_page import (
    add,
    add_box,
    check_box,
    delete_button,
    editor,
    hold,
    problem,
    put,
    row,
    stored,
    stored_titles,
    titles,
    undo_button,
    wait_for_requests,
    wait_stored,
)
from tests.harness import HubProcess, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

# What the database itself refuses: a real answer of the hub, 409.
REFUSES = "BEGIN SELECT RAISE(ABORT, 'not today'); END"

# The largest number of rows that ever stood under one title.
_COUNT_ROWS = """() => {
  window.most = {};
  new MutationObserver(() => {
    const now = {};
    for (const each of document.querySelectorAll("#todos .title")) {
      now[each.textContent] = (now[each.textContent] ?? 0) + 1;
    }
    for (const [title, count] of Object.entries(now)) {
      most[title] = Math.max(most[title] ?? 0, count);
    }
  }).observe(document.getElementById("todos"), { childList: true, subtree: true });
}"""


@contextmanager
def held(page: Page, path: str = "**/api/todos") -> Iterator[list[Route]]:
    on_their_way: list[Route] = []
    page.route(path, hold(on_their_way))
    yield on_their_way
    page.unroute(path)


def refuse(hub: HubProcess, event: str) -> None:
    run_sql(hub.database, f"CREATE TRIGGER refuses BEFORE {event} ON todos {REFUSES}")


def allow(hub: HubProcess) -> None:
    run_sql(hub.database, "DROP TRIGGER refuses")


# At once.


def test_an_added_todo_is_there_before_it_is_stored(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    page.evaluate(_COUNT_ROWS)
    with held(page) as on_their_way:
        add(page, "  bread ")
        expect(titles(page)).to_have_text(["milk", "bread"])
        expect(add_box(page)).to_have_value("")
        expect(page.get_by_text("2 items left", exact=True)).to_be_visible()
        shown = row(page, "bread").get_attribute("data-id")
        wait_for_requests(page, on_their_way)
        assert stored_titles(demo) == ["milk"]
        on_their_way[0].continue_()
        wait_stored(demo, "milk", "bread")
    assert stored(demo)[1]["id"] == shown
    # Another change behind it: the stream has told of the stored row by then.
    run_sql(demo.database, "UPDATE todos SET title = 'oat milk' WHERE title = 'milk'")
    expect(titles(page)).to_have_text(["oat milk", "bread"])
    assert row(page, "bread").get_attribute("data-id") == shown
    assert page.evaluate("most.bread") == 1


def test_ticking_editing_and_deleting_show_before_they_are_stored(
    demo: HubProcess, windows: Windows
) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    with held(page, "**/api/todos/*") as on_their_way:
        check_box(page, "milk").click()
        expect(page.get_by_text("2 items left", exact=True)).to_be_visible()
        titles(page).nth(1).dblclick()
        editor(page).fill("rye bread")
        page.keyboard.press("Enter")
        row(page, "eggs").hover()
        delete_button(page, "eggs").click()
        expect(titles(page)).to_have_text(["milk", "rye bread"])
        expect(editor(page)).to_have_count(0)
        assert stored_titles(demo) == ["milk", "bread", "eggs"]
        assert not stored(demo)[0]["completed"]
        # One after another, so that they can't overtake each other.
        for count in (1, 2, 3):
            wait_for_requests(page, on_their_way, count)
            on_their_way[-1].continue_()
        wait_stored(demo, "milk", "rye bread")
    assert stored(demo)[0]["completed"]
    expect(titles(page)).to_have_text(["milk", "rye bread"])


def test_quick_clicks_end_as_the_last_one_meant(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    head = demo.head()
    for _ in range(5):
        check_box(page, "milk").click()
    expect(check_box(page, "milk")).to_be_checked()
    add(page, "bread")

    def changes() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = demo.get(f"/cdc/changes?since={head}&table=todos").json()[
            "changes"
        ]
        return found

    wait_for(lambda: len(changes()) == 6, "six changes in the log")
    assert [change["newValue"]["completed"] for change in changes()] == [1, 0, 1, 0, 1, 0]
    expect(check_box(page, "milk")).to_be_checked()


# Taken back.


def test_a_todo_that_is_refused_is_back_in_the_box(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    refuse(demo, "INSERT")
    add(page, " bread ")
    expect(problem(page)).to_contain_text("Not today")
    expect(titles(page)).to_have_text(["milk"])
    expect(add_box(page)).to_have_value(" bread ")
    expect(add_box(page)).to_be_focused()
    allow(demo)
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["milk", "bread"])
    expect(problem(page)).to_have_text("")
    wait_stored(demo, "milk", "bread")


def test_whoever_typed_on_keeps_both_titles(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    with held(page) as on_their_way:
        add(page, "bread")
        add_box(page).fill("eg")
        wait_for_requests(page, on_their_way)
        on_their_way[0].abort()
        expect(problem(page)).to_contain_text("“bread” comes back when the box is free")
    expect(add_box(page)).to_have_value("eg")
    page.keyboard.type("gs")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["milk", "eggs"])
    expect(add_box(page)).to_have_value("bread")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["milk", "eggs", "bread"])
    expect(add_box(page)).to_have_value("")
    wait_stored(demo, "milk", "eggs", "bread")


def test_a_lost_answer_adds_nothing_twice(demo: HubProcess, windows: Windows) -> None:
    """The hub stored the todo, but the page never heard so."""
    windows.network_errors_expected = True
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")

    def store_and_lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/api/todos", store_and_lose)
    add(page, "bread")
    wait_stored(demo, "milk", "bread")
    expect(titles(page)).to_have_text(["milk", "bread"])
    expect(add_box(page)).to_have_value("")
    expect(problem(page)).to_have_text("")
    assert stored_titles(demo) == ["milk", "bread"]


def test_a_deletion_whose_answer_is_lost_can_be_undone(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos")
    with held(page, "**/api/todos/*") as on_their_way:
        row(page, "milk").hover()
        delete_button(page, "milk").click()
        wait_for_requests(page, on_their_way)
        run_sql(
            demo.database, "DELETE FROM todos WHERE title = 'milk'", "UPDATE todos SET title = 'rye'"
        )
        expect(titles(page)).to_have_text(["rye"])
        on_their_way[0].abort()
    expect(problem(page)).to_contain_text("can't be reached")
    undo_button(page).click()
    expect(titles(page)).to_have_text(["milk", "rye"])
    wait_stored(demo, "milk", "rye")


def test_a_refused_change_is_taken_back_with_the_reason(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", {"title": "bread", "completed": 1}, "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    refuse(demo, "UPDATE")
    check_box(page, "milk").click()
    expect(problem(page)).to_contain_text("Not today")
    expect(check_box(page, "milk")).not_to_be_checked()
    check_box(page, "bread").click()
    expect(check_box(page, "bread")).to_be_checked()
    titles(page).first.dblclick()
    editor(page).fill(" oat milk")
    page.keyboard.press("Enter")
    # Open again, with what was typed, and the row as it was beneath.
    expect(editor(page)).to_have_value(" oat milk")
    expect(editor(page)).to_be_focused()
    expect(problem(page)).to_contain_text("Not today")
    page.keyboard.press("Escape")
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])


def test_a_refused_deletion_puts_the_row_back_in_its_place(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", {"title": "bread", "completed": 1}, "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    refuse(demo, "DELETE")
    row(page, "milk").hover()
    delete_button(page, "milk").click()
    expect(problem(page)).to_contain_text("Not today")
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    expect(undo_button(page)).to_be_hidden()
    page.get_by_role("button", name="Clear completed").click()
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    expect(undo_button(page)).to_be_hidden()
    assert stored_titles(demo) == ["milk", "bread", "eggs"]


def test_the_reason_is_in_sight_wherever_the_row_is(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, *(f"todo {n}" for n in range(40)))
    page = windows.open_live(f"{demo.url}/todos")
    refuse(demo, "UPDATE")
    check_box(page, "todo 39").click()
    expect(problem(page)).to_contain_text("Not today")
    expect(add_box(page)).not_to_be_in_viewport()
    expect(problem(page)).to_be_in_viewport()


# Undo.


@pytest.mark.parametrize("by", ["button", "keys"])
def test_a_deletion_can_be_undone(demo: HubProcess, windows: Windows, by: str) -> None:
    put(demo.database, "milk", {"title": "bread", "completed": 1, "position": 1, "id": "b"}, "eggs")
    here, there = (windows.open_live(f"{demo.url}/todos") for _ in range(2))
    row(here, "bread").hover()
    delete_button(here, "bread").click()
    expect(here.get_by_text("Deleted “bread”.")).to_be_visible()
    expect(titles(there)).to_have_text(["milk", "eggs"])
    if by == "button":
        undo_button(here).click()
    else:
        here.keyboard.press("Control+z")
    expect(undo_button(here)).to_be_hidden()
    expect(check_box(here, "bread")).to_be_focused()
    for page in (here, there):
        expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
        expect(check_box(page, "bread")).to_be_checked()
    wait_stored(demo, "milk", "bread", "eggs")
    back = stored(demo)[1]
    assert (back["id"], back["completed"], back["position"]) == ("b", True, 1)


def test_what_is_deleted_in_a_row_comes_back_together(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    for title in ("milk", "eggs"):
        row(page, title).hover()
        delete_button(page, title).click()
    expect(page.get_by_text("Deleted 2 todos.")).to_be_visible()
    wait_stored(demo, "bread")
    undo_button(page).click()
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    wait_stored(demo, "milk", "bread", "eggs")


def test_undo_keeps_the_focus_where_the_filter_hides_the_row(
    demo: HubProcess, windows: Windows
) -> None:
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos")
    row(page, "bread").hover()
    delete_button(page, "bread").click()
    page.get_by_role("button", name="Completed", exact=True).click()
    undo_button(page).click()
    expect(page.get_by_role("button", name="Completed", exact=True)).to_be_focused()
    wait_stored(demo, "milk", "bread")


def test_clearing_can_be_undone_too(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, {"title": "milk", "completed": 1}, "bread", {"title": "eggs", "completed": 1})
    page = windows.open_live(f"{demo.url}/todos")
    page.get_by_role("button", name="Clear completed").click()
    expect(titles(page)).to_have_text(["bread"])
    expect(page.get_by_text("Deleted 2 todos.")).to_be_visible()
    wait_stored(demo, "bread")
    undo_button(page).click()
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    wait_stored(demo, "milk", "bread", "eggs")


def test_undo_is_offered_for_a_while_and_longer_to_who_is_on_it(
    demo: HubProcess, windows: Windows
) -> None:
    put(demo.database, "milk", "bread")
    page = windows.new()
    page.clock.install(time=0)
    page.goto(f"{demo.url}/todos")
    expect(page.get_by_role("status")).to_have_text("Live")
    page.clock.pause_at(3_600_000)
    row(page, "milk").hover()
    # Answered before the clock is moved, which would end the request too.
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        delete_button(page, "milk").click()
    undo_button(page).focus()
    page.clock.run_for(20_000)
    expect(undo_button(page)).to_be_visible()
    check_box(page, "bread").focus()
    page.clock.run_for(8_000)
    expect(undo_button(page)).to_be_hidden()
    # In a text box these keys undo typing, and now there is nothing else to undo.
    page.keyboard.press("Control+z")
    assert stored_titles(demo) == ["bread"]


def test_an_undo_that_fails_is_offered_again(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos")
    row(page, "milk").hover()
    delete_button(page, "milk").click()
    wait_stored(demo, "bread")
    refuse(demo, "INSERT")
    undo_button(page).click()
    expect(problem(page)).to_contain_text("Not today")
    expect(titles(page)).to_have_text(["bread"])
    allow(demo)
    undo_button(page).click()
    expect(titles(page)).to_have_text(["milk", "bread"])
    wait_stored(demo, "milk", "bread")
