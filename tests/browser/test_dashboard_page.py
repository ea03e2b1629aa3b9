"""The dashboard as its users meet it: VIEWS, "Dashboard"."""

from __future__ import annotations

import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Windows
from tests.browser.dashboard_page import (
    DAY_MS,
    EVIL,
    HOUR_MS,
    MINUTE_MS,
    activity,
    bars,
    card,
    expect_agreement,
    next_midnight_ms,
    now_ms,
    opened,
    place_order,
    refund,
)
from tests.harness import HubProcess, make_database, run_sql
from tests.test_source_faults import backup

pytestmark = pytest.mark.needs("chromium")

# Numbers.


def test_it_says_what_the_rows_say_live_and_after_a_reload(
    shop: HubProcess, zone: str, windows: Windows
) -> None:
    page = opened(windows, shop)
    expect(page).to_have_title("Dashboard - Live Metrics")
    expect(page.get_by_role("heading", level=1)).to_have_text("Dashboard")
    expect_agreement(page, shop.database, zone)
    expect(card(page, "Revenue Today")).to_have_text("$1,254.49")

    place_order(shop.database, "new", total=0.01, at_ms=now_ms() - 1)
    refund(shop.database, "o1")
    run_sql(
        shop.database,
        f"INSERT INTO users VALUES ('di', 'Di', 'di@example.org', {now_ms()})",
        f"UPDATE sessions SET last_active = {now_ms()} WHERE token = 's3'",
        "DELETE FROM sessions WHERE token = 's1'",
        "DELETE FROM orders WHERE id = 'o5'",
        "UPDATE orders SET id = 'renamed', total = 80.255 WHERE id = 'o3'",
    )
    expect_agreement(page, shop.database, zone)
    expect(card(page, "Revenue Today")).to_have_text("$20.00")
    page.reload()
    expect_agreement(page, shop.database, zone)


def test_an_older_copy_that_is_restored_is_what_counts(
    shop: HubProcess, zone: str, windows: Windows, tmp_path: Path
) -> None:
    page = opened(windows, shop)
    copy = tmp_path / "copy.db"
    backup(shop.database, copy)
    place_order(shop.database, "lost", total=100, at_ms=now_ms() - 1)
    refund(shop.database, "o0")
    expect_agreement(page, shop.database, zone)
    backup(copy, shop.database)
    expect_agreement(page, shop.database, zone)
    expect(card(page, "Revenue Today")).to_have_text("$1,254.49")
    place_order(shop.database, "after", total=100, at_ms=now_ms() - 1)
    expect_agreement(page, shop.database, zone)
    page.reload()
    expect_agreement(page, shop.database, zone)


def test_a_new_day_begins_at_the_hubs_midnight(shop: HubProcess, zone: str, windows: Windows) -> None:
    page = windows.new()
    page.clock.install()
    page.goto(f"{shop.url}/dashboard")
    expect_agreement(page, shop.database, zone)
    expect(card(page, "Orders Today")).not_to_have_text("0")

    leap_ms = next_midnight_ms(zone) - now_ms() + 5 * MINUTE_MS
    page.clock.fast_forward(leap_ms)
    expect_agreement(page, shop.database, zone, at_ms=now_ms() + leap_ms)
    expect(card(page, "Orders Today")).to_have_text("0")
    expect(card(page, "Active Now")).to_have_text("0")
    place_order(shop.database, "first", total=3, at_ms=now_ms() + leap_ms - MINUTE_MS)
    expect_agreement(page, shop.database, zone, at_ms=now_ms() + leap_ms)
    expect(card(page, "Revenue Today")).to_have_text("$3.00")


def test_who_is_not_seen_for_a_quarter_of_an_hour_is_gone(
    shop: HubProcess, zone: str, windows: Windows
) -> None:
    page = windows.new()
    page.clock.install()
    page.goto(f"{shop.url}/dashboard")
    expect(card(page, "Active Now")).to_have_text("2")
    page.clock.fast_forward(13 * MINUTE_MS)
    expect(card(page, "Active Now")).to_have_text("1")
    page.clock.fast_forward(2 * MINUTE_MS)
    expect(card(page, "Active Now")).to_have_text("0")


def test_the_readers_zone_and_clock_do_not_matter(
    shop: HubProcess, zone: str, windows: Windows
) -> None:
    page = windows.new(timezone_id="Pacific/Kiritimati", locale="en-US")
    page.clock.install(time=datetime(2017, 7, 14))
    page.goto(f"{shop.url}/dashboard")
    expect_agreement(page, shop.database, zone)
    expect(page.get_by_text("Days begin at midnight in")).to_contain_text(zone)


def test_a_zone_that_the_browser_does_not_know(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where a zone was named anew since the browser was made.
    zones = tmp_path / "zones"
    (zones / "Europe").mkdir(parents=True)
    shutil.copy("/usr/share/zoneinfo/Europe/Zurich", zones / "Europe" / "Newtown")
    monkeypatch.setenv("PYTHONTZPATH", str(zones))
    monkeypatch.setenv("TZ", "Europe/Newtown")
    database = tmp_path / "cdchub-demo.db"
    with HubProcess(database, command=["demo", "--quiet"], cwd=tmp_path) as hub:
        page = opened(windows, hub)
        expect(page.get_by_role("alert")).to_contain_text("the hub's time zone, Europe/Newtown")
        expect(page.get_by_text("Days begin at midnight in UTC.")).to_be_visible()
        expect(card(page, "Total Users")).to_have_text("48")


def test_without_rows_everything_is_zero(shop: HubProcess, zone: str, windows: Windows) -> None:
    page = opened(windows, shop)
    run_sql(shop.database, *(f"DELETE FROM {table}" for table in ("users", "orders", "sessions")))
    expect_agreement(page, shop.database, zone)
    expect(page.get_by_text("Nothing in the last seven days.")).to_be_visible()
    expect(activity(page)).to_have_count(0)


# How numbers move.

_COLLECT = """(number) => {
  window.shown = [];
  new MutationObserver(() => window.shown.push(number.textContent))
    .observe(number, { childList: true, characterData: true, subtree: true });
}"""


def test_numbers_glide_to_where_they_go(shop: HubProcess, windows: Windows) -> None:
    page = windows.new()
    page.clock.install()
    page.goto(f"{shop.url}/dashboard")
    revenue = card(page, "Revenue Today")
    expect(revenue).to_have_text("$1,254.49")
    page.clock.pause_at(datetime.now() + timedelta(seconds=10))
    place_order(shop.database, "big", total=1_000, at_ms=now_ms() - 1)
    # The chart is there at once, and with it the beginning of the way.
    expect(bars(page).nth(12)).to_have_accessible_name(re.compile("2,254.49"))
    revenue.evaluate(_COLLECT)
    page.clock.run_for(500)
    shown = cents(revenue.text_content())
    # Cubic out has seven eighths of the way behind it at half time; a frame is 16 ms.
    assert 0.86 < (shown - 125_449) / 100_000 < 0.88
    page.clock.run_for(600)
    expect(revenue).to_have_text("$2,254.49")
    steps = [cents(text) for text in page.evaluate("window.shown")]
    assert len(steps) > 20
    assert steps == sorted(steps)


def cents(text: str | None) -> int:
    return round(float((text or "").replace("$", "").replace(",", "")) * 100)


def test_reduced_motion_means_none(shop: HubProcess, windows: Windows) -> None:
    page = opened(windows, shop, reduced_motion="reduce")
    revenue = card(page, "Revenue Today")
    expect(revenue).to_have_text("$1,254.49")
    revenue.evaluate(_COLLECT)
    place_order(shop.database, "big", total=1_000, at_ms=now_ms() - 1)
    expect(revenue).to_have_text("$2,254.49")
    assert page.evaluate("window.shown") == ["$2,254.49"]
    dot = "getComputedStyle(document.querySelector('.active dt'), '::before').animationName"
    assert page.evaluate(dot) == "none"
    bar = page.locator(".fill").first
    assert bar.evaluate("(fill) => getComputedStyle(fill).transitionProperty") == "none"


# Activity.


def test_deeds_are_listed_newest_first(shop: HubProcess, windows: Windows) -> None:
    page = opened(windows, shop)
    expect(activity(page)).to_have_text(
        [
            re.compile(r"^\$\s*Ada placed an order\s*\$19\.99\s*5m ago$"),
            re.compile(rf"^\+\s*{re.escape(EVIL)} signed up\s*2h ago$"),
            re.compile(r"^\$\s*Bo placed an order\s*\$1,234\.50\s*2h ago$"),
            re.compile(rf"^−\s*{re.escape(EVIL)} was refunded\s*\$50\.00\s*3h ago$"),
            re.compile(rf"^\$\s*{re.escape(EVIL)} placed an order\s*\$50\.00\s*3h ago$"),
            re.compile(r"Ada placed an order\s*\$80\.25\s*\w{3} \d+$"),
            re.compile(r"Somebody placed an order\s*\$7\.00"),
            re.compile(r"Bo placed an order\s*\$300\.00"),
            re.compile(r"Bo signed up"),
            re.compile(r"Ada was refunded\s*\$10\.00"),
            re.compile(r"Ada placed an order\s*\$10\.00"),
            re.compile(r"Ada placed an order\s*\$11\.00"),
        ]
    )
    amount = activity(page).first.locator("strong")
    expect(amount).to_have_text("$19.99")
    assert amount.evaluate("(amount) => Number(getComputedStyle(amount).fontWeight)") >= 600


def test_what_happens_now_is_on_top_and_so_it_is_after_a_reload(
    shop: HubProcess, windows: Windows
) -> None:
    page = opened(windows, shop)
    expect(activity(page)).to_have_count(12)
    refund(shop.database, "o5")
    # Its order is three days old, but the refund is not.
    top = re.compile(r"Bo was refunded\s*\$300\.00\s*Just now")
    expect(activity(page).first).to_have_text(top)
    place_order(shop.database, "next", at_ms=now_ms())
    both = [re.compile(r"Ada placed an order\s*\$5\.00\s*Just now"), top]
    expect(activity(page).nth(0)).to_have_text(both[0])
    expect(activity(page).nth(1)).to_have_text(both[1])
    page.reload()
    expect(activity(page).nth(0)).to_have_text(both[0])
    expect(activity(page).nth(1)).to_have_text(both[1])
    run_sql(shop.database, "DELETE FROM orders WHERE id = 'o5'")
    expect(activity(page).filter(has_text="Bo was refunded")).to_have_count(0)


def test_twenty_deeds_and_their_age_by_the_clock(shop: HubProcess, windows: Windows) -> None:
    for n in range(5):
        place_order(shop.database, f"x{n}", at_ms=now_ms() - DAY_MS)
        place_order(shop.database, f"y{n}", at_ms=now_ms())
    page = windows.new()
    page.clock.install()
    page.goto(f"{shop.url}/dashboard")
    expect(activity(page)).to_have_count(20)
    expect(activity(page).first).to_contain_text("Just now")
    page.clock.fast_forward(3 * MINUTE_MS)
    expect(activity(page).first).to_contain_text("3m ago")
    page.clock.fast_forward(3 * HOUR_MS)
    expect(activity(page).first).to_contain_text("3h ago")


# What is not for everybody, and what is not there.


def test_emails_stay_home(shop: HubProcess, windows: Windows) -> None:
    page = windows.new()
    # Then the page itself has the connection, where it can be listened to.
    page.add_init_script("delete window.SharedWorker")
    frames: list[str] = []
    page.on("websocket", lambda ws: ws.on("framereceived", lambda text: frames.append(str(text))))
    page.goto(f"{shop.url}/dashboard")
    expect(activity(page).first).to_contain_text("Ada")
    run_sql(shop.database, "UPDATE users SET name = 'Ada L.', email = 'l@example.org' WHERE id = 'ada'")
    expect(activity(page).first).to_contain_text("Ada L.")
    assert any("Ada L." in frame for frame in frames)
    assert not any("@example.org" in frame for frame in frames)


def test_without_the_tables_it_says_what_is_missing(tmp_path: Path, windows: Windows) -> None:
    windows.network_errors_expected = True
    database = make_database(tmp_path / "app.db", "CREATE TABLE notes(id INTEGER PRIMARY KEY)")
    with HubProcess(database) as hub:
        page = windows.open(f"{hub.url}/dashboard")
        expect(page.get_by_role("alert")).to_have_text(
            "This database has no captured tables called users, orders or sessions. "
            "Run “cdchub demo” for a database that has it."
        )
        expect(card(page, "Total Users")).to_be_hidden()
