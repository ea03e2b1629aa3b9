"""What ended comes back in the browser library: subscriptions and rooms that the hub could not go on
with, that were refused once, left and joined again, or that died without a word."""

from __future__ import annotations

import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.browser.client_page import (
    begin,
    collect,
    insert,
    library,
    rows,
    status,
    tab,
    told,
    use,
    wait_for_titles,
    wait_live,
)
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.browser.test_client_rooms import chat, join, send, wait_for_texts, wait_joined
from tests.browser.test_client_sharing import HIDE, SHOW, insert_many
from tests.harness import HubProcess, run_sql, wait_for
from tests.ws_client import opened

__all__ = ["chat"]  # the fixture

pytestmark = pytest.mark.needs("chromium")


def test_a_fault_of_the_hub_is_asked_about_once(hub: HubProcess, windows: Windows) -> None:
    """It is told as an error and as the end of the subscription."""
    run_sql(
        hub.database,
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
        " INSERT INTO todos(id, title) SELECT i, printf('%0900d', i) FROM n",
    )
    hub.wait_for_lsn(1_000)
    page = library(windows, hub.url, without="alone")
    page.clock.install()
    page.evaluate("lib.connection()")
    # A full disk: no file may grow so far, and a snapshot is written into one.
    before = resource.prlimit(hub.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, (200_000, before[1]))
    begin(page)
    wait_for(lambda: hub.outcomes("fault"), "the snapshot to fail")
    resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, before)
    wait_live(page)
    # The hub said when to come back, and that has passed by now.
    page.clock.run_for(20_000)
    insert(hub.database, *"abc")
    wait_for(lambda: len(rows(page)) == 1_003, "all rows")
    assert hub.outcomes("ws_refused_duplicate_sub") == 0


def copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def test_a_room_outlives_several_restored_copies(
    chat: HubProcess, windows: Windows, tmp_path: Path
) -> None:
    """After the second one, the hub ends what is on the connection."""

    def put(name: str) -> None:
        run_sql(chat.database, f"INSERT INTO messages VALUES ('{name}', 'lobby', 'bot', '{name}', 1)")

    put("first")
    chat.wait_for_lsn(1)
    copy(chat.database, tmp_path / "copy.db")
    page = library(windows, chat.url)
    join(page, "ann")
    for number in range(3):
        put(f"lost {number}")
        wait_for_texts(page, "first", f"lost {number}")
        epoch = chat.status()["epoch"]
        copy(tmp_path / "copy.db", chat.database)
        wait_for(lambda before=epoch: chat.status()["epoch"] != before, "another history")
        wait_for_texts(page, "first")
    wait_joined(page)
    send(page, "after all")
    wait_for_texts(page, "first", "after all")


def test_a_room_that_was_left_takes_no_other_along(chat: HubProcess, windows: Windows) -> None:
    """The library waits 10 s for who reloads, and here the room has another life by then."""
    page = library(windows, chat.url)
    # Keeps the worker alive.
    tab(page.context, chat.url).evaluate("lib.connection()")
    with opened(chat, user="carol") as carol, opened(chat, user="dave") as dave:
        carol.join("lobby")
        dave.join("lobby")
        join(page, "ann")
        use(page, chat.url)
        join(page, "ann")
        page.evaluate("lobby.room.close()")
        join(page, "ann", name="again")
        # The hub waits as long for who lost the connection.
        dave.wire.close()
        while carol.until("user-left")["userId"] != "dave":
            pass
        page.evaluate("() => again.room.send('still here')")
        wait_for_texts(page, "still here", name="again")


def test_what_was_missing_at_one_restart_is_there_at_the_next(
    hub: HubProcess, windows: Windows
) -> None:
    page = library(windows, hub.url, without="alone")
    collect(page)
    hub.kill()
    run_sql(hub.database, "ALTER TABLE todos RENAME TO put_aside")
    hub.start()
    page.wait_for_function("() => todos.store.status === 'closed'")
    assert "no captured table" in told(page, "statuses")[-1][1]
    hub.kill()
    run_sql(hub.database, "ALTER TABLE put_aside RENAME TO todos")
    hub.start()
    wait_live(page)
    insert(hub.database, "a")
    wait_for_titles(page, ["a"])


def test_rows_of_ones_own_that_fell_behind_are_filled_anew(hub: HubProcess, windows: Windows) -> None:
    """Over an event stream that begins with them, which has to begin again."""
    insert(hub.database, "a")
    hub.wait_for_lsn(1)
    known = hub.get("/cdc/snapshot?table=todos").json()
    with Relay(hub.port, websockets=False) as relay:
        page = library(windows, relay.url)
        collect(page, initialData=known["rows"], since=known["position"])
        page.clock.install()
        page.evaluate(HIDE)
        page.clock.run_for(30_000)
        insert_many(hub.database, 2_500)
        hub.wait_for_lsn(2_501)
        other = tab(page.context, relay.url)
        collect(other)
        page.evaluate(SHOW)
        wait_for(lambda: len(rows(page)) == 2_501, "all rows")
        insert(hub.database, "z")
        wait_for(lambda: len(rows(page)) == 2_502, "what came later")


@pytest.mark.parametrize("websockets", [True, False], ids=["websocket", "sse"])
def test_a_line_that_died_without_a_word_is_not_called_live(
    database: Path, windows: Windows, websockets: bool
) -> None:
    with (
        HubProcess(database, "--heartbeat", "0.4") as hub,
        Relay(hub.port, websockets=websockets) as relay,
    ):
        page = library(windows, relay.url, without="alone")
        collect(page)
        relay.swallow()
        insert(database, "a")
        wait_for(lambda: status(page) == "reconnecting", "the silence to be noticed")
        relay.cut()
        relay.release()
        wait_for_titles(page, ["a"])
        wait_live(page)


def test_rows_that_swap_their_keys_stay_two(hub: HubProcess, windows: Windows) -> None:
    """Where a collection's key is not the table's, a key may be taken before it is free."""
    run_sql(
        hub.database,
        "CREATE TABLE places(id TEXT PRIMARY KEY, place INTEGER)",
        "INSERT INTO places VALUES ('a', 1), ('b', 2), ('c', 3)",
    )
    page = library(windows, hub.url)
    collect(page, table="places", key="place")

    def held() -> dict[str, int]:
        return {row["id"]: row["place"] for row in rows(page)}

    wait_for(lambda: len(held()) == 3, "the rows")
    run_sql(hub.database, "UPDATE places SET place = CASE place WHEN 1 THEN 2 WHEN 2 THEN 1 ELSE 3 END")
    wait_for(lambda: held() == {"a": 2, "b": 1, "c": 3}, "both to have moved")
    run_sql(
        hub.database,
        "BEGIN",
        "UPDATE places SET place = 3 WHERE id = 'a'",
        "DELETE FROM places WHERE id = 'c'",
        "COMMIT",
    )
    wait_for(lambda: held() == {"a": 3, "b": 1}, "one to have taken the other's place")
