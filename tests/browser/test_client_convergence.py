"""Collections under random commits and breaks end as the table is. The seed is in a failure's name."""

from __future__ import annotations

import random

import pytest

from tests.browser.client_page import collect, library, rows, tab, told, wait_live
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess, run_sql, wait_for

pytestmark = pytest.mark.needs("chromium")

_ROUNDS = 12


def commits(random: random.Random) -> list[str]:
    """Some statements, each a transaction, on few keys, so that they meet."""
    found = []
    for _ in range(random.randrange(1, 15)):
        id, other = random.randrange(12), random.randrange(12)
        found.append(
            random.choice(
                (
                    f"INSERT OR REPLACE INTO todos VALUES ('{id}', 'r{random.random()}', {id % 2})",
                    f"UPDATE todos SET completed = 1 - completed WHERE id = '{id}'",
                    f"UPDATE todos SET title = 'u{random.random()}' WHERE id <= '{id}'",
                    f"UPDATE OR REPLACE todos SET id = '{other}' WHERE id = '{id}'",
                    f"DELETE FROM todos WHERE id = '{id}'",
                )
            )
        )
    return found


@pytest.mark.parametrize("websockets", [True, False], ids=["websocket", "sse"])
@pytest.mark.parametrize("seed", [1])
def test_any_history_ends_in_the_table(
    hub: HubProcess, windows: Windows, websockets: bool, seed: int
) -> None:
    windows.network_errors_expected = True
    chance = random.Random(seed)
    with Relay(hub.port, websockets=websockets) as relay:
        page = library(windows, relay.url)
        collect(page)
        collect(page, "open", where={"completed": 0}, columns=["title"])
        late = tab(page.context, relay.url)
        for round in range(_ROUNDS):
            if round in (4, 8):
                relay.cut()
            run_sql(hub.database, *commits(chance))
            if round == 6:
                collect(late)
        for each in (page, late):
            wait_live(each)
        stored = run_sql(hub.database, "SELECT id, title, completed FROM todos ORDER BY id")

        def held() -> bool:
            shown = [
                sorted([row["id"], row["title"], row["completed"]] for row in rows(each))
                for each in (page, late)
            ]
            unfinished = sorted([row["id"], row["title"]] for row in rows(page, "open"))
            return shown == [stored, stored] and unfinished == [
                [id, title] for id, title, completed in stored if not completed
            ]

        wait_for(held, f"{stored}")
        lsns = [change["lsn"] for change in told(page, "changes")]
        assert lsns == list(range(lsns[0], lsns[0] + len(lsns))), "no gap, no repeat"
