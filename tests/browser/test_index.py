"""The first page: it moves, and what it says to try works on this very database."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Windows
from tests.browser.test_appearance import PHONE
from tests.browser.todo_page import put
from tests.harness import PATIENCE_S, HubProcess, make_database, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")


def feed(page: Page) -> Locator:
    return page.get_by_role("list", name="Changes as they happen").get_by_role("listitem")


def paste_into_a_shell(page: Page, line: Locator) -> None:
    command = line.inner_text()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, (command, done.stderr)


def open_index(windows: Windows, hub: HubProcess, **options: object) -> Page:
    page = windows.open(hub.url, **options)
    expect(page.get_by_role("status")).to_have_text("Live")
    return page


def test_changes_show_as_they_happen(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk")
    page = open_index(windows, demo)
    # What happened before the page was opened is there too.
    expect(feed(page).first).to_contain_text("todos title milk")
    run_sql(demo.database, "UPDATE todos SET title = 'oat milk', completed = 1")
    expect(feed(page).first).to_contain_text("UPDATE")
    expect(feed(page).first).to_contain_text("title milk → oat milk completed 0 → 1")
    # Which row it was, where a text of it says so; and a time as a time.
    run_sql(demo.database, "UPDATE todos SET completed = 0, updated_at = 1000 * strftime('%s', 'now')")
    expect(feed(page).first).to_contain_text(
        re.compile(r"todos oat milk completed 1 → 0 updated_at \d+ → \d+:\d\d:\d\d [AP]M")
    )
    run_sql(demo.database, "INSERT INTO orders VALUES ('o', 'u1', 9.5, 'paid', 1)")
    expect(feed(page).first).to_contain_text("orders total 9.5 status paid created_at 1 user_id u1")
    run_sql(demo.database, "UPDATE orders SET total = 8")
    expect(feed(page).first).to_contain_text("orders paid total 9.5 → 8")
    run_sql(demo.database, "INSERT INTO users(id, name) VALUES ('u', '<b>Ada</b>')")
    expect(feed(page).first).to_contain_text("users name <b>Ada</b>")
    run_sql(demo.database, "DELETE FROM users")
    expect(feed(page).first).to_contain_text("DELETE")
    # A column that is added is a change of each row, which had no such value before.
    run_sql(demo.database, "INSERT INTO users(id, name) VALUES ('u', 'Ada')")
    run_sql(demo.database, "ALTER TABLE users ADD COLUMN city DEFAULT 'London'")
    expect(feed(page).first).to_contain_text("city null → London")
    numbers = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
    run_sql(demo.database, f"INSERT INTO users(id, name) {numbers} SELECT i, 'user ' || i FROM n")
    expect(feed(page).first).to_contain_text("user 5000")
    expect(feed(page)).to_have_count(8)


@pytest.mark.needs("sqlite3")
def test_its_line_for_the_shell_shows_in_its_feed(demo: HubProcess, windows: Windows) -> None:
    page = open_index(windows, demo)
    for _ in range(2):  # as often as one likes
        paste_into_a_shell(page, page.locator("#shell"))
    expect(feed(page).filter(has_text="From the shell")).to_have_count(2)


@pytest.mark.needs("sqlite3")
def test_its_line_fits_a_database_of_any_shape(tmp_path: Path, windows: Windows) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    database = make_database(
        folder / "app.db",
        'CREATE TABLE "my ""notes"""(n INTEGER PRIMARY KEY, text, double AS (n * 2))',
        'INSERT INTO "my ""notes"""(n, text) VALUES (1, 1)',
    )
    with HubProcess(database) as hub:
        page = open_index(windows, hub)
        paste_into_a_shell(page, page.locator("#shell"))
        expect(feed(page).first).to_contain_text("UPDATE")
        expect(feed(page).first).to_contain_text('my "notes"')
        # Only what this database has is offered.
        main = page.get_by_role("navigation", name="What there is to see")
        expect(main.get_by_role("link", name="Console")).to_be_visible()
        expect(main.get_by_role("link")).to_have_count(1)


def test_it_leads_to_what_the_database_has(demo: HubProcess, windows: Windows) -> None:
    page = open_index(windows, demo)
    shown = page.get_by_role("navigation", name="What there is to see").get_by_role("link")
    paths = [link.get_attribute("href") for link in shown.all()]
    assert paths == ["/todos", "/dashboard", "/chat", "/console"]
    code = page.locator("pre", has_text="EventSource")
    expect(code).to_have_text(f"new EventSource('{demo.url}/cdc/stream?table=*')")


SHIFTS = """
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const { value, sources } of list.getEntries())
      if (!sources.every(({ node }) => node?.closest?.("#changes, #status"))) shifts.push(value);
  }).observe({ type: "layout-shift", buffered: true });
"""


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_nothing_that_was_shown_moves_while_it_loads(
    demo: HubProcess, windows: Windows, device: dict[str, object]
) -> None:
    page = windows.open("about:blank", **device)
    page.add_init_script(SHIFTS)
    page.goto(demo.url)
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.locator("#shell")).to_contain_text(str(demo.database))
    expect(page.locator("body[data-unknown]")).to_have_count(0)
    assert page.evaluate("shifts") == []


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_nothing_moves_but_the_feed(
    demo: HubProcess, windows: Windows, device: dict[str, object]
) -> None:
    page = open_index(windows, demo, **device)
    below = page.get_by_role("navigation", name="What there is to see")
    before = below.bounding_box()
    put(demo.database, *("a long title " * 15 for _ in range(10)))
    expect(feed(page)).to_have_count(8)
    assert below.bounding_box() == before


def test_its_feed_outlives_a_restart_of_the_hub(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = open_index(windows, demo)
    demo.kill()
    expect(page.get_by_role("status")).to_have_text("Connection lost. Reconnecting…")
    run_sql(demo.database, "INSERT INTO users(id, name) VALUES ('a', 'while it was down')")
    demo.start()
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(feed(page).filter(has_text="while it was down")).to_have_count(1)


def test_a_tab_that_nobody_sees_gives_its_connection_back(demo: HubProcess, windows: Windows) -> None:
    page = open_index(windows, demo)
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    wait_for(lambda: demo.status()["subscribers"]["total"] == 0, "the stream to be closed")
    run_sql(demo.database, "INSERT INTO users(id, name) VALUES ('a', 'meanwhile')")
    page.evaluate(hide, False)
    expect(feed(page).first).to_contain_text("meanwhile")
    expect(page.get_by_role("status")).to_have_text("Live")
