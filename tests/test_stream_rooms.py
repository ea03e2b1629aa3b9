"""INTERFACE §3 over real HTTP: rooms, and tables whose schema changes under a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import HubProcess, make_database, run_sql, wait_for

Serving = Callable[..., HubProcess]
SEATS = "CREATE TABLE seats(id INTEGER PRIMARY KEY, room TEXT, hall INTEGER)"


@pytest.fixture(scope="module")
def shared(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("rooms") / "app.db",
        "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT)",
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, room TEXT, body)",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
        SEATS,
    )
    names = ("todos", "notes", "quiet", "seats:room=hall")
    with serving(database, *(word for name in names for word in ("--table", name))) as hub:
        yield hub


def seen(hub: HubProcess, query: str, *statements: str) -> list[tuple[Any, ...]]:
    """Type, key, oldValue and newValue of what a live subscriber gets for the statements."""
    with hub.stream(query.replace("table=", "table=quiet,")) as stream:
        stream.until("caught-up")
        # A room doesn't hold back a table without a room column, so this one marks the end.
        run_sql(hub.database, *statements, "INSERT INTO quiet VALUES (NULL)")
        changes = stream.changes(1)
        while changes[-1]["table"] != "quiet":
            changes += stream.changes(1)
    return [(c["type"], c["key"]["id"], c["oldValue"], c["newValue"]) for c in changes[:-1]]


def test_a_room_sees_moves_as_arrivals_and_departures(shared: HubProcess) -> None:
    row = {"id": 1, "room": "a", "body": 1}
    other = row | {"room": "b"}
    found = seen(
        shared,
        "table=notes&room=a",
        "INSERT INTO notes VALUES (1, 'b', 1)",
        "UPDATE notes SET room = 'a' WHERE id = 1",
        "UPDATE notes SET body = 2 WHERE id = 1",
        "UPDATE notes SET body = 1 WHERE id = 1",
        "UPDATE notes SET room = 'b' WHERE id = 1",
        "DELETE FROM notes WHERE id = 1",
        "INSERT INTO notes VALUES (1, 'a', 1)",
        "UPDATE notes SET room = NULL WHERE id = 1",
        "UPDATE notes SET room = 'a' WHERE id = 1",
        "DELETE FROM notes WHERE id = 1",
    )
    assert found == [
        ("INSERT", 1, None, row),
        ("UPDATE", 1, row, row | {"body": 2}),
        ("UPDATE", 1, row | {"body": 2}, row),
        ("DELETE", 1, row, None),
        ("INSERT", 1, None, row),
        ("DELETE", 1, row, None),
        ("INSERT", 1, None, row),
        ("DELETE", 1, row, None),
    ]
    assert other not in [part for change in found for part in change]


@pytest.mark.parametrize("room", ["5", "05", "5.0"])
def test_the_room_column_that_was_named_is_matched_by_its_affinity(
    shared: HubProcess, room: str
) -> None:
    query = f"table=seats&room={room}"
    # What another parameter left there is gone, and the hub knows.
    seen(shared, query, "DELETE FROM seats")
    statements = [
        f"INSERT INTO seats VALUES ({at}, '5', {hall})" for at, hall in enumerate((6, "NULL", 5, 50))
    ]
    found = seen(shared, query, *statements, "INSERT INTO seats VALUES (9, NULL, 5)")
    assert [key for _, key, _, _ in found] == [2, 9]
    with shared.stream(query + "&snapshot=1") as stream:
        keys = [
            json.loads(e.data)["key"]["id"] for e in stream.until("caught-up") if e.name == "message"
        ]
    assert keys == [2, 9]


def test_a_table_without_a_room_column_is_sent_whole(shared: HubProcess) -> None:
    with shared.stream("table=todos,notes&room=a") as stream:
        stream.until("caught-up")
        run_sql(
            shared.database,
            "INSERT INTO notes VALUES (50, 'b', 0)",
            "INSERT INTO todos(id) VALUES ('w')",
            "DELETE FROM notes WHERE id = 50",
            "DELETE FROM todos WHERE id = 'w'",
        )
        assert [change["table"] for change in stream.changes(2)] == ["todos", "todos"]


def test_a_room_column_can_be_named_for_one_of_all_tables(serving: Serving, tmp_path: Path) -> None:
    """`*` is every table; what is said of one table must not be lost."""
    database = make_database(tmp_path / "app.db", SEATS, "CREATE TABLE other(id INTEGER PRIMARY KEY)")
    for options in (("*", "seats:room=hall"), ("seats:room=hall", "*")):
        with serving(database, "--table", options[0], "--table", options[1]) as hub:
            rooms = {each["table"]: each["room"] for each in hub.get("/cdc/tables").json()}
            assert rooms == {"seats": "hall", "other": None}
            hub.stop()


# Breaks by a changed schema.


def test_a_column_that_comes_resets_that_table_only(serving: Serving, database: Path) -> None:
    run_sql(database, "CREATE TABLE other(id INTEGER PRIMARY KEY)")
    with serving(database) as hub, hub.stream("table=todos,other") as stream:
        stream.until("caught-up")
        run_sql(database, "ALTER TABLE todos ADD COLUMN extra DEFAULT 5")
        run_sql(database, "INSERT INTO todos(id) VALUES ('a')")
        reset = json.loads(stream.until("reset")[-1].data)
        assert (reset["reason"], reset["tables"]) == ("schema", ["todos"])
        run_sql(database, "INSERT INTO todos(id) VALUES ('b')", "INSERT INTO other VALUES (1)")
        changes = stream.changes(1)
        while changes[-1]["table"] != "other":
            changes += stream.changes(1)
        assert changes[-2]["newValue"] == {"id": "b", "title": None, "completed": 0, "extra": 5}


def test_vacuum_resets_a_table_without_a_key(serving: Serving, tmp_path: Path) -> None:
    statements = ["CREATE TABLE bare(v)", "CREATE TABLE keyed(id INTEGER PRIMARY KEY)"]
    database = make_database(tmp_path / "app.db", *statements, "INSERT INTO bare VALUES (1), (2), (3)")
    with serving(database) as hub, hub.stream("table=*") as stream:
        stream.until("caught-up")
        run_sql(database, "DELETE FROM bare WHERE v < 3", "VACUUM")
        assert run_sql(database, "SELECT rowid FROM bare") == [[1]], "it was 3"

        def noticed() -> bool:
            run_sql(database, "INSERT INTO keyed VALUES (NULL)")
            stream.changes(1)
            return "event: reset" in stream.text

        wait_for(noticed, "a reset of the table whose rows have other keys now", within_s=15)
    (said,) = re.findall(r"^event: reset\ndata: (.*)$", stream.text, re.MULTILINE)
    assert (json.loads(said)["reason"], json.loads(said)["tables"]) == ("schema", ["bare"])
