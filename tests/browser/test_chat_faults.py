"""Chat when something goes wrong: nothing is lost, nothing comes twice, and one is told why."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.chat_page import (
    LOST,
    box,
    enter,
    expect_live,
    expect_stored,
    members,
    message,
    problem,
    room_link,
    say,
    stored,
    texts,
)
from tests.browser.conftest import Windows
from tests.harness import HubProcess, run_sql
from tests.test_disk_faults import full, small_disk

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture
def demo(demo: HubProcess) -> HubProcess:
    """Without what the demo's people have said before."""
    run_sql(demo.database, "DELETE FROM messages")
    return demo


def test_a_restart_while_chatting_loses_and_repeats_nothing(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    ann, bob = (enter(windows, demo.url, name) for name in ("ann", "bob"))
    said = []
    for how in (demo.kill, demo.stop, demo.kill):
        for page, text in ((ann, f"ann before {len(said)}"), (bob, f"bob before {len(said)}")):
            say(page, text)
            expect(message(ann, text)).not_to_contain_text("Sending…")
            expect(message(bob, text)).not_to_contain_text("Sending…")
            said.append(text)
        how()
        for page in (ann, bob):
            expect(page.get_by_role("status")).to_have_text(LOST)
        demo.start()
        # Bob is not waited for: what is said before he is back must reach him too.
        expect_live(ann)
        text = f"ann after {len(said)}"
        say(ann, text)
        said.append(text)
        for page in (ann, bob):
            expect_live(page)
            expect(texts(page)).to_have_text(said)
            expect(members(page)).to_have_count(2)
    expect_stored(demo.database, said)


def test_without_a_connection_a_message_stays_in_the_box(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    ann = enter(windows, demo.url, "ann")
    demo.kill()
    expect(ann.get_by_role("status")).to_have_text(LOST)
    say(ann, "is anybody there?")
    expect(problem(ann)).to_have_text("Not sent: there is no connection now. Your message stays here.")
    expect(box(ann)).to_have_value("is anybody there?")
    expect(texts(ann)).to_have_count(0)
    demo.start()
    expect(problem(ann)).to_have_text("The connection is back: send your message again.")
    box(ann).press("Enter")
    expect(texts(ann)).to_have_text(["is anybody there?"])
    expect(box(ann)).to_have_value("")
    expect(problem(ann)).to_have_text("")
    expect_stored(demo.database, ["is anybody there?"])


def test_a_message_under_way_when_the_hub_dies_arrives_once(demo: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    ann = enter(windows, demo.url, "ann")
    assert demo.process is not None
    # Stopped, it takes the message from nobody, but its end of the connection is still there.
    demo.process.send_signal(signal.SIGSTOP)
    say(ann, "under way")
    expect(message(ann, "under way")).to_contain_text("Sending…")
    expect(box(ann)).to_have_value("")
    demo.kill()
    expect(ann.get_by_role("status")).to_have_text(LOST)
    expect(message(ann, "under way")).to_contain_text("Sending…")
    demo.start()
    expect(message(ann, "under way")).not_to_contain_text("Sending…")
    expect(texts(ann)).to_have_text(["under way"])
    expect_stored(demo.database, ["under way"])


def test_a_full_disk_leaves_the_message_in_the_box(windows: Windows) -> None:
    with small_disk(24 * 2**20) as folder:
        database = folder / "cdchub-demo.db"
        with HubProcess(database, command=["demo", "--quiet"], cwd=folder) as hub:
            run_sql(database, "DELETE FROM messages")
            ann = enter(windows, hub.url, "ann")
            say(ann, "before")
            expect(texts(ann)).to_have_text(["before"])
            long = "Too much for this disk. " * 400
            with full(folder):
                say(ann, long)
                expect(problem(ann)).to_have_text(re.compile("^Not sent: .*full"))
                expect(box(ann)).to_have_value(long.strip())
                expect(texts(ann)).to_have_text(["before"])
            box(ann).press("Enter")
            expect(texts(ann)).to_have_count(2)
            expect(box(ann)).to_have_value("")
            expect(problem(ann)).to_have_text("")
            expect(ann.get_by_text("Sending…")).to_have_count(0)
            expect_stored(database, ["before", long.strip()])


def test_a_message_that_is_too_long_stays_in_the_box(demo: HubProcess, windows: Windows) -> None:
    ann = enter(windows, demo.url, "ann", locale="en-US")
    # Counted as the hub counts: a character of two units is one.
    longest = "🌍" * 16_384
    say(ann, longest + "x")
    expect(problem(ann)).to_have_text(
        "Not sent: it has 16,385 characters, and a message has at most 16,384."
    )
    expect(box(ann)).to_have_value(longest + "x")
    say(ann, longest)
    expect(problem(ann)).to_have_text("")
    expect(ann.get_by_role("button", name="Show all 16,384 characters")).to_be_visible()
    expect_stored(demo.database, [longest])


def test_too_many_messages_at_once_are_back_in_the_box(demo: HubProcess, windows: Windows) -> None:
    ann = enter(windows, demo.url, "ann")
    total = 150
    box(ann).evaluate(
        """(box, total) => {
          for (let n = 0; n < total; n++) {
            box.value = `message ${n}`;
            box.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", cancelable: true }));
          }
        }""",
        total,
    )
    expect(problem(ann)).to_have_text(re.compile("^Not sent: at most 20 messages a second"))
    expect(ann.get_by_text("Sending…")).to_have_count(0)
    kept = box(ann).input_value().split("\n")
    assert kept
    assert sorted(stored(demo.database) + kept) == sorted(f"message {n}" for n in range(total))


def test_a_message_of_a_room_that_went_behind_is_in_its_draft(windows: Windows) -> None:
    with small_disk(24 * 2**20) as folder:
        database = folder / "cdchub-demo.db"
        with HubProcess(database, command=["demo", "--quiet"], cwd=folder) as hub:
            run_sql(database, "DELETE FROM messages")
            ann = enter(windows, hub.url, "ann")
            long = "for the lobby " * 500
            with full(folder):
                box(ann).fill(long)
                # In one task, so that the answer comes when another room is in front.
                ann.evaluate(
                    """() => {
                      const enter = new KeyboardEvent("keydown", { key: "Enter", cancelable: true });
                      document.getElementById("box").dispatchEvent(enter);
                      document.querySelector("[data-room=help] a").click();
                    }"""
                )
                expect(ann.get_by_role("heading", name="help")).to_be_visible()
                expect(box(ann)).to_have_value("")
                expect(problem(ann)).to_have_text("")
                ann.wait_for_function(
                    "() => document.getElementById('status').dataset.status === 'live'"
                )
                room_link(ann, "lobby").click()
                expect(box(ann)).to_have_value(long.strip())
                expect(problem(ann)).to_have_text(re.compile("^Not sent: .*full"))


def test_a_hub_without_messages_says_what_is_missing(hub: HubProcess, windows: Windows) -> None:
    page = windows.open(f"{hub.url}/chat?user=ann")
    notice = page.get_by_role("alert").filter(has_text="There is no chat here")
    expect(notice).to_have_text(
        "There is no chat here: this database has no captured table called messages;"
        " “cdchub serve --rooms” creates it."
    )
    expect(page.get_by_role("log")).to_be_hidden()


def test_serve_with_rooms_has_chat(database: Path, windows: Windows) -> None:
    with HubProcess(database, "--rooms") as hub:
        ann = enter(windows, hub.url, "ann")
        say(ann, "hello")
        expect(texts(ann)).to_have_text(["hello"])
        expect_stored(database, ["hello"])


def test_a_browser_that_keeps_nothing_can_chat(demo: HubProcess, windows: Windows) -> None:
    page = windows.new()
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no'); } });"
    )
    page.goto(f"{demo.url}/chat?user=ann")
    expect_live(page)
    say(page, "hello")
    expect(texts(page)).to_have_text(["hello"])
