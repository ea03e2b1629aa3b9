"""Takes pictures of the pages of a real `cdchub demo`, in Debian's Chromium, from the root.

`python -m docs.screenshots` takes those that the README shows; `python -m docs.screenshots FOLDER` all
pages in all sizes and both themes, to look at.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.todo_page import put, sqlite3_shell, wait_until_still
from tests.harness import HubProcess, find_chromium

IMAGES = Path(__file__).parent / "images"
IMAGE_BYTES_MAX = 200_000
SIZES = {"phone": (390, 844), "desktop": (1440, 900)}
THEMES = ("light", "dark")
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars")

TODOS = (
    ("Book the room for Thursday", 1),
    ("Send the invoice to Ada", 1),
    ("Water the plants", 0),
    ("Call the dentist about the appointment in December", 0),
    ("Read the chapter on write-ahead logging", 0),
    ("Buy milk, bread and coffee", 0),
)
# Shown while the demo's own traffic moves them.
OTHER_PAGES = {
    "index": "/",
    "dashboard": "/dashboard",
    "chat": "/chat?room=lobby&user=ada",
    "console": "/console",
}
IN_README = ("dashboard-desktop-light", "chat-desktop-dark", "console-desktop-light")
MOVED_LSN = 10
BY_SHELL = "Written with the sqlite3 shell"


def main() -> None:
    parser = argparse.ArgumentParser(description="takes pictures of the demo's pages")
    parser.add_argument("folder", nargs="?", type=Path, help="all of them, into this folder")
    wanted: Path | None = parser.parse_args().folder
    images = wanted or IMAGES
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        database = Path(folder) / "cdchub-demo.db"
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM))
        with HubProcess(database, command=["demo", "--quiet"], cwd=Path(folder)) as hub:
            put(database, *({"title": title, "completed": completed} for title, completed in TODOS))
            if wanted:
                take(browser, hub, {"todos": "/todos"}, images, also=has_all_todos)
            else:
                save(images / "todos-two-windows.png", two_windows(browser, hub))
        with HubProcess(database, command=["demo"], cwd=Path(folder)) as hub:
            # Until the demo's people have done something of everything.
            hub.wait_for_lsn(MOVED_LSN)
            only = None if wanted else IN_README
            take(browser, hub, OTHER_PAGES, images, only=only, also=has_numbers)
        browser.close()


def take(
    browser: Browser,
    hub: HubProcess,
    pages: Mapping[str, str],
    images: Path,
    *,
    only: Sequence[str] | None = None,
    also: Callable[[Page], None] = lambda _: None,
) -> None:
    """Each page in each size and theme. `also` waits for what must be there besides "Live"."""
    for (name, path), size, theme in product(pages.items(), SIZES, THEMES):
        picture = f"{name}-{size}-{theme}"
        if only is not None and picture not in only:
            continue
        page = open_page(browser, hub, path, size, theme)
        expect(page.get_by_role("status").first).to_have_text("Live")
        also(page)
        wait_until_still(page)
        save(images / f"{picture}.png", page.screenshot())
        page.context.close()


def has_numbers(page: Page) -> None:
    """The console knows a rate when it has asked twice."""
    expect(page.get_by_text("–", exact=True)).to_have_count(0)


def has_all_todos(page: Page) -> None:
    expect(page.get_by_role("listitem")).to_have_count(len(TODOS))


def open_page(browser: Browser, hub: HubProcess, path: str, size: str, theme: Any) -> Page:
    width, height = SIZES[size]
    touch = size == "phone"
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=theme,
        has_touch=touch,
        is_mobile=touch,
    )
    page = context.new_page()
    page.goto(hub.url + path)
    return page


def two_windows(browser: Browser, hub: HubProcess) -> bytes:
    """Two browsers and a shell's change in both, side by side."""
    windows = [
        browser.new_context(viewport={"width": 620, "height": 680}, color_scheme=theme).new_page()
        for theme in ("light", "dark")
    ]
    for window in windows:
        window.goto(f"{hub.url}/todos")
        expect(window.get_by_role("listitem")).to_have_count(len(TODOS))
    windows[0].get_by_role("checkbox", name="Water the plants").click()
    sqlite3_shell(hub.database, f"INSERT INTO todos VALUES ('shell', '{BY_SHELL}', 0, 99, 0, 0)")
    for window in windows:
        expect(window.get_by_role("checkbox", name=BY_SHELL)).to_be_visible()
        expect(window.get_by_role("checkbox", name="Water the plants")).to_be_checked()
        wait_until_still(window)
    pictures = [base64.b64encode(window.screenshot()).decode() for window in windows]

    # The browser joins them, which spares an image library.
    frame = browser.new_page(viewport={"width": 1304, "height": 728})
    frame.set_content(
        "<style>body { margin: 24px; display: flex; gap: 16px; background: #c9d1dc }"
        "img { border-radius: 10px; box-shadow: 0 2px 10px #0004 }</style>"
        + "".join(f"<img src='data:image/png;base64,{picture}'>" for picture in pictures)
    )
    return frame.screenshot()


def save(path: Path, picture: bytes) -> None:
    assert len(picture) <= IMAGE_BYTES_MAX, f"{path} has {len(picture)} bytes"
    path.write_bytes(picture)
    print(f"{path}: {len(picture)} bytes")


if __name__ == "__main__":
    main()
