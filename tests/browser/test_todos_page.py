"""The todo page as its users meet it: VIEWS, "Todos".

Longer than a module should be: it follows that section point by point, and is read beside it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Windows
from tests.browser.todo_page import (
    ADD_BOX,
    add,
    add_box,
    check_box,
    delete_button,
    edit_button,
    editor,
    problem,
    put,
    row,
    sqlite3_shell,
    stored,
    stored_titles,
    titles,
    wait_stored,
)
from tests.harness import HubProcess, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")


# Live.


@pytest.mark.needs("sqlite3")
def test_two_windows_follow_each_other_and_the_shell(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread")
    here, there = (windows.open_live(f"{demo.url}/todos") for _ in range(2))

    add(here, "eggs")
    for page in (here, there):
        expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    check_box(there, "milk").click()
    expect(check_box(here, "milk")).to_be_checked()
    row(here, "bread").hover()
    delete_button(here, "bread").click()
    expect(titles(there)).to_have_text(["milk", "eggs"])

    sqlite3_shell(demo.database, "UPDATE todos SET title = title || '!', completed = 1 - completed")
    sqlite3_shell(demo.database, "INSERT INTO todos VALUES ('s', 'by shell', 0, -1, 0, 0)")
    for page in (here, there):
        expect(titles(page)).to_have_text(["by shell", "milk!", "eggs!"])
        expect(check_box(page, "milk!")).not_to_be_checked()
        expect(check_box(page, "eggs!")).to_be_checked()
    sqlite3_shell(demo.database, "BEGIN; DELETE FROM todos WHERE id <> 's'; COMMIT")
    for page in (here, there):
        expect(titles(page)).to_have_text(["by shell"])


def test_rows_without_an_id_are_shown_too(demo: HubProcess, windows: Windows) -> None:
    # A TEXT primary key may be NULL in SQLite, and the shell is for forgetting columns.
    for title in ("one", "two"):
        run_sql(
            demo.database,
            "INSERT INTO todos(title, position, created_at, updated_at) VALUES (?, 9, 0, 0)",
            parameters=[title],
        )
    page = windows.open_live(f"{demo.url}/todos")
    expect(titles(page).filter(has_text=re.compile("^(one|two)$"))).to_have_text(["one", "two"])


# Adding.


def test_the_page_says_what_it_is_and_waits_for_a_todo(demo: HubProcess, windows: Windows) -> None:
    page = windows.open_live(f"{demo.url}/todos")
    expect(page).to_have_title("Todos - Real-Time Sync")
    expect(page.get_by_role("heading", level=1)).to_have_text("Todos")
    box = page.get_by_role("textbox").first
    expect(box).to_have_attribute("placeholder", "What needs to be done?")
    expect(box).to_have_accessible_name(ADD_BOX)
    expect(box).to_be_focused()
    expect(titles(page)).to_have_count(len(stored(demo)))


def test_add_is_disabled_while_the_box_is_blank(demo: HubProcess, windows: Windows) -> None:
    page = windows.open_live(f"{demo.url}/todos")
    before = stored_titles(demo)
    button = page.get_by_role("button", name="Add", exact=True)
    expect(button).to_be_disabled()
    add_box(page).fill("   ")
    expect(button).to_be_disabled()
    page.keyboard.press("Enter")
    add_box(page).fill(" x")
    expect(button).to_be_enabled()
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text([*before, "x"])
    expect(button).to_be_disabled()
    wait_stored(demo, *before, "x")


def test_an_added_todo_is_trimmed_and_comes_last(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, {"title": "far down", "position": 41})
    page = windows.open_live(f"{demo.url}/todos")
    add(page, " \t buy milk  ")
    expect(titles(page)).to_have_text(["far down", "buy milk"])
    expect(add_box(page)).to_have_value("")
    expect(add_box(page)).to_be_focused()
    wait_stored(demo, "far down", "buy milk")
    added = stored(demo)[1]
    assert (added["title"], added["position"], added["completed"]) == ("buy milk", 42, False)
    assert added["updated_at"] == added["created_at"] > 1_600_000_000_000

    put(demo.database)
    expect(titles(page)).to_have_count(0)
    add(page, "first of all")
    expect(titles(page)).to_have_text(["first of all"])
    wait_stored(demo, "first of all")
    assert stored(demo)[0]["position"] == 0


def test_the_box_takes_two_hundred_characters(demo: HubProcess, windows: Windows) -> None:
    put(demo.database)
    page = windows.open_live(f"{demo.url}/todos")
    add_box(page).focus()
    page.keyboard.insert_text("x" * 250)
    expect(add_box(page)).to_have_value("x" * 200)
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["x" * 200])


def test_a_refused_title_stays_in_the_box_with_the_reason(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database)
    page = windows.open_live(f"{demo.url}/todos")
    too_long = "y" * 201
    # A script can set what typing can't.
    set_value = "(box, text) => { box.value = text; box.dispatchEvent(new Event('input')); }"
    add_box(page).evaluate(set_value, too_long)
    add_box(page).press("Enter")
    expect(problem(page)).to_have_text("Title has more than 200 characters")
    expect(add_box(page)).to_have_value(too_long)
    add_box(page).fill("short")
    page.keyboard.press("Enter")
    expect(problem(page)).to_have_text("")
    expect(titles(page)).to_have_text(["short"])


# The list.


def test_order_is_position_then_age_then_id(demo: HubProcess, windows: Windows) -> None:
    put(
        demo.database,
        {"title": "fifth", "position": 10, "created_at": 1, "id": "a"},
        {"title": "fourth", "position": 2, "created_at": 9, "id": "b"},
        {"title": "third", "position": 2, "created_at": 8, "id": "d"},
        {"title": "second", "position": 2, "created_at": 8, "id": "c"},
        {"title": "first", "position": -1, "created_at": 10, "id": "e"},
    )
    page = windows.open_live(f"{demo.url}/todos")
    expect(titles(page)).to_have_text(["first", "second", "third", "fourth", "fifth"])
    assert stored_titles(demo) == ["first", "second", "third", "fourth", "fifth"]
    run_sql(demo.database, "UPDATE todos SET position = 3 WHERE title = 'first'")
    expect(titles(page)).to_have_text(["second", "third", "fourth", "first", "fifth"])


def test_filters_and_the_number_left(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", {"title": "bread", "completed": 1}, "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    filters = page.get_by_role("group", name="Show")
    expect(filters.get_by_role("button")).to_have_text(["All", "Active", "Completed"])
    expect(filters.get_by_role("button", pressed=True)).to_have_text(["All"])
    expect(page.get_by_text("2 items left", exact=True)).to_be_visible()

    filters.get_by_role("button", name="Active").click()
    expect(filters.get_by_role("button", pressed=True)).to_have_text(["Active"])
    expect(titles(page)).to_have_text(["milk", "eggs"])
    check_box(page, "milk").click()
    expect(titles(page)).to_have_text(["eggs"])
    expect(page.get_by_text("1 item left", exact=True)).to_be_visible()

    filters.get_by_role("button", name="Completed").click()
    expect(titles(page)).to_have_text(["milk", "bread"])
    run_sql(demo.database, "UPDATE todos SET completed = 1 WHERE title = 'eggs'")
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    expect(page.get_by_text("0 items left", exact=True)).to_be_visible()
    filters.get_by_role("button", name="All").click()
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])


def test_completed_is_stored_as_the_value_that_was_meant(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    check_box(page, "milk").click()
    wait_for(lambda: stored(demo)[0]["completed"], "the todo to be completed")
    assert run_sql(demo.database, "SELECT completed, updated_at > 1 FROM todos") == [[1, 1]]
    check_box(page, "milk").click()
    wait_for(lambda: not stored(demo)[0]["completed"], "the todo to be active again")
    assert run_sql(demo.database, "SELECT completed FROM todos") == [[0]]


def test_clear_completed_is_there_only_if_any_are(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    clear = page.get_by_role("button", name="Clear completed")
    expect(clear).to_be_hidden()
    run_sql(demo.database, "UPDATE todos SET completed = 1 WHERE title <> 'bread'")
    clear.click()
    expect(titles(page)).to_have_text(["bread"])
    expect(clear).to_be_hidden()
    wait_stored(demo, "bread")


def test_a_completed_todo_is_struck_through_and_pale(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", {"title": "bread", "completed": 1})
    page = windows.open_live(f"{demo.url}/todos")
    expect(titles(page)).to_have_count(2)
    active, completed = titles(page).all()
    expect(completed).to_have_css("text-decoration-line", "line-through")
    expect(completed).to_have_css("opacity", "0.6")
    expect(active).to_have_css("text-decoration-line", "none")
    expect(active).to_have_css("opacity", "1")


def test_delete_shows_on_hover_and_on_focus(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos")
    button = delete_button(page, "milk")
    expect(button).to_have_text("×")
    expect(button).to_have_css("opacity", "0")
    row(page, "milk").hover()
    expect(button).to_have_css("opacity", "1")
    expect(delete_button(page, "bread")).to_have_css("opacity", "0")
    row(page, "bread").hover()
    expect(button).to_have_css("opacity", "0")
    button.focus()
    expect(button).to_have_css("opacity", "1")


def test_delete_shows_where_nothing_can_hover(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos", has_touch=True, is_mobile=True)
    for title in ("milk", "bread"):
        expect(delete_button(page, title)).to_have_css("opacity", "1")
    delete_button(page, "milk").tap()
    expect(titles(page)).to_have_text(["bread"])


# Editing.


def test_a_double_click_edits_and_enter_or_leaving_saves(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos")
    titles(page).first.dblclick()
    expect(editor(page)).to_be_focused()
    expect(editor(page)).to_have_value("milk")
    editor(page).fill("  oat milk ")
    page.keyboard.press("Enter")
    expect(editor(page)).to_have_count(0)
    expect(titles(page)).to_have_text(["oat milk", "bread"])

    titles(page).nth(1).dblclick()
    editor(page).fill("rye bread")
    page.get_by_role("heading", level=1).click()
    expect(editor(page)).to_have_count(0)
    expect(titles(page)).to_have_text(["oat milk", "rye bread"])
    wait_stored(demo, "oat milk", "rye bread")
    assert run_sql(demo.database, "SELECT min(updated_at) > max(created_at) FROM todos") == [[1]]


def test_escape_leaves_a_title_as_it_was(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    head = demo.head()
    titles(page).first.dblclick()
    editor(page).fill("something else")
    page.keyboard.press("Escape")
    expect(editor(page)).to_have_count(0)
    expect(titles(page)).to_have_text(["milk"])
    # Whatever the page had sent would be in the log before this.
    add(page, "bread")
    expect(titles(page)).to_have_text(["milk", "bread"])
    changes = wait_for(lambda: changes_since(demo, head), "the todo to be in the log")
    assert [change["type"] for change in changes] == ["INSERT"]


def test_a_blank_title_is_refused_and_stays_in_the_editor(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    titles(page).first.dblclick()
    editor(page).fill("  ")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="Title is required")).to_be_visible()
    expect(editor(page)).to_be_focused()
    page.keyboard.press("Escape")
    expect(titles(page)).to_have_text(["milk"])
    expect(problem(page)).to_have_text("")


def test_an_editor_survives_what_others_change(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    page.get_by_role("button", name="Active").click()
    titles(page).nth(1).dblclick()
    editor(page).fill("half a tit")
    # Moved past another one, and completed, which the filter would hide.
    run_sql(demo.database, "UPDATE todos SET position = 9, completed = 1 WHERE title = 'bread'")
    run_sql(demo.database, "UPDATE todos SET position = 10 WHERE title = 'milk'")
    expect(titles(page)).to_have_text(["eggs", "bread", "milk"])
    expect(editor(page)).to_be_focused()
    assert "half a tit" not in stored_titles(demo)
    page.keyboard.type("le")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["eggs", "milk"])
    wait_stored(demo, "eggs", "half a title", "milk")


def test_everything_works_with_the_keyboard_alone(demo: HubProcess, windows: Windows) -> None:
    put(demo.database)
    page = windows.open_live(f"{demo.url}/todos")
    for title in ("milk", "bread"):
        page.keyboard.type(title)
        page.keyboard.press("Enter")
        expect(add_box(page)).to_have_value("")
    expect(titles(page)).to_have_text(["milk", "bread"])

    for _ in range(4):  # All, Active, Completed, and the first todo
        page.keyboard.press("Tab")
    expect(check_box(page, "milk")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_text("1 item left", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(edit_button(page, "milk")).to_be_focused()
    page.keyboard.press("Enter")
    expect(editor(page)).to_be_focused()
    page.keyboard.type("oat milk")
    page.keyboard.press("Enter")
    expect(edit_button(page, "oat milk")).to_be_focused()
    page.keyboard.press("Tab")
    expect(delete_button(page, "oat milk")).to_be_focused()
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["bread"])
    # The focus does not fall back to the top of the page with the row that had it.
    expect(check_box(page, "bread")).to_be_focused()

    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Completed", pressed=True)).to_be_focused()
    expect(page.get_by_text("Nothing completed yet.")).to_be_visible()


def test_the_focus_goes_to_the_box_when_the_last_row_goes(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", {"title": "bread", "completed": 1})
    page = windows.open_live(f"{demo.url}/todos")
    delete_button(page, "milk").focus()
    page.keyboard.press("Enter")
    expect(check_box(page, "bread")).to_be_focused()
    page.get_by_role("button", name="Clear completed").focus()
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_count(0)
    expect(add_box(page)).to_be_focused()


def changes_since(hub: HubProcess, position: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = hub.get(f"/cdc/changes?table=todos&since={position}").json()[
        "changes"
    ]
    return found


def test_what_was_typed_and_chosen_survives_a_reload(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", {"title": "bread", "completed": 1})
    page = windows.open_live(f"{demo.url}/todos")
    page.get_by_role("button", name="Active").click()
    page.keyboard.press("Escape")
    add_box(page).fill("not sent yet")
    edit_button(page, "milk").click()
    editor(page).fill("half a ti")
    page.reload()
    expect(add_box(page)).to_have_value("not sent yet")
    expect(editor(page)).to_have_value("half a ti")
    expect(page.get_by_role("button", name="Active", pressed=True)).to_be_visible()
    editor(page).press("Enter")
    expect(titles(page)).to_have_text(["half a ti"])
    add_box(page).press("Enter")
    expect(titles(page)).to_have_text(["half a ti", "not sent yet"])
    page.reload()
    expect(titles(page)).to_have_text(["half a ti", "not sent yet"])
    expect(add_box(page)).to_have_value("")


def test_a_title_that_somebody_else_changed_meanwhile_is_told(
    demo: HubProcess, windows: Windows
) -> None:
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    edit_button(page, "milk").click()
    editor(page).fill("mine")
    run_sql(demo.database, "UPDATE todos SET title = 'theirs'")
    expect(page.get_by_label("theirs", exact=True)).to_be_attached()
    editor(page).press("Enter")
    expect(page.get_by_role("alert").filter(has_text="theirs")).to_have_text(
        "Somebody else had changed it to “theirs” meanwhile."
    )
    expect(titles(page)).to_have_text(["mine"])


def test_one_sees_what_one_has_added(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, *(f"todo {n}" for n in range(60)))
    page = windows.open_live(f"{demo.url}/todos")
    page.get_by_role("button", name="Completed").click()
    add_box(page).fill("the new one")
    add_box(page).press("Enter")
    expect(page.get_by_text("the new one", exact=True)).to_be_in_viewport()
    expect(page.get_by_role("button", name="All", pressed=True)).to_be_attached()
