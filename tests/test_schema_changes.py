"""Schema changes under a hub: each row of docs/schema-changes.md is a case here, and vice versa.

Every case is done to a database that a real hub serves. Three readers judge it: one that follows
live, one that comes back with a position from before, and `/cdc/changes`. Whoever applies the stream
by key must have exactly the tables, `cdchub verify` must agree, and what the readers were sent must be
what the page says: its second and third column name the kinds of events.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import HubProcess, cdchub, make_database, run_sql, wait_for
from tests.schema_cases import CASES, KEYED, Case, sql
from tests.schema_world import Follower, Table, World

PAGE = Path(__file__).parent.parent / "docs" / "schema-changes.md"
KINDS = {"INSERT", "UPDATE", "DELETE", "reset", "schema_changed"}


WITHOUT_BASE = "`ADD COLUMN` under `serve --no-base`"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("schema")
    database = make_database(
        folder / "app.db",
        "CREATE TABLE mark(id INTEGER PRIMARY KEY, n)",
        "INSERT INTO mark VALUES (1, 0)",
    )
    with HubProcess(database) as hub:
        yield World(hub, folder)


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    yield shared
    kept = "type IN ('table', 'view') AND name != 'mark' AND name NOT GLOB '_cdchub_*'"
    found = shared.read(f"SELECT type, name FROM sqlite_schema WHERE {kept} AND sql IS NOT NULL")
    drops = [f"DROP {kind} {name}" for kind, name in found if not name.startswith("sqlite_")]
    shared.write(*drops)
    shared.settle()


def test_one_table_after_the_other(tmp_path: Path) -> None:
    """As a migration in autocommit mode does it: no table is reset because another one was first."""
    names = "abcdef"
    database = make_database(
        tmp_path / "app.db",
        *(f"CREATE TABLE {name}(id INTEGER PRIMARY KEY, v)" for name in names),
        *(f"INSERT INTO {name} VALUES (1, 1)" for name in names),
    )
    with HubProcess(database) as hub:
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "a base snapshot")
        with hub.stream("table=*") as stream:
            stream.until("caught-up")
            run_sql(database, *(f"ALTER TABLE {name} ADD COLUMN w DEFAULT 2" for name in names))
            changes = stream.changes(len(names))
            assert "reset" not in stream.text
        assert sorted((change["table"], change["type"]) for change in changes) == [
            (name, "UPDATE") for name in names
        ]


def page_rows() -> dict[str, tuple[set[str], set[str]]]:
    """The page's table: what somebody does → the kinds that a subscriber and `/cdc/changes` see."""
    rows: dict[str, tuple[set[str], set[str]]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| what somebody does"):
            does, sees, history, _ = (cell.strip() for cell in line.strip("|").split(" | "))
            assert does not in rows, f"{does!r} is there twice"
            rows[does] = (kinds(sees), kinds(history))
    return rows


def kinds(cell: str) -> set[str]:
    found = set(re.findall(r"`(\w+)`", cell)) & KINDS
    assert found or cell.startswith("nothing"), f"{cell!r} names no kind of event"
    return found


def test_each_row_of_the_page_is_a_case() -> None:
    assert set(page_rows()) == {*CASES, WITHOUT_BASE}


@pytest.mark.parametrize("does", CASES)
def test_a_schema_change(world: World, does: str) -> None:
    case = CASES[does]
    world.write(*case.setup)
    world.settle()
    before, state = check(world, case)
    sees, history = page_rows()[does]
    assert set(case.sees) == sees, "what the page says that a subscriber sees"
    check_history(world, case, before, history)
    if case.verifies:
        wait_for(lambda: verified(world), "the base snapshot after a reset")
    else:
        assert cdchub("verify", world.database).returncode == 1
        assert world.tables() != state


def check(world: World, case: Case) -> tuple[str, dict[str, Table]]:
    """Does what the case does under the eyes of two followers. Returns the position and the state from
    before it."""
    hub = world.hub
    (number,) = world.read("SELECT n FROM mark")[0]
    query = "table=*" if case.large else "table=*&snapshot=1"
    with hub.stream(query) as stream:
        live = Follower(stream)
        live.until_caught_up()
        state = live.tables()
        assert case.large or state == world.tables()
        before = hub.head()
        case.act(world)
        world.settle()
        world.write(f"UPDATE mark SET n = {number + 1}")
        if not case.restarts:
            live.until_mark(number + 1)
            judge(live, world, case)
    with hub.stream(query, Last_Event_ID=before) as stream:
        late = Follower(stream, state)
        late.until_mark(number + 1)
        judge(late, world, case)
    return before, state


def judge(follower: Follower, world: World, case: Case) -> None:
    assert counted(follower.sent, case) == case.sees
    assert {table for table, _ in follower.sent} <= {*case.tables, *case.passing}
    if case.verifies and not case.large:
        assert follower.tables() == world.tables()


def counted(sent: Counter[tuple[str, str]], case: Case) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for (table, kind), count in sent.items():
        if table in case.tables:
            kinds[kind] += count
    return kinds


def check_history(world: World, case: Case, before: str, wanted: set[str]) -> None:
    assert wanted == (case.history or set(case.sees)), "what the page says of /cdc/changes"
    found: Counter[str] = Counter()
    position, ended = before, False
    while not ended:
        answer = world.hub.get(f"/cdc/changes?table=*&since={position}")
        page = answer.json()
        if answer.status == 410:
            assert page["tables"] == list(case.tables)
            found[answer.code], ended = 1, True
        else:
            found += counted(Counter((c["table"], c["type"]) for c in page["changes"]), case)
            position, ended = page["next"], page["upToDate"]
    expected = Counter(case.sees)
    if "schema_changed" in wanted:
        expected["schema_changed"] = expected.pop("reset")
    assert (found, set(found)) == (expected, wanted)


def verified(world: World) -> bool:
    done = cdchub("verify", world.database)
    assert done.returncode == 0, done.stdout + done.stderr
    return "not known" not in done.stderr


def test_without_base_snapshots_a_changed_table_is_reset(tmp_path: Path) -> None:
    case = Case(sql("ALTER TABLE t ADD COLUMN c"), {"reset": 1}, history={"schema_changed"})
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE mark(id INTEGER PRIMARY KEY, n)",
        "INSERT INTO mark VALUES (1, 0)",
        *KEYED,
    )
    with HubProcess(database, "--no-base") as hub:
        world = World(hub, tmp_path)
        before, _ = check(world, case)
        sees, history = page_rows()[WITHOUT_BASE]
        assert sees == {"reset"}
        check_history(world, case, before, history)
        done = cdchub("verify", database)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_text_that_nobody_can_read_keeps_its_bytes_and_its_key(tmp_path: Path, encoding: str) -> None:
    """In the difference that a schema change makes it is written once more by the hub."""
    half = {"UTF-8": "x'61ff62'", "UTF-16le": "x'00d8'", "UTF-16be": "x'd800'"}[encoding]
    database = tmp_path / "app.db"
    run_sql(
        database,
        f"PRAGMA encoding = '{encoding}'",
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE t(k TEXT PRIMARY KEY, v)",
        f"INSERT INTO t VALUES (CAST({half} AS TEXT), CAST({half} AS TEXT))",
    )
    with HubProcess(database) as hub:
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "the base")
        with hub.stream("table=t&snapshot=1") as stream:
            (row,) = stream.changes(1)
            stream.until("caught-up")
            run_sql(database, "ALTER TABLE t ADD COLUMN more")
            (change,) = stream.changes(1)
        assert (change["type"], change["key"]) == ("UPDATE", row["key"])
        assert change["newValue"] == row["newValue"] | {"more": None}
        assert hub.stop() == 0
    assert cdchub("verify", database).returncode == 0
