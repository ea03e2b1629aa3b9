"""axe-core on every page: nothing that seriously keeps anybody from using it."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Windows
from tests.browser.test_appearance import PHONE
from tests.browser.todo_page import (
    add_box,
    delete_button,
    problem,
    put,
    row,
    titles,
    undo_button,
    wait_until_still,
)
from tests.harness import HubProcess

pytestmark = pytest.mark.needs("chromium")

SERIOUS = ("serious", "critical")


def assert_accessible(page: Page) -> None:
    wait_until_still(page)  # a row that fades in has little contrast for a moment
    answer = Axe().run(page).response
    assert answer["testEngine"]["name"] == "axe-core"
    assert answer["passes"]
    findings = [
        f"{found['id']}: {found['help']}: {[node['html'] for node in found['nodes']]}"
        for found in answer["violations"]
        if found["impact"] in SERIOUS
    ]
    assert not findings


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_on_any_page(
    demo: HubProcess, windows: Windows, scheme: str, device: dict[str, object]
) -> None:
    page = windows.open(demo.url, color_scheme=scheme, **device)
    links = page.get_by_role("navigation", name="Pages").get_by_role("link").all()
    there_are = [path for link in links if (path := str(link.get_attribute("href")))]
    assert "/todos" in there_are
    for path in ("/", *(path for path in there_are if demo.get(path).status == 200)):
        page.goto(demo.url + path)
        expect(page.get_by_role("status").first).to_have_text("Live")
        assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_while_one_works(demo: HubProcess, windows: Windows, scheme: str) -> None:
    windows.network_errors_expected = True
    put(demo.database, "milk", {"title": "bread", "completed": 1}, "eggs", "salt")
    page = windows.open_live(f"{demo.url}/todos", color_scheme=scheme)
    titles(page).first.dblclick()
    assert_accessible(page)
    page.keyboard.press("Escape")
    row(page, "eggs").hover()
    delete_button(page, "eggs").click()
    expect(undo_button(page)).to_be_visible()
    assert_accessible(page)
    demo.kill()
    expect(page.get_by_role("status")).to_have_text(re.compile("Connection lost"))
    add_box(page).fill("pepper")
    add_box(page).press("Enter")
    expect(problem(page)).not_to_have_text("")
    assert_accessible(page)
    page.goto("about:blank")
    demo.start()
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{demo.url}/no/such/page")
    assert_accessible(page)
