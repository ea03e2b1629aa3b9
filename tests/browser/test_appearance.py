"""What can be measured of a calm look: status, themes, contrast, and that nothing jumps."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from cdchub.views.pages import STATIC
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.browser.todo_page import add_box, problem, put, titles, wait_until_still
from tests.harness import HubProcess, run_sql

pytestmark = pytest.mark.needs("chromium")

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
CONNECTING, LIVE = "Connecting…", "Live"
LOST = "Connection lost. Reconnecting…"


def test_the_status_says_how_the_page_is_connected(relay: Relay, windows: Windows) -> None:
    windows.network_errors_expected = True
    relay.hold()
    page = windows.open(f"{relay.url}/todos")
    status = page.get_by_role("status")
    expect(status).to_have_text(CONNECTING)
    assert tone(page) == "grey"
    relay.release()
    expect(status).to_have_text(LIVE)
    assert tone(page) == "green"
    relay.hold()
    relay.cut()
    expect(status).to_have_text(LOST)
    assert tone(page) == "orange"


def tone(page: Page) -> str:
    """What a person would call the colour of the status."""
    colour = page.get_by_role("status").evaluate("(pill) => getComputedStyle(pill).color")
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    if max(red, green, blue) - min(red, green, blue) < 40:
        return "grey"
    if green > red and green > blue:
        return "green"
    return "orange" if red > green > blue else colour


def test_all_pages_have_the_same_header() -> None:
    headers = {}
    for page in sorted(STATIC.glob("*.html")):
        found = re.search(r'<header class="site">.*?</header>', page.read_text(), re.DOTALL)
        assert found, f"{page.name} has no header"
        headers[page.name] = found[0].replace(' aria-current="page"', "")
        # Each names itself, and only itself.
        assert found[0].count("aria-current") == 1
        current = re.search(r'href="/(\w*)" aria-current', found[0])
        assert current
        assert (current[1] or "index") == page.stem
    assert len(headers) >= 2
    assert len(set(headers.values())) == 1


# How the todo page moves.

_NOTE_ANIMATIONS = """() => {
  window.animations = [];
  const animate = Element.prototype.animate;
  Element.prototype.animate = function (frames, options) {
    const row = this.closest(".todo");
    if (row) animations.push([row.querySelector(".title").textContent, options.duration, frames]);
    return animate.call(this, frames, options);
  };
}"""


def test_rows_glide_to_their_places(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread", "eggs")
    page = windows.open_live(f"{demo.url}/todos")
    expect(page.get_by_role("main")).to_have_css("width", "600px")
    page.evaluate(_NOTE_ANIMATIONS)
    run_sql(demo.database, "UPDATE todos SET position = 9 WHERE title = 'milk'")
    expect(titles(page)).to_have_text(["bread", "eggs", "milk"])
    noted = page.evaluate("animations")
    assert {title for title, _, _ in noted} == {"milk", "bread", "eggs"}
    assert {duration for _, duration, _ in noted} == {200}
    wait_until_still(page)
    page.evaluate("animations.length = 0")
    run_sql(demo.database, "DELETE FROM todos WHERE title = 'eggs'")
    run_sql(demo.database, "INSERT INTO todos VALUES ('s', 'salt', 0, 10, 0, 0)")
    expect(titles(page)).to_have_text(["bread", "milk", "salt"])
    noted = page.evaluate("animations")
    assert {title for title, _, _ in noted} == {"eggs", "milk", "salt"}
    assert {duration for _, duration, _ in noted} == {200}
    # What has slid out is gone.
    expect(page.locator(".ghost")).to_have_count(0)


def test_nothing_moves_for_who_wants_it_still(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos", reduced_motion="reduce")
    page.evaluate(_NOTE_ANIMATIONS)
    run_sql(demo.database, "UPDATE todos SET position = 9 WHERE title = 'milk'")
    run_sql(demo.database, "INSERT INTO todos VALUES ('s', 'salt', 0, 10, 0, 0)")
    run_sql(demo.database, "DELETE FROM todos WHERE title = 'bread'")
    expect(titles(page)).to_have_text(["milk", "salt"])
    assert page.evaluate("animations") == []
    assert page.evaluate("document.getAnimations()") == []


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_jumps_when_the_connection_or_a_request_fails(
    demo: HubProcess, relay: Relay, windows: Windows, width: int
) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", {"title": "bread", "completed": 0})
    page = windows.new(viewport={"width": width, "height": 844})
    relay.hold()
    page.goto(f"{relay.url}/todos")
    box, theme, rows = add_box(page), page.get_by_label("Theme"), page.get_by_role("list", name="Todos")
    relay.release()
    expect(titles(page)).to_have_text(["milk", "bread"])
    before = [each.bounding_box() for each in (box, theme, rows)]
    demo.kill()
    expect(page.get_by_role("status")).to_have_text(LOST)
    box.fill("eggs")
    box.press("Enter")
    expect(problem(page)).not_to_have_text("")
    assert [each.bounding_box() for each in (box, theme, rows)] == before


def test_clear_completed_appears_without_moving_the_rest(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, "milk", "bread")
    page = windows.open_live(f"{demo.url}/todos", **PHONE)
    fixed = (page.get_by_role("group", name="Show"), page.get_by_text("What is this?"))
    before = [each.bounding_box() for each in fixed]
    put(demo.database, "milk", {"title": "bread", "completed": 1})
    expect(page.get_by_role("button", name="Clear completed")).to_be_visible()
    assert [each.bounding_box() for each in fixed] == before


@pytest.mark.parametrize("path", ["/", "/todos", "/no/such/page"])
def test_a_phone_never_scrolls_sideways(demo: HubProcess, windows: Windows, path: str) -> None:
    windows.network_errors_expected = path == "/no/such/page"
    put(demo.database, "w" * 200, "A sentence of many words that has to be broken somewhere " * 3)
    page = windows.open(demo.url + path, **PHONE)
    if path == "/todos":
        expect(titles(page)).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_theme_is_chosen_once_and_kept(demo: HubProcess, windows: Windows) -> None:
    page = windows.open_live(f"{demo.url}/todos", color_scheme="light")
    root, select = page.locator("html"), page.get_by_label("Theme")
    expect(root).to_have_attribute("data-theme", "system")
    light = ground(page)
    select.select_option("Dark")
    expect(root).to_have_attribute("data-theme", "dark")
    dark = ground(page)
    assert dark != light

    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    expect(select).to_have_value("dark")
    assert ground(page) == dark
    # Another page of the same browser knows it too.
    page.goto(demo.url)
    expect(page.get_by_label("Theme")).to_have_value("dark")
    assert ground(page) == dark

    # "System" follows the system, whatever it says; a choice does not.
    page.emulate_media(color_scheme="dark")
    select.select_option("Light")
    assert ground(page) == light
    select.select_option("System")
    assert ground(page) == dark
    page.emulate_media(color_scheme="light")
    assert ground(page) == light


def ground(page: Page) -> str:
    colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return colour


# WCAG 2.2, 1.4.3: the contrast of every text that can be seen, opacity included.
_FAINT_TEXTS = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, under) =>
    [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  let measured = 0;
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const text = own ? element.textContent.trim() : element.placeholder ?? "";
    if (!text || element.disabled || !element.checkVisibility({ opacityProperty: true })) continue;
    const lineage = [];
    for (let e = element; e; e = e.parentElement) lineage.unshift(getComputedStyle(e));
    let background = [255, 255, 255];
    let opacity = 1;
    for (const style of lineage) {
      background = over(parse(style.backgroundColor), background);
      opacity *= Number(style.opacity);
    }
    const shown = own ? getComputedStyle(element) : getComputedStyle(element, "::placeholder");
    const colour = parse(shown.color);
    colour[3] *= opacity;
    const [dark, light] = [luminance(over(colour, background)), luminance(background)]
      .sort((a, b) => a - b);
    const contrast = (light + 0.05) / (dark + 0.05);
    measured += 1;
    if (contrast < 4.5) faint.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return { measured, faint };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_easy_to_read(demo: HubProcess, windows: Windows, scheme: str) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", {"title": "bread", "completed": 1})
    page = windows.open_live(f"{demo.url}/todos", color_scheme=scheme, has_touch=True, is_mobile=True)
    expect(titles(page)).to_have_count(2)
    assert_readable(page, at_least=12)
    demo.kill()
    expect(page.get_by_role("status")).to_have_text(LOST)
    add_box(page).fill("eggs")
    add_box(page).press("Enter")
    expect(problem(page)).not_to_have_text("")
    assert_readable(page, at_least=12)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/no/such/page"])
def test_other_pages_are_easy_to_read(
    demo: HubProcess, windows: Windows, path: str, scheme: str
) -> None:
    windows.network_errors_expected = path != "/"
    assert_readable(windows.open(demo.url + path, color_scheme=scheme), at_least=3)


def assert_readable(page: Page, *, at_least: int) -> None:
    wait_until_still(page)
    found = page.evaluate(_FAINT_TEXTS)
    assert found["measured"] >= at_least
    assert not found["faint"]
