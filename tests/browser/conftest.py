"""A real Chromium, and hubs for it to look at.

Playwright for Python only drives it: the browser is Debian's, nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.browser import dashboard_page
from tests.browser.relay import Relay
from tests.harness import PATIENCE_S, HubProcess, find_chromium

_ARGUMENTS = (
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NETWORK_ERRORS = ("Failed to load resource: ", "WebSocket connection to ")


# For the package and no longer: Playwright keeps an event loop in this thread, and asyncio tests
# elsewhere need it free.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_S * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=list(_ARGUMENTS))
        yield chromium
        chromium.close()


class Windows:
    """Browser windows that know nothing of each other, and what went wrong in their consoles."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._errors: list[str] = []
        # Set where a test takes the network away or asks for what isn't there.
        self.network_errors_expected = False

    def new(self, **options: Any) -> Page:
        context = self._browser.new_context(**options)
        context.set_default_timeout(PATIENCE_S * 1000)
        page = context.new_page()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        return page

    def open(self, url: str, **options: Any) -> Page:
        page = self.new(**options)
        page.goto(url)
        return page

    def open_live(self, url: str, **options: Any) -> Page:
        """A page that shows the present rows."""
        page = self.open(url, **options)
        expect(page.get_by_role("status")).to_have_text("Live")
        expect(page.get_by_text(re.compile(r"^\d+ items? left$"))).to_be_visible()
        return page

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(message.text)

    def close(self) -> None:
        for context in self._browser.contexts:
            context.close()
        if self.network_errors_expected:
            self._errors = [e for e in self._errors if not e.startswith(_NETWORK_ERRORS)]
        assert not self._errors, f"the console says: {self._errors}"


@pytest.fixture
def windows(browser: Browser) -> Iterator[Windows]:
    opened = Windows(browser)
    yield opened
    opened.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[HubProcess]:
    """`cdchub demo --quiet`, ready, with its database beside it."""
    database = tmp_path / "cdchub-demo.db"
    with HubProcess(database, command=["demo", "--quiet"], cwd=tmp_path) as process:
        yield process


@pytest.fixture
def relay(demo: HubProcess) -> Iterator[Relay]:
    """The way to `demo` for a test that holds or cuts its streams."""
    with Relay(demo.port) as carrier:
        yield carrier


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> str:
    """The time zone of `shop`, where it is about noon."""
    name = dashboard_page.noon_zone()
    monkeypatch.setenv("TZ", name)
    return name


@pytest.fixture
def shop(zone: str, tmp_path: Path) -> Iterator[HubProcess]:
    """`cdchub demo --quiet` with the week of `dashboard_page.fill`."""
    database = tmp_path / "cdchub-demo.db"
    with HubProcess(database, command=["demo", "--quiet"], cwd=tmp_path) as process:
        dashboard_page.fill(database)
        yield process
