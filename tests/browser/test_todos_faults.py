"""The todo page when things go wrong: no hub, hostile titles, no JavaScript, no table."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Windows
from tests.browser.todo_page import (
    add,
    add_box,
    check_box,
    delete_button,
    editor,
    problem,
    put,
    row,
    stored_titles,
    titles,
)
from tests.harness import HubProcess, make_database, run_sql

pytestmark = pytest.mark.needs("chromium")


# When it doesn't work.


def test_nothing_typed_is_lost_while_the_hub_is_away(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    reason = page.get_by_role("alert").filter(has_text="The hub can't be reached.")
    demo.kill()
    expect(page.get_by_role("status")).to_have_text("Connection lost. Reconnecting…")

    add(page, "bread")
    expect(reason).to_be_visible()
    expect(add_box(page)).to_have_value("bread")
    expect(titles(page)).to_have_text(["milk"])

    check_box(page, "milk").click()
    expect(check_box(page, "milk")).not_to_be_checked()
    row(page, "milk").hover()
    delete_button(page, "milk").click()
    expect(titles(page)).to_have_text(["milk"])
    titles(page).first.dblclick()
    editor(page).fill("oat milk")
    page.keyboard.press("Enter")
    expect(editor(page)).to_have_value("oat milk")
    expect(reason).to_be_visible()

    run_sql(demo.database, "INSERT INTO todos VALUES ('late', 'while it was down', 0, 9, 0, 0)")
    demo.start()
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(titles(page)).to_have_text(["milk", "while it was down"])
    editor(page).press("Enter")
    expect(titles(page)).to_have_text(["oat milk", "while it was down"])
    add_box(page).press("Enter")
    expect(titles(page)).to_have_text(["oat milk", "while it was down", "bread"])
    expect(reason).to_have_count(0)


def test_what_was_typed_into_a_deleted_todo_is_shown(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk")
    page = windows.open_live(f"{demo.url}/todos")
    titles(page).first.dblclick()
    editor(page).fill("oat milk")
    put(demo.database, {"title": "bread", "id": "another"})
    expect(titles(page)).to_have_text(["bread"])
    expect(editor(page)).to_have_count(0)
    expect(problem(page)).to_contain_text("deleted the todo that you were editing: “oat milk”")


HOSTILE = (
    "<img src=x onerror='window.hacked = 1'>",
    '"><script>window.hacked = 1</script>',
    "' onfocus='window.hacked = 1' autofocus='",
    "&lt;b&gt; &amp; {{7*7}} ${window.hacked = 1}",
    "line\nbreak \u202e reversed \u0007 🎈",
)


def test_titles_are_text_and_nothing_else(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, *HOSTILE)
    page = windows.open_live(f"{demo.url}/todos")
    expect(titles(page)).to_have_count(len(HOSTILE))
    assert titles(page).all_text_contents() == list(HOSTILE)
    for title in HOSTILE:
        row(page, title).hover()
        expect(delete_button(page, title)).to_have_count(1)
    titles(page).first.dblclick()
    expect(editor(page)).to_have_value(HOSTILE[0])
    page.keyboard.press("Escape")
    assert page.locator("main img, main script, main b").count() == 0
    assert page.evaluate("window.hacked") is None
    delete_button(page, HOSTILE[0]).click()
    expect(titles(page)).to_have_count(len(HOSTILE) - 1)


# Without JavaScript, without the table, without a page.


def test_adding_works_without_javascript(demo: HubProcess, windows: Windows) -> None:
    page = windows.open(f"{demo.url}/todos", java_script_enabled=False)
    note = page.locator("noscript p")  # get_by_text() never looks into <noscript>
    expect(note).to_have_text("Live updates need JavaScript. Adding works without it.")
    expect(note).to_be_visible()
    # What could only ever say "Connecting…" isn't there.
    expect(page.get_by_role("status")).to_be_hidden()
    expect(page.get_by_role("button", name="Active")).to_be_hidden()
    add_box(page).fill("  without a script ")
    with page.expect_request_finished(lambda request: request.method == "POST") as posted:
        page.get_by_role("button", name="Add", exact=True).click()
    response = posted.value.response()
    assert response is not None
    assert (response.status, response.headers["location"]) == (303, "/todos")
    expect(page).to_have_title("Todos - Real-Time Sync")
    expect(add_box(page)).to_be_focused()
    assert stored_titles(demo)[-1] == "without a script"


def test_a_blank_box_is_not_sent_without_javascript(demo: HubProcess, windows: Windows) -> None:
    page = windows.open(f"{demo.url}/todos", java_script_enabled=False)
    before = stored_titles(demo)
    for blank in ("", "   "):
        add_box(page).fill(blank)
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page).to_have_url(f"{demo.url}/todos")
        expect(add_box(page)).to_be_focused()
    add_box(page).fill("x")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert stored_titles(demo) == [*before, "x"]


@pytest.mark.parametrize(
    ("schema", "explanation"),
    [
        ("CREATE TABLE notes(id INTEGER PRIMARY KEY)", "no captured table called todos"),
        (
            "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT, completed INTEGER)",
            "The table todos lacks position, created_at, updated_at.",
        ),
    ],
)
def test_a_database_without_todos_is_told_kindly(
    tmp_path: Path, windows: Windows, schema: str, explanation: str
) -> None:
    windows.network_errors_expected = True
    with HubProcess(make_database(tmp_path / "app.db", schema)) as hub:
        page = windows.open(f"{hub.url}/todos")
        notice = page.get_by_role("alert").filter(has_text=explanation)
        expect(notice).to_be_visible()
        expect(notice).to_contain_text("cdchub demo")
        expect(page.get_by_role("heading", level=1)).to_have_text("Todos")
        expect(add_box(page)).to_be_hidden()
        expect(page.get_by_role("status")).to_be_hidden()
        expect(page.get_by_role("button", name="Active")).to_be_hidden()


def test_a_page_that_is_not_there_leads_home(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = windows.new()
    response = page.goto(f"{demo.url}/no/such/page")
    assert response is not None
    assert response.status == 404
    assert response.headers["content-type"].startswith("text/html")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")
    page.get_by_role("link", name="Go home").click()
    expect(page).to_have_url(f"{demo.url}/")
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Todos").click()
    expect(page).to_have_title("Todos - Real-Time Sync")
