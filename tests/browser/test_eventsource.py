"""A browser's own EventSource against the stream, on the wire and across breaks.

What it does by itself (the id it keeps, the header it sends, when it tries again) is the half of the
protocol that no code of ours can check alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from cdchub.sse import EventParser
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess, make_database, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

STILL = "/healthz"  # a page without a stream of its own
_OPEN = """(query) => {
  const source = new EventSource(`/cdc/stream?${query}`);
  window.noted = [];
  const note = (event) => {
    if (event.data === undefined) return;  // onerror of a broken connection
    noted.push({ name: event.type, id: event.lastEventId, data: JSON.parse(event.data) });
  };
  const names = ["message", "snapshot", "caught-up", "reset", "refused", "error", "ping", "heartbeat"];
  for (const name of names) source.addEventListener(name, note);
}"""


def open_source(page: Page, query: str) -> None:
    page.evaluate(_OPEN, query)


def noted(page: Page, name: str | None = None) -> list[dict[str, Any]]:
    """The events that JavaScript has seen, in order; those called `name`."""
    found: list[dict[str, Any]] = page.evaluate("window.noted")
    return [event for event in found if name in (None, event["name"])]


def lsns(page: Page) -> list[int]:
    return [event["data"]["lsn"] for event in noted(page, "message")]


def insert(database: Path, first: int, count: int, table: str = "todos") -> None:
    """`count` commits of one row each."""
    run_sql(
        database,
        *(f"INSERT INTO {table}(id, title) VALUES ('{n}', 'n')" for n in range(first, first + count)),
    )


@pytest.fixture
def quick_hub(tmp_path: Path) -> Iterator[HubProcess]:
    """A hub whose heart beats often, on a table that a test follows and one that it doesn't."""
    columns = "(id TEXT PRIMARY KEY, title TEXT)"
    database = make_database(
        tmp_path / "app.db", f"CREATE TABLE todos{columns}", f"CREATE TABLE others{columns}"
    )
    with HubProcess(database, "--heartbeat", "0.3", "--drain", "0.2") as process:
        yield process


@pytest.fixture
def carrier(quick_hub: HubProcess) -> Iterator[Relay]:
    with Relay(quick_hub.port) as relay:
        yield relay


@pytest.mark.parametrize("end", [HubProcess.kill, HubProcess.stop], ids=["kill", "stop"])
def test_a_restart_of_the_hub_loses_and_repeats_nothing(
    quick_hub: HubProcess, windows: Windows, end: Callable[[HubProcess], object]
) -> None:
    windows.network_errors_expected = True
    page = windows.open(quick_hub.url + STILL)
    open_source(page, "table=todos")
    wait_for(lambda: noted(page, "caught-up"), "the stream to be live")
    insert(quick_hub.database, 1, 20)
    wait_for(lambda: len(lsns(page)) == 20, "the changes before")
    end(quick_hub)
    insert(quick_hub.database, 21, 50)
    quick_hub.start()
    insert(quick_hub.database, 71, 30)
    wait_for(lambda: len(lsns(page)) >= 100, "all changes")
    messages = noted(page, "message")
    assert [message["data"]["lsn"] for message in messages] == list(range(1, 101))
    assert [message["data"]["key"]["id"] for message in messages] == [str(n) for n in range(1, 101)]
    epoch = quick_hub.head().split(":")[0]
    assert [message["id"] for message in messages] == [f"{epoch}:{n}" for n in range(1, 101)]
    assert {event["name"] for event in noted(page)} == {"message", "caught-up"}


def test_the_first_reconnect_has_a_position_before_any_change(
    quick_hub: HubProcess, carrier: Relay, windows: Windows
) -> None:
    windows.network_errors_expected = True
    insert(quick_hub.database, 1, 3)
    quick_hub.wait_for_lsn(3)
    position = quick_hub.head()
    page = windows.open(carrier.url + STILL)
    open_source(page, "table=todos")
    wait_for(lambda: noted(page, "caught-up"), "the stream to be live")
    carrier.hold()
    carrier.cut()
    insert(quick_hub.database, 4, 2)
    carrier.release()
    wait_for(lambda: len(lsns(page)) >= 2, "what was missed")
    assert lsns(page) == [4, 5]
    assert [stream.last_event_id for stream in carrier.streams] == [None, position]


def test_a_heartbeat_moves_the_id_and_fires_nothing(
    quick_hub: HubProcess, carrier: Relay, windows: Windows
) -> None:
    windows.network_errors_expected = True
    page = windows.open(carrier.url + STILL)
    open_source(page, "table=todos")
    wait_for(lambda: noted(page, "caught-up"), "the stream to be live")
    insert(quick_hub.database, 1, 40, "others")
    quick_hub.wait_for_lsn(40)
    position = quick_hub.head()
    stream = carrier.streams[0]
    # Two, so that the browser has handled the first one when the line is cut.
    wait_for(lambda: stream.text.count(f"id: {position}\n") >= 2, "heartbeats past them")
    assert ": ping" in stream.text
    assert [event["name"] for event in noted(page)] == ["caught-up"]

    carrier.cut()
    wait_for(lambda: len(carrier.streams) == 2, "the browser to come back")
    assert carrier.streams[1].last_event_id == position
    insert(quick_hub.database, 1, 1)
    wait_for(lambda: lsns(page), "a change of the table itself")
    assert lsns(page) == [41]
    assert "reset" not in {event["name"] for event in noted(page)}


def test_a_snapshot_that_was_cut_is_taken_again_from_its_start(
    quick_hub: HubProcess, carrier: Relay, windows: Windows
) -> None:
    windows.network_errors_expected = True
    run_sql(
        quick_hub.database,
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
        "INSERT INTO todos SELECT printf('%04d', i), 'n' FROM n",
    )
    quick_hub.wait_for_lsn(500)
    page = windows.open(carrier.url + STILL)
    carrier.cut_next_after(20_000)
    open_source(page, "table=todos&snapshot=1")
    wait_for(lambda: noted(page, "caught-up"), "the snapshot to be complete")
    first, second = carrier.streams
    cut = EventParser().feed(bytes(first.answer).partition(b"\r\n\r\n")[2])
    assert 1 < len(cut) < 500
    assert second.last_event_id is None
    events = noted(page)
    names = [event["name"] for event in events]
    assert names.count("snapshot") == 2
    again = events[len(names) - 1 - names[::-1].index("snapshot") :]
    rows = [event["data"]["key"]["id"] for event in again if event["name"] == "message"]
    assert rows == [f"{n:04d}" for n in range(1, 501)]
    # From here on it resumes: no third snapshot.
    carrier.cut()
    insert(quick_hub.database, 9000, 1)
    wait_for(lambda: lsns(page)[-1] == 501, "the change after the snapshot")
    assert [event["name"] for event in noted(page)].count("snapshot") == 2
    assert lsns(page).count(501) == 1


def test_a_lasting_refusal_closes_for_good(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = windows.open(hub.url + STILL)
    page.evaluate("window.source = new EventSource('/cdc/stream?table=nothing_of_the_kind')")
    page.wait_for_function("source.readyState === EventSource.CLOSED")
