"""The dashboard's chart and its calm: bars, what they say, keyboard, and that nothing jumps."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Windows
from tests.browser.dashboard_page import activity, bars, card, now_ms, opened, place_order, refund
from tests.browser.test_appearance import PHONE, assert_readable
from tests.harness import HubProcess, run_sql

pytestmark = pytest.mark.needs("chromium")


def heights(page: Page) -> list[float]:
    """The bars' heights in pixels, when they have come to rest."""
    found: list[float] = bars(page).evaluate_all(
        """async (bars) => {
          await Promise.all(document.getAnimations()
            .filter((each) => each instanceof CSSTransition).map((each) => each.finished));
          return bars.map((bar) => bar.firstElementChild.getBoundingClientRect().height);
        }"""
    )
    return found


def test_each_series_is_measured_by_its_own_highest(shop: HubProcess, windows: Windows) -> None:
    page = opened(windows, shop)
    expect(bars(page)).to_have_count(14)
    # Dollars of the week: 11, 0, 0, 300, 0, 87.25, 1254.49; orders: 2, 0, 0, 1, 0, 2, 3.
    dollars = [11, 0, 0, 300, 0, 87.25, 1254.49]
    assert heights(page)[0::2] == pytest.approx([200 * each / 1254.49 for each in dollars], abs=1)
    assert heights(page)[1::2] == pytest.approx(
        [200 * each / 3 for each in (2, 0, 0, 1, 0, 2, 3)], abs=1
    )
    box = bars(page).first.bounding_box()
    assert box is not None
    assert box["width"] == 20
    style = "({ transitionProperty: what, transitionDuration: time, backgroundColor }) =>"
    for place, colour in ((0, "rgb(59, 130, 246)"), (1, "rgb(34, 197, 94)")):
        read = (
            f"(bar) => ({style} [what, time, backgroundColor])(getComputedStyle(bar.firstElementChild))"
        )
        assert bars(page).nth(place).evaluate(read) == ["height", "0.3s", colour]
    legend = page.get_by_role("list", name="Legend").get_by_role("listitem")
    expect(legend).to_have_text(["Revenue", "Orders"])

    for n in range(3):
        place_order(shop.database, f"n{n}", total=1, at_ms=now_ms() - 1)
    expect(bars(page).last).to_have_accessible_name(re.compile("6 orders"))
    assert heights(page)[1] == pytest.approx(200 * 2 / 6, abs=1)


def test_bars_say_what_they_stand_for(shop: HubProcess, windows: Windows) -> None:
    page = opened(windows, shop)
    expect(bars(page)).to_have_count(14)
    tips = page.locator(".tip").filter(visible=True)
    expect(tips).to_have_count(0)
    bars(page).nth(12).hover()
    expect(tips).to_have_text(["$1,254.49"])
    bars(page).nth(7).hover()
    expect(tips).to_have_text(["1 order"])
    # Also where there is no bar to be seen.
    bars(page).nth(3).hover()
    expect(tips).to_have_text(["0 orders"])
    page.keyboard.press("Escape")
    expect(tips).to_have_count(0)
    page.mouse.move(0, 0)

    # By keyboard: one stop, then arrows.
    page.get_by_label("Theme").focus()
    page.keyboard.press("Tab")
    expect(bars(page).first).to_be_focused()
    expect(tips).to_have_text(["$11.00"])
    page.keyboard.press("ArrowRight")
    expect(tips).to_have_text(["2 orders"])
    page.keyboard.press("End")
    expect(tips).to_have_text(["3 orders"])
    page.keyboard.press("ArrowRight")
    expect(bars(page).last).to_be_focused()
    place_order(shop.database, "new", at_ms=now_ms() - 1)
    expect(tips).to_have_text(["4 orders"])
    expect(bars(page).last).to_be_focused()
    page.keyboard.press("Home")
    expect(bars(page).first).to_be_focused()
    page.keyboard.press("Escape")
    expect(tips).to_have_count(0)
    expect(bars(page).first).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("region", name="Recent Activity")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(bars(page).first).to_be_focused()


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (768, 1), (769, 2), (1440, 2)])
def test_it_fits_every_width(shop: HubProcess, windows: Windows, width: int, columns: int) -> None:
    page = opened(windows, shop, viewport={"width": width, "height": 900})
    expect(activity(page)).to_have_count(12)
    for place in (0, 12, 13):
        bars(page).nth(place).hover()
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert page.evaluate(fits)
        tip = page.locator(".tip").filter(visible=True).bounding_box()
        assert tip is not None
        assert tip["x"] >= 0
        assert tip["x"] + tip["width"] <= width
    chart, feed = (page.locator(".body > section").nth(n).bounding_box() for n in (0, 1))
    assert chart is not None
    assert feed is not None
    if columns == 2:
        assert chart["y"] == feed["y"]
        assert chart["width"] == pytest.approx(2 * feed["width"], abs=1)
    else:
        assert chart["width"] == feed["width"]
        assert chart["y"] < feed["y"]
    total = page.locator("main > .body").bounding_box()
    assert total is not None
    assert total["width"] <= 1200
    cards = [box for box in boxes(page) if box is not None]
    assert all(box["width"] >= 200 for box in cards)


def boxes(page: Page) -> list[Any]:
    return [page.locator("dl > div").nth(n).bounding_box() for n in range(5)]


_SHIFTS = """() => {
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const nodes = entry.sources.map(({ node }) => node?.className || node?.nodeName);
      window.shifts.push({ value: entry.value, nodes });
    }
  }).observe({ type: "layout-shift", buffered: true });
}"""


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_jumps_from_the_first_paint_on(shop: HubProcess, windows: Windows, width: int) -> None:
    page = windows.new(viewport={"width": width, "height": 1400})
    page.add_init_script(f"({_SHIFTS})()")
    page.goto(f"{shop.url}/dashboard")
    expect(activity(page)).to_have_count(12)
    before = [boxes(page), *(page.locator(".body > section").nth(n).bounding_box() for n in (0, 1))]
    for n in range(12):
        place_order(shop.database, f"n{n}", total=99_999, at_ms=now_ms() - 1)
    refund(shop.database, "o5")
    run_sql(shop.database, "DELETE FROM sessions")
    expect(card(page, "Active Now")).to_have_text("0")
    expect(activity(page)).to_have_count(20)
    expect(bars(page).last).to_have_accessible_name(re.compile("15 orders"))
    after = [boxes(page), *(page.locator(".body > section").nth(n).bounding_box() for n in (0, 1))]
    assert after == before
    # The list makes room for what is new; everything else stays where it was.
    moved = [node for shift in page.evaluate("window.shifts") for node in shift["nodes"]]
    assert [node for node in moved if node not in MAY_MOVE] == []


# In the list of deeds; the digits of a number and the bars of the chart grow in their own places. The
# status, alone at its edge, becomes as short as its word.
MAY_MOVE = {
    "pill",
    "signup", "order", "refund", "order new", "refund new", "signup new",
    "mark", "deed", "amount", "soft", "fill", "tip", "#text",
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_it_is_easy_to_read(shop: HubProcess, windows: Windows, scheme: str) -> None:
    page = opened(windows, shop, color_scheme=scheme)
    expect(activity(page)).to_have_count(12)
    bars(page).first.focus()
    assert_readable(page, at_least=40)


def test_a_phone_reads_a_bar_by_a_tap(shop: HubProcess, windows: Windows) -> None:
    page = opened(windows, shop, **PHONE)
    bars(page).nth(6).tap()
    expect(page.locator(".tip").filter(visible=True)).to_have_text(["$300.00"])
