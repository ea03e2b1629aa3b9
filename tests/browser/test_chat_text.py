"""What anybody may write: names, rooms and messages are shown as text, and only as text."""

from __future__ import annotations

import json
import re
import string

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat_page import (
    box,
    enter,
    expect_live,
    expect_stored,
    members,
    message,
    put,
    room_link,
    say,
    texts,
)
from tests.browser.conftest import Windows
from tests.browser.test_accessibility import assert_accessible
from tests.browser.test_appearance import PHONE, assert_readable
from tests.harness import HubProcess, run_sql

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture
def demo(demo: HubProcess) -> HubProcess:
    """Without what the demo's people have said before."""
    run_sql(demo.database, "DELETE FROM messages")
    return demo


HOSTILE = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "\"><svg onload='window.hit = 1'>",
    "javascript:window.hit=1",
    "</textarea><iframe srcdoc='<script>parent.hit = 1</script>'>",
    "&lt;b&gt; &amp; {{7*7}} ${7*7} %00 \\u003cscript\\u003e",
    "__proto__",
    "constructor",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_rooms_and_messages_are_text(
    demo: HubProcess, windows: Windows, text: str
) -> None:
    watcher = enter(windows, demo.url, "watcher", text)
    author = enter(windows, demo.url, text, text)
    box(author).press_sequentially("x")
    expect(watcher.get_by_text(f"{text} is typing…", exact=True)).to_be_visible()
    say(author, text)
    expect(texts(author)).to_have_text([text])
    # Written by another program, the same may be in any column.
    put(demo.database, [text], room=text, id=f"{text} 2", user_id=text)
    for page in (watcher, author):
        expect(texts(page)).to_have_text([text, text])
        expect(message(page, text).first.locator(".author")).to_have_text(text)
        expect(members(page)).to_have_count(2)
        expect(members(page).filter(has_text=text)).to_have_count(1)
        expect(page.get_by_role("heading", level=2).filter(has_text=text)).to_have_count(1)
        expect(room_link(page, text)).to_have_text(re.compile("^" + re.escape(text)))
        assert page.locator("#messages :is(script, img, svg, iframe, a)").count() == 0
        assert page.evaluate("window.hit") is None
    expect_stored(demo.database, [text, text], text)


def test_values_of_any_kind_are_shown(demo: HubProcess, windows: Windows) -> None:
    """Another program may write what is no text, and leave columns out."""
    run_sql(
        demo.database,
        "INSERT INTO messages(id, room, content) VALUES ('a', 'lobby', 'no author, no time')",
        "INSERT INTO messages VALUES ('b', 'lobby', 7, 42, 'yesterday')",
        "INSERT INTO messages VALUES ('c', 'lobby', NULL, NULL, 1e300)",
        "INSERT INTO messages VALUES ('d', 'lobby', 'eve', 'the last', 1)",
    )
    ann = enter(windows, demo.url, "ann")
    expect(texts(ann)).to_have_text(["no author, no time", "42", "", "the last"])


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("see https://example.org/a?b=c#d.", ["https://example.org/a?b=c#d"]),
        ("(https://example.org/x_(y))", ["https://example.org/x_(y)"]),
        ("HTTP://EXAMPLE.org, http://other.example!", ["HTTP://EXAMPLE.org", "http://other.example"]),
        ('"https://a.example/"<https://b.example/>', ["https://a.example/", "https://b.example/"]),
        ("https://münchen.example/straße", ["https://münchen.example/straße"]),
        ("javascript:alert(1) data:text/html,x file:///etc/passwd ftp://x.example //x.example", []),
        ("xhttps://a.example https:// http://[ https://)))", []),
        ("https://a.example/'onclick='alert(1)", ["https://a.example/'onclick='alert(1)"]),
    ],
)
def test_links_are_links(demo: HubProcess, windows: Windows, text: str, links: list[str]) -> None:
    ann = enter(windows, demo.url, "ann")
    say(ann, text)
    expect(texts(ann)).to_have_text([text])
    found = message(ann, text).get_by_role("link")
    expect(found).to_have_text(links)
    for link in found.all():
        expect(link).to_have_attribute("rel", "noopener noreferrer")
        expect(link).to_have_attribute("target", "_blank")
        assert str(link.evaluate("(a) => a.protocol")) in ("http:", "https:")
        assert link.evaluate("(a) => a.getAttributeNames().sort()") == ["href", "rel", "target"]


def test_a_long_message_is_folded(demo: HubProcess, windows: Windows) -> None:
    words = " ".join(f"word{n}" for n in range(2_000))[:9_900] + " https://example.org/" + "x" * 79
    assert len(words) == 10_000
    ann, bob = (enter(windows, demo.url, name, locale="en-US") for name in ("ann", "bob"))
    say(ann, words)
    more = bob.get_by_role("button", name="Show all 10,000 characters")
    expect(more).to_have_attribute("aria-expanded", "false")
    shown = texts(bob).inner_text()
    assert len(shown) < 1_000
    assert words.startswith(shown.removesuffix("…"))
    more.click()
    expect(texts(bob)).to_have_text(words)
    expect(message(bob, "word0").get_by_role("link")).to_have_count(1)
    bob.get_by_role("button", name="Show less").click()
    expect(texts(bob)).to_have_text(shown)
    expect_stored(demo.database, [words])

    # Many short lines are long too, and a link that is cut still leads where it did.
    say(ann, "\n".join("abcdefghijklmnopqrstuvwxyz"))
    expect(texts(bob).last).to_have_text("\n".join("abcdefghij") + "…", use_inner_text=True)
    link = "https://example.org/" + "y" * 3_000
    say(ann, link)
    expect(texts(bob).last.get_by_role("link")).to_have_attribute("href", link)
    assert len(texts(bob).last.inner_text()) < 1_000


def test_a_phone_shows_it_all(demo: HubProcess, windows: Windows) -> None:
    put(
        demo.database,
        ["w" * 300, "A sentence of many words. " * 20, "https://example.org/" + "z" * 300],
    )
    put(demo.database, ["other"], room="r" * 100)
    enter(windows, demo.url, "n" * 64)
    page = enter(windows, demo.url, "ann", **PHONE)
    expect(texts(page)).to_have_count(3)
    assert_no_scrolling_sideways(page)
    toggle = page.get_by_role("button", name="Rooms")
    expect(room_link(page, "help")).to_be_hidden()
    toggle.tap()
    expect(room_link(page, "r" * 100)).to_be_visible()
    assert_no_scrolling_sideways(page)
    room_link(page, "help").tap()
    expect(room_link(page, "help")).to_be_hidden()
    expect(page.get_by_role("heading", name="help")).to_be_visible()
    expect_live(page)
    bob = enter(windows, demo.url, "bob")
    say(bob, "psst")
    expect(toggle).to_have_accessible_name("Rooms 1 unread")


def assert_no_scrolling_sideways(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("document.getElementById('log').scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_name_is_easy_to_read(demo: HubProcess, windows: Windows, scheme: str) -> None:
    page = enter(windows, demo.url, "ann", color_scheme=scheme)
    for place, name in enumerate(string.ascii_lowercase):
        put(demo.database, [f"I am {name}"], id=f"id-{place}", user_id=f"{name}{place}")
    expect(texts(page)).to_have_count(26)
    # All colours that there are.
    colours = page.locator("#messages .author").evaluate_all(
        "(authors) => [...new Set(authors.map((each) => getComputedStyle(each).color))]"
    )
    assert len(colours) == 8, json.dumps(colours)
    assert_readable(page, at_least=60)


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_keeps_anybody_from_chatting(
    demo: HubProcess, windows: Windows, scheme: str, device: dict[str, object]
) -> None:
    put(demo.database, [f"message {n}" for n in range(70)])
    page = enter(windows, demo.url, "ann", color_scheme=scheme, **device)
    say(page, "see https://example.org/ and\n" + "x" * 2_000)
    expect(page.get_by_role("button", name="Show all")).to_be_visible()
    page.get_by_role("log").evaluate("(log) => log.scrollTo(0, 0)")
    expect(texts(page)).to_have_count(71)
    page.get_by_role("log").evaluate("(log) => log.scrollTo(0, 100)")
    say(enter(windows, demo.url, "bob"), "unread")
    expect(page.get_by_role("button", name="1 new message")).to_be_visible()
    say(page, "y" * 17_000)
    expect(page.locator("#problem")).to_contain_text("Not sent")
    assert_accessible(page)
    if device:
        page.get_by_role("button", name="Rooms").tap()
        assert_accessible(page)
    page.get_by_role("button", name="Change name").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert_accessible(page)
