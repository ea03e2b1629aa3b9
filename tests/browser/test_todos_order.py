"""The order of the todo page: dragging with mouse and finger, moving with keys, all at once.

Longer than a module should be by a few lines: each way of moving is tried against the same list.
"""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import CDPSession, Page, Route, expect

from tests.browser.conftest import Windows
from tests.browser.test_appearance import PHONE
from tests.browser.todo_page import (
    add,
    check_box,
    edit_button,
    grab,
    handle,
    hold,
    move_over,
    problem,
    put,
    row,
    stored,
    stored_titles,
    titles,
    wait_for_requests,
    wait_stored,
)
from tests.harness import HubProcess, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")


def note_reorders(page: Page) -> list[dict[str, Any]]:
    """What the page sends as a new order, from now on."""
    sent: list[dict[str, Any]] = []

    def note(request: Any) -> None:
        if request.url.endswith("/api/todos/reorder"):
            sent.append(request.post_data_json)

    page.on("request", note)
    return sent


# With the mouse.


def test_a_drag_shows_where_the_row_would_go_and_is_sent_once(
    demo: HubProcess, windows: Windows
) -> None:
    put(demo.database, "milk", "bread", "eggs", "salt")
    here, there = (windows.open_live(f"{demo.url}/todos") for _ in range(2))
    sent = note_reorders(here)
    head = demo.head()
    grab(here, "milk")
    move_over(here, "bread")
    expect(titles(here)).to_have_text(["bread", "milk", "eggs", "salt"])
    move_over(here, "salt")
    expect(titles(here)).to_have_text(["bread", "eggs", "salt", "milk"])
    move_over(here, "eggs")
    expect(titles(here)).to_have_text(["bread", "milk", "eggs", "salt"])
    move_over(here, "eggs")
    expect(titles(here)).to_have_text(["bread", "eggs", "milk", "salt"])
    assert sent == []
    assert stored_titles(demo) == ["milk", "bread", "eggs", "salt"]

    here.mouse.up()
    wait_stored(demo, "bread", "eggs", "milk", "salt")
    for page in (here, there):
        expect(titles(page)).to_have_text(["bread", "eggs", "milk", "salt"])
    expect(row(here, "milk")).to_have_css("opacity", "1")
    assert [order["ids"] for order in sent] == [["todo-1", "todo-2", "todo-0", "todo-3"]]
    assert [todo["position"] for todo in stored(demo)] == [0, 1, 2, 3]
    changes = demo.get(f"/cdc/changes?table=todos&since={head}").json()["changes"]
    assert len({change["txid"] for change in changes}) == 1


def test_a_click_and_a_double_click_are_no_drag(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos")
    sent = note_reorders(page)
    titles(page).first.click()
    handle(page, "milk").click()
    grab(page, "milk")
    page.mouse.up()
    titles(page).first.dblclick()
    expect(page.get_by_role("textbox", name="Title")).to_be_focused()
    assert sent == []
    assert stored_titles(demo) == ["milk", "bread"]


@pytest.mark.parametrize("end", ["Escape", "outside", "a lost pointer"])
def test_a_drag_can_be_given_up(demo: HubProcess, windows: Windows, end: str) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    sent = note_reorders(page)
    grab(page, "milk")
    move_over(page, "eggs")
    expect(titles(page)).to_have_text(["bread", "eggs", "milk"])
    if end == "Escape":
        page.keyboard.press("Escape")
    elif end == "outside":
        page.mouse.move(5, 5)
    else:
        page.locator("#todos").evaluate("(list) => list.releasePointerCapture(1)")
        # Browsers tell of it with the next event of the pointer (w3.org/TR/pointerevents).
        move_over(page, "milk")
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    page.mouse.up()
    expect(row(page, "milk")).to_have_css("opacity", "1")
    # Whatever the page had sent would be stored before this.
    add(page, "salt")
    wait_stored(demo, "milk", "bread", "eggs", "salt")
    assert sent == []


def test_hidden_todos_keep_their_places_while_filtered(demo: HubProcess, windows: Windows) -> None:
    put(
        demo.database,
        {"title": "done first", "completed": 1},
        "milk",
        {"title": "done", "completed": 1, "position": 2, "id": "d"},
        "bread",
        "eggs",
    )
    page = windows.open_live(f"{demo.url}/todos")
    page.get_by_role("button", name="Active").click()
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    grab(page, "eggs")
    move_over(page, "bread")
    expect(titles(page)).to_have_text(["milk", "eggs", "bread"])
    page.mouse.up()
    wait_stored(demo, "done first", "milk", "eggs", "done", "bread")
    expect(titles(page)).to_have_text(["milk", "eggs", "bread"])
    grab(page, "bread")
    move_over(page, "milk")
    page.mouse.up()
    wait_stored(demo, "done first", "bread", "milk", "eggs", "done")


# With a finger.


def test_a_finger_drags_by_the_handle(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos", **PHONE)
    expect(handle(page, "milk")).to_have_css("opacity", "1")
    finger = Finger(page)
    finger.down(*middle(handle(page, "milk")))
    finger.move(0, 40)
    expect(row(page, "milk")).to_have_css("opacity", "0.5")
    finger.move(0, 70)
    expect(titles(page)).to_have_text(["bread", "eggs", "milk"])
    assert stored_titles(demo) == ["milk", "bread", "eggs"]
    finger.up()
    wait_stored(demo, "bread", "eggs", "milk")
    expect(titles(page)).to_have_text(["bread", "eggs", "milk"])


def test_a_finger_elsewhere_scrolls(demo: HubProcess, windows: Windows) -> None:
    names = [f"todo {n:02}" for n in range(40)]
    put(demo.database, *names)
    page = windows.open_live(f"{demo.url}/todos", **PHONE)
    sent = note_reorders(page)
    finger = Finger(page)
    finger.down(*middle(page.get_by_text("todo 08", exact=True)))
    for _ in range(5):
        finger.move(0, -40)
    finger.up()
    wait_for(lambda: page.evaluate("scrollY") > 50, "the page to be scrolled")
    expect(titles(page)).to_have_text(names)
    assert sent == []


def test_the_page_scrolls_when_a_row_is_held_at_its_edge(demo: HubProcess, windows: Windows) -> None:
    names = [f"todo {n:02}" for n in range(40)]
    put(demo.database, *names)
    page = windows.open_live(f"{demo.url}/todos", **PHONE)
    finger = Finger(page)
    finger.down(*middle(handle(page, "todo 00")))
    finger.move(0, 60)
    finger.to(830)
    end = "scrollY + innerHeight >= document.documentElement.scrollHeight"
    wait_for(lambda: page.evaluate(end), "the end of the page")
    finger.to(830 - 250)
    finger.up()
    wait_for(lambda: stored_titles(demo)[0] == "todo 01", "the row to be moved")
    assert stored_titles(demo).index("todo 00") > 25


class Finger:
    def __init__(self, page: Page) -> None:
        self._session: CDPSession = page.context.new_cdp_session(page)
        self._x = self._y = 0.0

    def down(self, x: float, y: float) -> None:
        self._x, self._y = x, y
        self._send("touchStart")

    def move(self, x: float, y: float) -> None:
        self.to(self._y + y, self._x + x)

    def to(self, y: float, x: float | None = None) -> None:
        self._x, self._y = self._x if x is None else x, y
        self._send("touchMove")

    def up(self) -> None:
        self._session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def _send(self, kind: str) -> None:
        points = [{"x": self._x, "y": self._y}]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def middle(locator: Any) -> tuple[float, float]:
    box = locator.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


# With keys.


def test_alt_and_an_arrow_move_the_row_that_has_the_focus(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    said = page.locator("#moved")
    assert said.get_attribute("aria-live") == "polite"
    check_box(page, "milk").focus()
    page.keyboard.press("Alt+ArrowDown")
    expect(titles(page)).to_have_text(["bread", "milk", "eggs"])
    expect(check_box(page, "milk")).to_be_focused()
    expect(said).to_have_text("“milk” is now at place 2 of 3.")
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Alt+ArrowDown")  # at the end there is nowhere to go
    expect(titles(page)).to_have_text(["bread", "eggs", "milk"])
    expect(check_box(page, "milk")).to_be_focused()
    wait_stored(demo, "bread", "eggs", "milk")
    edit_button(page, "milk").focus()
    page.keyboard.press("Alt+ArrowUp")
    expect(edit_button(page, "milk")).to_be_focused()
    wait_stored(demo, "bread", "milk", "eggs")


def test_on_the_handle_the_arrow_alone_will_do(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    handle(page, "eggs").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(titles(page)).to_have_text(["eggs", "milk", "bread"])
    expect(handle(page, "eggs")).to_be_focused()
    wait_stored(demo, "eggs", "milk", "bread")


# When it is refused, and when others do something meanwhile.


def test_a_refused_order_is_taken_back(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    refusal = "BEGIN SELECT RAISE(ABORT, 'not today'); END"
    run_sql(demo.database, f"CREATE TRIGGER refuses BEFORE UPDATE ON todos {refusal}")
    grab(page, "milk")
    move_over(page, "eggs")
    page.mouse.up()
    expect(problem(page)).to_contain_text("Not today")
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    assert stored_titles(demo) == ["milk", "bread", "eggs"]


def test_a_preview_survives_what_others_change(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    page.get_by_role("button", name="Active").click()
    grab(page, "milk")
    move_over(page, "bread")
    expect(titles(page)).to_have_text(["bread", "milk", "eggs"])
    # Added, renamed, and the held one completed, which the filter would hide.
    run_sql(demo.database, "INSERT INTO todos VALUES ('s', 'salt', 0, 9, 0, 0)")
    run_sql(demo.database, "UPDATE todos SET title = 'ham' WHERE title = 'eggs'")
    run_sql(demo.database, "UPDATE todos SET completed = 1 WHERE title = 'milk'")
    expect(titles(page)).to_have_text(["bread", "milk", "ham", "salt"])
    expect(row(page, "milk")).to_have_css("opacity", "0.5")
    move_over(page, "ham")
    expect(titles(page)).to_have_text(["bread", "ham", "milk", "salt"])
    page.mouse.up()
    wait_stored(demo, "bread", "ham", "milk", "salt")


def test_a_row_that_is_deleted_while_it_is_held(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    sent = note_reorders(page)
    grab(page, "milk")
    move_over(page, "bread")
    run_sql(demo.database, "DELETE FROM todos WHERE title = 'milk'")
    expect(titles(page)).to_have_text(["bread", "eggs"])
    expect(problem(page)).to_contain_text("deleted the todo that you were moving")
    page.mouse.up()
    grab(page, "bread")
    move_over(page, "eggs")
    page.mouse.up()
    wait_stored(demo, "eggs", "bread")
    expect(titles(page)).to_have_text(["eggs", "bread"])
    assert len(sent) == 1


@pytest.mark.parametrize("end", [HubProcess.kill, HubProcess.stop], ids=["kill", "stop"])
def test_a_hub_that_restarts_in_mid_drag(demo: HubProcess, windows: Windows, end: Any) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    grab(page, "milk")
    move_over(page, "bread")
    expect(titles(page)).to_have_text(["bread", "milk", "eggs"])
    end(demo)
    expect(page.get_by_role("status")).to_have_text("Connection lost. Reconnecting…")
    run_sql(demo.database, "INSERT INTO todos VALUES ('s', 'salt', 0, 9, 0, 0)")
    expect(titles(page)).to_have_text(["bread", "milk", "eggs"])
    demo.start()
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(titles(page)).to_have_text(["bread", "milk", "eggs", "salt"])
    expect(row(page, "milk")).to_have_css("opacity", "0.5")
    page.mouse.up()
    wait_stored(demo, "bread", "milk", "eggs", "salt")
    expect(titles(page)).to_have_text(["bread", "milk", "eggs", "salt"])


def test_a_drop_while_the_hub_is_away_is_taken_back(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    grab(page, "milk")
    move_over(page, "eggs")
    demo.kill()
    page.mouse.up()
    expect(problem(page)).to_contain_text("can't be reached")
    expect(titles(page)).to_have_text(["milk", "bread", "eggs"])
    demo.start()
    expect(page.get_by_role("status")).to_have_text("Live")
    assert stored_titles(demo) == ["milk", "bread", "eggs"]


def test_a_move_is_made_among_those_that_there_are(demo: HubProcess, windows: Windows) -> None:
    """Somebody adds and deletes while the new order is on its way."""
    windows.network_errors_expected = True
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    on_their_way: list[Route] = []
    page.route("**/api/todos/reorder", hold(on_their_way), times=1)
    check_box(page, "milk").focus()
    page.keyboard.press("Alt+ArrowDown")
    expect(titles(page)).to_have_text(["bread", "milk", "eggs"])
    wait_for_requests(page, on_their_way)
    run_sql(
        demo.database,
        "INSERT INTO todos VALUES ('s', 'salt', 0, 9, 0, 0), ('h', 'ham', 0, -1, 0, 0)",
        "DELETE FROM todos WHERE title = 'eggs'",
    )
    with page.expect_response(lambda answer: answer.url.endswith("reorder") and answer.ok):
        on_their_way[0].continue_()
    wait_stored(demo, "ham", "bread", "milk", "salt")
    expect(titles(page)).to_have_text(["ham", "bread", "milk", "salt"])
    expect(problem(page)).to_have_text("")


def test_two_people_who_change_everything_at_once_agree(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True  # an order that lacks the newest todo is refused once
    put(demo.database, *(f"todo {n}" for n in range(6)))
    here, there = (windows.open_live(f"{demo.url}/todos") for _ in range(2))
    for _ in range(3):
        for page, title in ((here, "todo 0"), (there, "todo 5")):
            check_box(page, title).focus()
        here.keyboard.press("Alt+ArrowDown")
        there.keyboard.press("Alt+ArrowUp")
        check_box(here, "todo 2").click()
        check_box(there, "todo 2").click()
        add(here, "from here")
        add(there, "from there")
    wait_for(lambda: len(stored(demo)) == 12, "all todos to be stored")
    # The last write of all: what both show behind it is the end.
    run_sql(demo.database, "INSERT INTO todos VALUES ('end', 'the end', 0, 99, 0, 0)")
    for page in (here, there):
        expect(titles(page).last).to_have_text("the end")

    def shown(page: Page) -> list[str]:
        return titles(page).all_text_contents()

    wait_for(
        lambda: shown(here) == shown(there) == stored_titles(demo), "both windows and the hub to agree"
    )
    for page in (here, there):
        expect(check_box(page, "todo 2")).to_be_checked(checked=stored_of(demo, "todo 2"))


def stored_of(hub: HubProcess, title: str) -> bool:
    (completed,) = (todo["completed"] for todo in stored(hub) if todo["title"] == title)
    return bool(completed)
