"""The chat page as its users meet it: VIEWS, "Chat"."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat_page import (
    box,
    enter,
    expect_live,
    expect_stored,
    log,
    members,
    message,
    problem,
    put,
    room_link,
    say,
    texts,
)
from tests.browser.conftest import Windows
from tests.harness import HubProcess, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture
def demo(demo: HubProcess) -> HubProcess:
    """Without what the demo's people have said before."""
    run_sql(demo.database, "DELETE FROM messages")
    return demo


# Together.


def test_two_people_chat(demo: HubProcess, windows: Windows) -> None:
    ann, bob = (enter(windows, demo.url, name) for name in ("ann", "bob"))
    for page, names in ((ann, ["ann (you)", "bob"]), (bob, ["ann", "bob (you)"])):
        expect(members(page)).to_have_text(names)

    box(ann).press_sequentially("hello")
    expect(bob.get_by_text("ann is typing…")).to_be_visible()
    box(ann).press("Enter")
    expect(bob.get_by_text("ann is typing…")).to_be_hidden()
    say(bob, "hi ann")
    for page in (ann, bob):
        expect(texts(page)).to_have_text(["hello", "hi ann"])
        expect(page.get_by_text("Sending…")).to_have_count(0)
        # What one sees come in is not new.
        expect(page.get_by_text("New messages")).to_have_count(0)
    expect(message(bob, "hello").locator(".author")).to_have_text("ann")
    expect_stored(demo.database, ["hello", "hi ann"])

    bob.close()
    expect(members(ann)).to_have_text(["ann (you)"])


def test_typing_ends_when_the_box_is_empty_again(demo: HubProcess, windows: Windows) -> None:
    ann, bob, cleo = (enter(windows, demo.url, name) for name in ("ann", "bob", "cleo"))
    box(ann).press_sequentially("x")
    box(bob).press_sequentially("y")
    expect(cleo.get_by_text("ann and bob are typing…")).to_be_visible()
    box(ann).press("Backspace")
    expect(cleo.get_by_text("bob is typing…", exact=True)).to_be_visible()
    expect(bob.get_by_text("is typing…")).to_have_count(0)


def test_what_another_program_does_to_messages_shows_too(demo: HubProcess, windows: Windows) -> None:
    ann = enter(windows, demo.url, "ann")
    put(demo.database, ["from a program", "and another"])
    expect(texts(ann)).to_have_text(["from a program", "and another"])
    run_sql(demo.database, "UPDATE messages SET content = 'mended' WHERE id = 'lobby-0'")
    expect(texts(ann)).to_have_text(["mended", "and another"])
    run_sql(demo.database, "DELETE FROM messages WHERE id = 'lobby-0'")
    expect(texts(ann)).to_have_text(["and another"])


# History.


def test_history_on_joining_and_older_messages_on_scrolling_up(
    demo: HubProcess, windows: Windows
) -> None:
    contents = [f"message {n}" for n in range(230)]
    put(demo.database, contents)
    ann = enter(windows, demo.url, "ann")
    expect(texts(ann)).to_have_text(contents[-50:])
    expect(texts(ann).last).to_be_in_viewport()

    for shown in (50, 100, 150, 200):
        oldest = contents[-shown]
        at_top = to_top(ann)
        expect(texts(ann)).to_have_text(contents[-shown - 50 :])
        # What one saw at the top is still there; what is above it is new.
        assert abs(place_of(ann, oldest) - at_top) < 2
    to_top(ann)
    expect(ann.get_by_text("This is where it begins.")).to_have_count(1)
    expect(ann.get_by_role("button", name="Older messages")).to_be_hidden()


def to_top(page: Page) -> float:
    """Scrolls there; returns where the first message ends then, before any others come."""
    ends: float = log(page).evaluate(
        """(log) => {
          log.scrollTo(0, 0);
          return log.querySelector(".text").getBoundingClientRect().bottom;
        }"""
    )
    return ends


def place_of(page: Page, text: str) -> float:
    """Where a message ends in the window."""
    ends: float = (
        texts(page)
        .get_by_text(text, exact=True)
        .evaluate("(element) => element.getBoundingClientRect().bottom")
    )
    return ends


def test_whoever_reads_older_messages_is_not_disturbed(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, [f"message {n}" for n in range(60)])
    ann, bob = (enter(windows, demo.url, name) for name in ("ann", "bob"))
    to_top(ann)
    expect(texts(ann)).to_have_count(60)
    jump = ann.get_by_role("button", name="↓")
    expect(jump).to_have_text("↓ Latest")
    before = place_of(ann, "message 5")
    for text in ("one", "two"):
        say(bob, text)
    expect(jump).to_have_text("↓ 2 new messages")
    assert place_of(ann, "message 5") == before
    assert ann.title() == "(2) Chat - Live Rooms"

    jump.click()
    expect(message(ann, "two")).to_be_in_viewport()
    expect(jump).to_be_hidden()
    expect(ann).to_have_title("Chat - Live Rooms")
    # The line says where one had stopped.
    expect(ann.locator("#messages > li").nth(-3)).to_have_text("New messages")
    say(ann, "thanks")
    expect(ann.get_by_text("New messages")).to_have_count(0)


def test_messages_are_grouped_by_author_and_day(demo: HubProcess, windows: Windows) -> None:
    days = [1_700_000_000_000, 1_700_000_060_000, 1_700_200_000_000, 1_700_200_060_000]
    for place, (at_ms, user) in enumerate(zip(days, ("eve", "eve", "eve", "bob"), strict=True)):
        put(demo.database, [f"m{place}"], id=f"id-{place}", user_id=user, created_at=at_ms)
    page = enter(windows, demo.url, "ann", locale="en-GB", timezone_id="UTC")
    items = page.locator("#messages > li")
    expect(items).to_have_count(6)
    expect(items.nth(0)).to_have_text("Tuesday, 14 November 2023")
    expect(items.nth(3)).to_have_text("Friday, 17 November 2023")
    heads = page.locator("#messages .head:not(.visually-hidden)")
    expect(heads).to_have_text(
        [re.compile("^eve 22:13"), re.compile("^eve 05:46"), re.compile("^bob 05:47")]
    )
    # Those without a visible head have an author for screen readers all the same.
    expect(message(page, "m1").locator(".author")).to_have_text("eve")


# Rooms.


def test_a_second_room_keeps_the_first_and_counts_what_is_unread(
    demo: HubProcess, windows: Windows
) -> None:
    ann, bob = (enter(windows, demo.url, name) for name in ("ann", "bob"))
    say(bob, "before")
    expect(texts(ann)).to_have_text(["before"])
    room_link(ann, "random").click()
    expect(ann).to_have_url(re.compile(r"[?&]room=random$"))
    expect(ann.get_by_role("heading", name="random")).to_be_visible()
    expect(ann.get_by_text("Nothing has been said here yet.")).to_be_visible()
    expect(members(bob)).to_have_text(["ann", "bob (you)"])

    for text in ("one", "two"):
        say(bob, text)
    expect(room_link(ann, "lobby")).to_have_accessible_name("lobby 2 unread")
    expect(ann).to_have_title("(2) Chat - Live Rooms")
    # What one says oneself is not unread, wherever one says it.
    other = enter(windows, demo.url, "ann")
    say(other, "also me")
    expect(texts(bob)).to_have_text(["before", "one", "two", "also me"])
    expect(room_link(ann, "lobby")).to_have_accessible_name("lobby 2 unread")

    ann.reload()
    expect_live(ann)
    expect(room_link(ann, "lobby")).to_have_accessible_name("lobby 2 unread")
    ann.go_back()
    expect(ann.get_by_role("heading", name="lobby")).to_be_visible()
    expect(ann.locator("#messages > li").nth(2)).to_have_text("New messages")
    expect(room_link(ann, "lobby")).to_have_accessible_name("lobby")
    expect(room_link(ann, "lobby")).to_have_attribute("aria-current", "true")


def test_what_was_read_in_one_tab_is_read_in_the_others(demo: HubProcess, windows: Windows) -> None:
    ann = enter(windows, demo.url, "ann")
    room_link(ann, "help").click()
    expect(ann.get_by_role("heading", name="help")).to_be_visible()
    expect_live(ann)
    other = ann.context.new_page()
    other.goto(f"{demo.url}/chat?room=help")
    expect_live(other)
    for each in (ann, other):
        room_link(each, "lobby").click()
        expect(each.get_by_role("heading", name="lobby")).to_be_visible()
    put(demo.database, ["psst", "again"], room="help")
    for each in (ann, other):
        expect(room_link(each, "help")).to_have_accessible_name("help 2 unread")
    room_link(other, "help").click()
    expect(texts(other).last).to_have_text("again")
    expect(room_link(ann, "help")).to_have_accessible_name("help")


@pytest.mark.parametrize("size", [(844, 390), (390, 500), (720, 450)], ids="{0[0]}x{0[1]}".format)
def test_a_low_window_has_room_for_messages(
    demo: HubProcess, windows: Windows, size: tuple[int, int]
) -> None:
    put(demo.database, [f"line {number}" for number in range(30)])
    width, height = size
    ann = enter(windows, demo.url, "ann", viewport={"width": width, "height": height})
    expect(texts(ann).last).to_be_in_viewport()
    expect(box(ann)).to_be_in_viewport(ratio=1)
    log = ann.locator("#log").bounding_box()
    assert log is not None
    assert log["height"] >= 0.33 * height
    # Nothing has to be scrolled but the messages.
    assert ann.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_any_room_can_be_joined_and_left(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, ["psst"], room="lately")
    ann = enter(windows, demo.url, "ann")
    expect(room_link(ann, "lately")).to_be_visible()
    join = ann.get_by_role("button", name="Join", exact=True)
    expect(join).to_be_disabled()
    new = ann.get_by_role("textbox", name="Join another room")
    new.fill("  Büro №7  ")
    expect(join).to_be_enabled()
    new.press("Enter")
    expect(ann.get_by_role("heading", name="Büro №7")).to_be_visible()
    expect_live(ann)
    say(ann, "first")
    expect(texts(ann)).to_have_text(["first"])
    expect_stored(demo.database, ["first"], "Büro №7")

    bob = enter(windows, demo.url, "bob", "Büro №7")
    expect(members(bob)).to_have_text(["ann", "bob (you)"])
    ann.get_by_role("button", name="Leave Büro №7").click()
    expect(ann.get_by_role("heading", name="lobby")).to_be_visible()
    expect(members(bob)).to_have_text(["bob (you)"])
    ann.reload()
    expect_live(ann)
    expect(ann.get_by_role("button", name="Leave Büro №7")).to_have_count(0)


def test_each_room_keeps_its_draft(demo: HubProcess, windows: Windows) -> None:
    ann = enter(windows, demo.url, "ann")
    box(ann).fill("for the lobby")
    room_link(ann, "help").click()
    expect(box(ann)).to_have_value("")
    box(ann).fill("for help")
    room_link(ann, "lobby").click()
    expect(box(ann)).to_have_value("for the lobby")
    room_link(ann, "help").click()
    expect(box(ann)).to_have_value("for help")


# Who one is.


def test_a_name_is_asked_for_once(demo: HubProcess, windows: Windows) -> None:
    page = windows.open(f"{demo.url}/chat")
    name = page.get_by_role("textbox", name="What should the others call you?")
    expect(name).to_be_focused()
    expect(name).to_have_value(re.compile(r"^guest-\w+$"))
    page.keyboard.type("  Zoë ")
    page.keyboard.press("Enter")
    expect_live(page)
    expect(members(page)).to_have_text(["Zoë (you)"])
    expect(box(page)).to_be_focused()
    page.reload()
    expect_live(page)
    expect(members(page)).to_have_text(["Zoë (you)"])

    box(page).fill("half a thought")
    change = page.get_by_role("button", name="Change name")
    for wave_off in (
        lambda: name.press("Escape"),
        lambda: page.get_by_role("button", name="Cancel").click(),
    ):
        change.click()
        name.fill("Somebody")
        wave_off()
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.locator("#you")).to_have_text("Zoë")
    change.click()
    name.fill("  ")
    name.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert name.evaluate("it => it.validationMessage") == "A name is required"
    name.fill("Zoe")
    name.press("Enter")
    expect(members(page)).to_have_text(["Zoe (you)"])
    expect(box(page)).to_have_value("half a thought")
    box(page).press("Enter")
    expect(message(page, "half a thought").locator(".author")).to_have_text("Zoe")


def test_whoever_gives_no_name_is_a_guest(demo: HubProcess, windows: Windows) -> None:
    page = windows.open(f"{demo.url}/chat")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(members(page)).to_have_text([re.compile(r"^guest-\w+ \(you\)$")])


# Writing.


def test_enter_sends_and_shift_enter_breaks_the_line(demo: HubProcess, windows: Windows) -> None:
    ann = enter(windows, demo.url, "ann")
    box(ann).press_sequentially("one")
    box(ann).press("Shift+Enter")
    box(ann).press_sequentially("two")
    height = (box(ann).bounding_box() or {})["height"]
    box(ann).press("Enter")
    expect(box(ann)).to_have_value("")
    assert (box(ann).bounding_box() or {})["height"] < height
    expect(texts(ann)).to_have_text(["one\ntwo"], use_inner_text=True)
    expect_stored(demo.database, ["one\ntwo"])
    # A blank box sends nothing.
    for _ in range(2):
        box(ann).fill(" \n ")
        box(ann).press("Enter")
    say(ann, "three")
    expect(texts(ann)).to_have_count(2)
    expect_stored(demo.database, ["one\ntwo", "three"])


def test_enter_that_ends_a_composed_word_does_not_send(demo: HubProcess, windows: Windows) -> None:
    ann = enter(windows, demo.url, "ann")
    box(ann).focus()
    session = ann.context.new_cdp_session(ann)
    session.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
    composing = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    for kind in ("rawKeyDown", "keyUp"):
        session.send("Input.dispatchKeyEvent", {"type": kind, **composing})
    session.send("Input.insertText", {"text": "日本"})
    expect(box(ann)).to_have_value("日本")
    box(ann).press("Enter")
    expect(texts(ann)).to_have_text(["日本"])
    expect_stored(demo.database, ["日本"])


def test_the_keyboard_alone_is_enough(demo: HubProcess, windows: Windows) -> None:
    put(demo.database, [f"message {n}" for n in range(60)])
    ann = enter(windows, demo.url, "ann")
    expect(box(ann)).to_be_focused()
    ann.keyboard.type("hello")
    ann.keyboard.press("Enter")
    expect(message(ann, "hello")).to_be_visible()
    tab_to(ann, log(ann), "Shift+Tab")
    ann.keyboard.press("Home")
    expect(texts(ann)).to_have_count(61)
    # Older messages keep the place; and a key scrolls for a while.
    ann.keyboard.press("Home")
    ann.wait_for_function("() => document.getElementById('log').scrollTop === 0")
    tab_to(ann, ann.get_by_role("button", name="↓"), "Tab")
    ann.keyboard.press("Enter")
    expect(log(ann)).to_be_focused()
    expect(message(ann, "hello")).to_be_in_viewport()

    tab_to(ann, room_link(ann, "help"), "Shift+Tab")
    ann.keyboard.press("Enter")
    expect(ann.get_by_role("heading", name="help")).to_be_visible()
    expect(box(ann)).to_be_focused()
    tab_to(ann, ann.get_by_role("button", name="Leave help"), "Shift+Tab")
    ann.keyboard.press("Enter")
    expect(ann.get_by_role("heading", name="lobby")).to_be_visible()
    wait_for(lambda: ann.evaluate("document.activeElement !== document.body"), "the focus to be kept")
    expect(problem(ann)).to_have_text("")


def tab_to(page: Page, wanted: object, key: str) -> None:
    for _ in range(40):
        if wanted.evaluate("(element) => element === document.activeElement"):  # type: ignore[attr-defined]
            return
        page.keyboard.press(key)
    raise AssertionError("the keyboard does not get there")
