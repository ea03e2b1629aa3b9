"""The console as its users meet it: VIEWS, "Console"."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.chat_page import LOST, enter, say
from tests.browser.conftest import Windows
from tests.browser.test_accessibility import assert_accessible
from tests.browser.test_appearance import PHONE, assert_readable
from tests.harness import HubProcess, beside, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

SHOWN_MAX = 200


def console(windows: Windows, hub: HubProcess, **options: object) -> Page:
    """The console, with the status and the stream's beginning in it."""
    page = windows.open(f"{hub.url}/console", **options)
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.locator("#about")).to_contain_text("cdchub")
    return page


def changes(page: Page) -> Locator:
    """Newest first."""
    return page.locator("#changes > li")


def fact(page: Page, card: str, name: str) -> Locator:
    """A value that a card shows."""
    region = page.get_by_role("region", name=card)
    term = page.get_by_role("term").filter(has_text=re.compile(f"^{re.escape(name)}$"))
    return region.locator("dl > div").filter(has=term).get_by_role("definition")


def add(hub: HubProcess, *titles: str) -> None:
    """One commit for each."""
    run_sql(
        hub.database,
        *(f"INSERT INTO todos VALUES ('{title}', '{title}', 0, 0, 0, 0)" for title in titles),
    )


# Changes.


def test_a_change_is_shown_with_what_was_before_and_after(demo: HubProcess, windows: Windows) -> None:
    page = console(windows, demo)
    add(demo, "milk")
    newest = changes(page).first
    expect(newest).to_contain_text('INSERT todos id = "milk"')
    expect(newest.locator("ins")).to_have_text(['"milk"', '"milk"', "0", "0", "0", "0"])
    expect(newest.locator("del")).to_have_count(0)

    run_sql(demo.database, "UPDATE todos SET title = '0', completed = 1 WHERE id = 'milk'")
    run_sql(demo.database, "UPDATE todos SET title = 'oat milk' WHERE id = 'milk'")
    expect(newest).to_contain_text('UPDATE todos id = "milk"')
    expect(newest.locator("dt")).to_have_text(["title"])
    expect(newest.locator("del")).to_have_text(['"0"'])
    expect(newest.locator("ins")).to_have_text(['"oat milk"'])
    expect(newest).to_contain_text("5 unchanged")

    run_sql(demo.database, "DELETE FROM todos WHERE id = 'milk'")
    expect(newest).to_contain_text("DELETE")
    expect(newest.locator("ins")).to_have_count(0)
    expect(newest.locator("del")).to_have_count(6)
    # Told by words too, not by colour alone.
    assert [change["type"] for change in latest(demo, 4)] == ["INSERT", "UPDATE", "UPDATE", "DELETE"]
    expect(changes(page).locator(".type")).to_have_text(
        ["DELETE", "UPDATE", "UPDATE", "INSERT", *(["INSERT"] * (changes(page).count() - 4))]
    )


def latest(hub: HubProcess, count: int) -> list[dict[str, object]]:
    answer = hub.get("/cdc/changes?table=todos&since=beginning")
    found: list[dict[str, object]] = json.loads(answer.body)["changes"]
    return found[-count:]


def test_values_of_every_kind_are_readable(hub: HubProcess, windows: Windows) -> None:
    page = console(windows, hub)
    run_sql(
        hub.database,
        "CREATE TABLE kinds(id INTEGER PRIMARY KEY, a, b, c, d, e, f)",
        "INSERT INTO kinds VALUES"
        " (1, NULL, 9223372036854775807, 1.5, x'000102', 9e999, CAST(x'ff' AS TEXT))",
    )
    expect(changes(page).first.locator("ins")).to_have_text(
        [
            "1",
            "NULL",
            "9223372036854775807",
            "1.5",
            "BLOB of 3 bytes: AAEC",
            "Infinity",
            "TEXT that is not UTF-8 of 1 bytes: /w==",
        ]
    )


@pytest.mark.parametrize(
    "text", ["<img src=x onerror='window.hit = 1'>", "<script>window.hit = 1</script>", "__proto__"]
)
def test_hostile_values_tables_and_columns_are_text(
    hub: HubProcess, windows: Windows, text: str
) -> None:
    run_sql(
        hub.database,
        f'CREATE TABLE "{text}"("{text}" TEXT PRIMARY KEY, value)',
    )
    page = console(windows, hub)
    run_sql(hub.database, f'INSERT INTO "{text}" VALUES (?1, ?1)', parameters=[text])
    newest = changes(page).first
    expect(newest.locator("b")).to_have_text(text)
    expect(newest.locator("dt")).to_have_text([text, "value"])
    expect(newest.locator("ins")).to_have_text([json.dumps(text)] * 2)
    expect(
        page.get_by_role("combobox", name="Table").locator("option").filter(has_text=text)
    ).to_have_count(1)
    assert page.locator("#changes :is(script, img)").count() == 0
    assert page.evaluate("window.hit") is None


def test_large_values_are_folded(demo: HubProcess, windows: Windows) -> None:
    page = console(windows, demo, locale="en-US")
    add(demo, "a")
    run_sql(demo.database, "UPDATE todos SET title = hex(zeroblob(500000)) WHERE id = 'a'")
    value = changes(page).first.locator("ins details")
    expect(value.locator("summary")).to_contain_text("(1,000,002 characters)")
    assert len(changes(page).first.inner_text()) < 400
    value.locator("summary").click()
    expect(value.locator(".whole")).to_contain_text("the first 10,000 of them")
    assert len(value.inner_text()) < 11_000


def test_the_last_two_hundred_are_kept(demo: HubProcess, windows: Windows) -> None:
    page = console(windows, demo)
    many = ", ".join(f"('n{n}', 'n{n}', 0, 0, 0, 0)" for n in range(1_000))
    run_sql(demo.database, f"INSERT INTO todos VALUES {many}")
    expect(changes(page).first).to_contain_text('id = "n999"')
    expect(changes(page)).to_have_count(SHOWN_MAX)
    expect(changes(page).last).to_contain_text('id = "n800"')


def test_the_list_stands_still_when_asked_to(demo: HubProcess, windows: Windows) -> None:
    page = console(windows, demo)
    add(demo, "before")
    expect(changes(page).first).to_contain_text('"before"')
    count = changes(page).count()
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    add(demo, "one", "two")
    expect(page.get_by_text("2 newer changes. Resume shows them.")).to_be_visible()
    expect(changes(page)).to_have_count(count)
    page.get_by_role("button", name="Resume").click()
    expect(changes(page)).to_have_count(count + 2)
    expect(changes(page).first).to_contain_text('"two"')
    expect(page.get_by_text("newer change")).to_have_count(0)

    # And while one reads further down.
    add(demo, *(f"t{n}" for n in range(30)))
    expect(changes(page).first).to_contain_text('"t29"')
    page.locator("#scroller").evaluate("(list) => list.scrollTo(0, 300)")
    place = changes(page).nth(5).bounding_box()
    add(demo, "three")
    expect(page.get_by_text("1 newer change. Scroll up to see them.")).to_be_visible()
    assert changes(page).nth(5).bounding_box() == place
    page.locator("#scroller").evaluate("(list) => list.scrollTo(0, 0)")
    expect(changes(page).first).to_contain_text('"three"')


def test_one_table_can_be_looked_at(demo: HubProcess, windows: Windows) -> None:
    add(demo, "milk")
    run_sql(demo.database, "INSERT INTO users VALUES ('u', 'Ann', 'a@example.org', 0)")
    page = console(windows, demo)
    # What was there lately is shown at once.
    expect(changes(page).first).to_contain_text("users")
    expect(changes(page).nth(1)).to_contain_text('"milk"')
    page.get_by_role("combobox", name="Table").select_option("users")
    expect(changes(page)).to_have_count(1)
    add(demo, "bread")
    run_sql(demo.database, "UPDATE users SET name = 'Anna'")
    expect(changes(page)).to_have_count(2)
    expect(changes(page).first.locator("ins")).to_have_text(['"Anna"'])
    wait_for(lambda: demo.status()["subscribers"]["byTable"].get("users") == 1, "one narrow stream")
    page.get_by_role("combobox", name="Table").select_option("all")
    expect(changes(page).nth(1)).to_contain_text('"bread"')


def test_a_break_of_history_is_told(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = console(windows, hub)
    run_sql(hub.database, "INSERT INTO todos(id) VALUES ('a')")
    expect(changes(page).first).to_contain_text('"a"')
    epoch = hub.status()["epoch"]
    hub.stop()
    for suffix in ("-cdchub", "-cdchub-wal", "-cdchub-shm"):
        beside(hub.database, suffix).unlink(missing_ok=True)
    hub.start()
    expect(changes(page).first).to_have_text("History has a break here (epoch).")
    expect(fact(page, "Epochs and resets", "epoch")).not_to_have_text(epoch)
    expect(fact(page, "Epochs and resets", "resets told")).to_have_text("1")
    run_sql(hub.database, "INSERT INTO todos(id) VALUES ('b')")
    expect(changes(page).first).to_contain_text('"b"')


# Numbers.


def test_the_numbers_are_those_of_the_hub(demo: HubProcess, windows: Windows) -> None:
    page = console(windows, demo)
    expect(fact(page, "Subscribers", "over SSE")).to_have_text("1")
    expect(fact(page, "Subscriptions by table", "all tables")).to_have_text("1")
    expect(page.get_by_role("region", name="Rooms")).to_contain_text("nobody is in a room")

    ann = enter(windows, demo.url, "ann", "den")
    enter(windows, demo.url, "bob", "den")
    say(ann, "hello")
    expect(fact(page, "Subscribers", "over WebSocket")).to_have_text("2")
    expect(page.locator("#subscribers")).to_have_text("3")
    expect(fact(page, "Subscriptions by table", "messages")).to_have_text("2")
    expect(fact(page, "Rooms", "den")).to_have_text("2 here, 2 subscriptions")
    status = demo.status()
    expect(fact(page, "Log and ring", "last LSN")).to_have_text(str(status["headLsn"]))
    expect(fact(page, "Epochs and resets", "epoch")).to_have_text(status["epoch"])
    expect(fact(page, "Lag of the slowest", "capture")).to_have_text("running")
    expect(page.locator("#lag")).to_have_text("0 changes")
    expect(page.get_by_role("region", name="Warnings")).to_contain_text("sessions")
    expect(page.get_by_role("region", name="Outcomes")).to_contain_text("opened")


def test_changes_per_second_are_counted(demo: HubProcess, windows: Windows) -> None:
    page = console(windows, demo)
    expect(page.locator("#rate")).to_have_text("0")
    many = ", ".join(f"('n{n}', 'n{n}', 0, 0, 0, 0)" for n in range(500))
    run_sql(demo.database, f"INSERT INTO todos VALUES {many}")
    expect(page.locator("#peak")).to_have_text(re.compile(r"^at most [1-9]"))
    tall = page.locator("#graph rect").evaluate_all(
        "(bars) => bars.filter((bar) => Number(bar.getAttribute('height')) > 0).length"
    )
    assert 1 <= tall <= 3
    expect(page.get_by_role("img", name="Changes per second over the last minute")).to_be_visible()


def test_nobody_is_asked_while_nobody_looks(demo: HubProcess, windows: Windows) -> None:
    page = console(windows, demo)
    turn(page, "hidden")
    wait_for(lambda: demo.status()["subscribers"]["total"] == 0, "the stream to be let go")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    add(demo, *(f"t{n}" for n in range(60)))
    assert not asked
    turn(page, "visible")
    expect(changes(page).first).to_contain_text('"t59"')
    expect(changes(page).filter(has_text="changes were not looked at.")).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text("Live")
    assert asked


def turn(page: Page, state: str) -> None:
    """What a browser does when its window is covered; a headless one is never covered."""
    page.evaluate(
        """(state) => {
          Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        state,
    )


# Faults, and the look.


def test_a_restart_of_the_hub_loses_and_repeats_nothing(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = console(windows, demo)
    add(demo, "before")
    expect(changes(page).first).to_contain_text('"before"')
    count = changes(page).count()
    demo.kill()
    expect(page.get_by_role("status")).to_have_text(LOST)
    demo.start()
    add(demo, "after")
    expect(changes(page).first).to_contain_text('"after"')
    expect(changes(page)).to_have_count(count + 1)
    expect(page.get_by_role("status")).to_have_text("Live")


def test_a_hub_that_cannot_read_says_so(database: Path, windows: Windows) -> None:
    with HubProcess(database) as hub:
        page = console(windows, hub)
        database.rename(database.with_suffix(".away"))
        expect(page.get_by_role("alert")).to_contain_text("Changes are not delivered now: ")
        database.with_suffix(".away").rename(database)
        expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_easy_to_read_also_on_a_phone(demo: HubProcess, windows: Windows, scheme: str) -> None:
    page = console(windows, demo, color_scheme=scheme, **PHONE)
    add(demo, "w" * 100)
    run_sql(demo.database, "UPDATE todos SET title = 'x'", "DELETE FROM todos")
    expect(changes(page).filter(has_text="DELETE")).not_to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert_readable(page, at_least=40)
    assert_accessible(page)
