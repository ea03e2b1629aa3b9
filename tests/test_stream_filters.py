"""INTERFACE §3 and §4 over HTTP: `filter` and `columns`, live, replayed, paged and in snapshots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.harness import HubProcess, Stream, has_base, make_database, quote, run_sql, wait_for

NDJSON = "application/x-ndjson"
Seen = tuple[str, Any, Any, Any]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("filters") / "app.db",
        "CREATE TABLE items(id INTEGER PRIMARY KEY, v INTEGER, w TEXT)",
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, room TEXT, body)",
        'CREATE TABLE "odd, one"("a.b" TEXT PRIMARY KEY, "c=d" TEXT)',
        "CREATE TABLE pairs(v, b TEXT, a INTEGER, w, PRIMARY KEY(a, b)) WITHOUT ROWID",
        "CREATE TABLE bare(v, w)",
        "CREATE TABLE fixed(id INTEGER PRIMARY KEY, room TEXT, v, w TEXT)",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
        "INSERT INTO fixed VALUES (10, 'a', 5, 'x,y'), (2, 'b', 5, 'é'), (1, 'a', NULL, 'x'),"
        " (3, 'a', 7.5, NULL), (4, 'a', '5', 'X'), (5, 'a', x'35', 'x')",
    )
    with HubProcess(database, "--heartbeat", "0.2") as hub:
        wait_for(lambda: has_base(hub), "the base snapshot")
        yield hub


def lsn_of(position: str) -> int:
    return int(position.rpartition(":")[2])


def filtered(table: str, *filters: str, **more: str) -> str:
    pairs = [("table", table), *(("filter", text) for text in filters), *more.items()]
    return "&".join(f"{name}={quote(value)}" for name, value in pairs)


def shown(changes: Sequence[dict[str, Any]]) -> list[Seen]:
    return [(c["type"], c["key"], c["oldValue"], c["newValue"]) for c in changes]


def messages(stream: Stream) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in stream.taken() if event.name == "message"]


def logged(hub: HubProcess, *statements: str) -> str:
    """Runs statements. A position that has all that was ever committed."""
    ((mark,),) = run_sql(hub.database, *statements, "INSERT INTO quiet VALUES (NULL) RETURNING id")
    query = f"/cdc/changes?{filtered('quiet', f'id=eq.{mark}')}"
    (change,) = wait_for(lambda: hub.get(query).json()["changes"], "the last change")
    return f"{hub.head().split(':')[0]}:{change['lsn']}"


def seen(hub: HubProcess, query: str, *statements: str) -> list[Seen]:
    """What a live subscriber gets of the statements: the same as one who resumes, or reads pages."""
    before = logged(hub)
    with hub.stream(query) as stream:
        stream.until("caught-up")
        end = lsn_of(logged(hub, *statements))
        # A heartbeat behind all that: nothing more is to come.
        stream.read_until(lambda s: lsn_of(s.last_id) >= end)
        live = messages(stream)
    for headers in ({"Last_Event_ID": before}, {}):
        with hub.stream(query if headers else f"{query}&since={before}", **headers) as stream:
            events = stream.until("caught-up")
            again = [json.loads(event.data) for event in events if event.name == "message"]
            assert again == live
    assert hub.get(f"/cdc/changes?{query}&since={before}").json()["changes"] == live
    return shown(live)


def keys(found: Sequence[Seen]) -> list[tuple[str, Any]]:
    return [(type, key["id"]) for type, key, _, _ in found]


# What a filter shows of changes.


def test_a_row_comes_and_goes_as_it_meets_the_filter(shared: HubProcess) -> None:
    inside, outside = {"id": 1, "v": 5, "w": "a"}, {"id": 1, "v": 6, "w": "a"}
    found = seen(
        shared,
        filtered("items", "v=eq.5"),
        "INSERT INTO items VALUES (1, 6, 'a')",
        "UPDATE items SET v = 5",
        "UPDATE items SET w = 'b'",
        "UPDATE items SET w = 'a'",
        "UPDATE items SET v = 6",
        "UPDATE items SET w = 'c'",
        "DELETE FROM items",
        "INSERT INTO items VALUES (1, 5, 'a')",
        "UPDATE items SET id = 2",
        "DELETE FROM items",
    )
    assert found == [
        ("INSERT", {"id": 1}, None, inside),
        ("UPDATE", {"id": 1}, inside, inside | {"w": "b"}),
        ("UPDATE", {"id": 1}, inside | {"w": "b"}, inside),
        ("DELETE", {"id": 1}, inside, None),
        ("INSERT", {"id": 1}, None, inside),
        ("DELETE", {"id": 1}, inside, None),
        ("INSERT", {"id": 2}, None, inside | {"id": 2}),
        ("DELETE", {"id": 2}, inside | {"id": 2}, None),
    ]
    assert outside not in [part for each in found for part in each]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("v=is.null", [("INSERT", 1), ("DELETE", 1), ("INSERT", 2), ("DELETE", 2)]),
        ("v=is.not_null", [("INSERT", 1), ("DELETE", 1), ("INSERT", 2)]),
        ("v=neq.5", []),
        ("v=in.(5,6)", [("INSERT", 1), ("DELETE", 1), ("INSERT", 2)]),
        ("v=lte.5", [("INSERT", 1), ("DELETE", 1), ("INSERT", 2)]),
        ("v=gt.5", []),
    ],
)
def test_null_meets_only_is_null(
    shared: HubProcess, condition: str, wanted: list[tuple[str, int]]
) -> None:
    run_sql(shared.database, "DELETE FROM items")
    found = seen(
        shared,
        filtered("items", condition),
        "INSERT INTO items VALUES (1, NULL, '')",
        "UPDATE items SET v = 5 WHERE id = 1",
        "INSERT INTO items VALUES (2, NULL, '')",
        "DELETE FROM items WHERE id = 1",
        "UPDATE items SET v = 5 WHERE id = 2",
    )
    assert keys(found) == wanted


def test_several_conditions_must_all_hold(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM items")
    found = seen(
        shared,
        filtered("items", "v=gte.5", "v=lt.10", 'w=like."a*"'),
        "INSERT INTO items VALUES (1, 5, 'ab'), (2, 10, 'ab'), (3, 5, 'Ab'), (4, 4, 'ab')",
        "UPDATE items SET v = v + 1",
        "UPDATE items SET w = 'x' WHERE v = 6",
    )
    assert keys(found) == [("INSERT", 1), ("UPDATE", 1), ("INSERT", 4), ("DELETE", 1)]


def test_a_filter_binds_only_the_table_that_it_names(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM items", "DELETE FROM notes")
    found = seen(
        shared,
        filtered("items,notes", "items.v=eq.5", "ITEMS.W=eq.a"),
        "INSERT INTO items VALUES (1, 5, 'a'), (2, 5, 'b'), (3, 6, 'a')",
        "INSERT INTO notes VALUES (9, NULL, NULL)",
        "DELETE FROM items",
    )
    assert keys(found) == [("INSERT", 1), ("INSERT", 9), ("DELETE", 1)]


def test_a_filter_and_a_room(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM notes")
    found = seen(
        shared,
        filtered("notes", "body=is.not_null", room="a"),
        "INSERT INTO notes VALUES (1, 'a', 'x'), (2, 'b', 'x'), (3, 'a', NULL)",
        "UPDATE notes SET room = 'a' WHERE id = 2",
        "UPDATE notes SET body = 1 WHERE id = 3",
        "UPDATE notes SET body = NULL, room = 'b' WHERE id = 1",
        "UPDATE notes SET body = 'y', room = 'a' WHERE id = 1",
        "UPDATE notes SET room = NULL",
    )
    assert keys(found) == [
        *(("INSERT", 1), ("INSERT", 2), ("INSERT", 3), ("DELETE", 1), ("INSERT", 1)),
        *(("DELETE", 1), ("DELETE", 2), ("DELETE", 3)),
    ]


def test_names_that_need_quotes(shared: HubProcess) -> None:
    found = seen(
        shared,
        "table=" + quote("odd, one") + "&filter=" + quote('"odd, one"."c=d"=in.("x,y",z)'),
        "INSERT INTO \"odd, one\" VALUES ('1', 'x,y'), ('2', 'x'), ('3', 'z')",
    )
    assert [key["a.b"] for _, key, _, _ in found] == ["1", "3"]


BAD = [
    ("table=items,notes&filter=id=eq.1", "bad_filter", 400),
    ("table=*&filter=id=eq.1", "bad_filter", 400),
    ("table=items&filter=notes.id=eq.1", "bad_filter", 400),
    ("table=items&filter=id=eq", "bad_filter", 400),
    ("table=items&filter=id=in.(1", "bad_filter", 400),
    ("table=items&filter=", "bad_filter", 400),
    ("table=items&filter=id=eq.1&filter=id", "bad_filter", 400),
    ("table=items&filter=nope=eq.1", "unknown_column", 400),
    ("table=items,notes&filter=items.room=eq.1", "unknown_column", 400),
    ("table=items&columns=v,,w", "bad_filter", 400),
    ("table=items,notes&columns=id", "bad_filter", 400),
    ("table=items&columns=v,nope", "unknown_column", 400),
    ("table=items&filter=v=eq.1" + "&filter=v=eq.1" * 20, "bad_filter", 400),
]


@pytest.mark.parametrize("endpoint", ["stream", "changes", "snapshot"])
@pytest.mark.parametrize(("query", "code", "status"), BAD)
def test_a_bad_filter_is_refused_at_once(
    shared: HubProcess, endpoint: str, query: str, code: str, status: int
) -> None:
    answer = shared.get(f"/cdc/{endpoint}?{query}", Accept="text/event-stream, */*")
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize("text", ["%1C7", "%C2%A07", "%D9%A3", "9" * 500, "%00", "1e999", "-0"])
def test_an_odd_literal_is_no_fault(shared: HubProcess, text: str) -> None:
    for endpoint in ("changes", "snapshot"):
        answer = shared.get(f"/cdc/{endpoint}?table=items&filter=v=eq.{text}")
        assert answer.status == 200, answer.body
    with shared.stream(f"table=items&filter=v=eq.{text}") as stream:
        stream.until("caught-up")


# Pages.


@pytest.mark.parametrize("limit", [1, 3, 7, 10_000])
def test_pages_of_a_filter_that_matches_few(shared: HubProcess, limit: int) -> None:
    """However few are wanted at a time, each comes once, and the others are not read one by one."""
    begin = logged(shared, "DELETE FROM items")
    wanted = [*range(3_000, 30_001, 3_000)]
    rows = "WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < 30000)"
    logged(shared, f"INSERT INTO items {rows} SELECT n, n, 'page' FROM k")
    query = filtered("items", f"v=in.({','.join(map(str, wanted))})", "w=eq.page")
    position: str = begin
    found: list[int] = []
    while True:
        page = shared.get(f"/cdc/changes?{query}&since={position}&limit={limit}").json()
        assert len(page["changes"]) <= limit
        found += [each["key"]["id"] for each in page["changes"]]
        if page["upToDate"]:
            break
        assert page["next"] != position, "a page that is not the last must move on"
        position = page["next"]
    assert found == wanted


# Snapshots.


def snapshot_ids(hub: HubProcess, query: str) -> list[int]:
    """The ids that a snapshot of `fixed` shows: the same ones in every form of it."""
    rows = hub.get(f"/cdc/snapshot?{query}").json()["rows"]
    found = [row["id"] for row in rows]
    _, *lines = hub.get(f"/cdc/snapshot?{query}", Accept=NDJSON).body.splitlines()
    assert [json.loads(line) for line in lines] == rows
    text = hub.get(f"/cdc/snapshot?{query}", Accept="text/csv").body.decode()
    head, *records = csv.reader(io.StringIO(text, newline=""))
    assert [int(record[head.index("id")]) for record in records] == found
    # The last is the base of the log, a snapshot too.
    for since in ("snapshot=1", "since=beginning"):
        with hub.stream(f"{query}&{since}") as stream:
            events = stream.until("caught-up")
        changes = [json.loads(event.data) for event in events if event.name == "message"]
        assert [change["key"]["id"] for change in changes] == found
        assert [change["newValue"] for change in changes] == rows
        assert {change["type"] for change in changes} <= {"SNAPSHOT"}
        assert events[0].name == "snapshot"
    return found


@pytest.mark.parametrize(
    ("filters", "room", "wanted"),
    [
        (("id=gt.0",), None, [1, 2, 3, 4, 5, 10]),
        (("v=eq.5",), None, [4]),
        (("v=is.null",), None, [1]),
        (("v=gt.",), None, [4, 5]),
        (("w=eq.x",), None, [1, 5]),
        (("w=eq.x", "v=is.not_null"), None, [5]),
        (("w=neq.x",), None, [2, 4, 10]),
        (('w=in.("x,y",é)',), None, [2, 10]),
        (("w=like.x*",), None, [1, 5, 10]),
        (("id=in.(10,2,7)",), None, [2, 10]),
        (("id=in.(10,2,7)",), "a", [10]),
        (("w=eq.nobody",), None, []),
    ],
)
def test_a_snapshot_shows_what_meets_the_filter(
    shared: HubProcess, filters: Sequence[str], room: str | None, wanted: list[int]
) -> None:
    """`v` has no affinity: a literal for it is text, which is above all numbers and below all blobs."""
    more = {} if room is None else {"room": room}
    assert snapshot_ids(shared, filtered("fixed", *filters, **more)) == wanted


def test_a_snapshot_meets_the_changes_behind_it(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM items", "INSERT INTO items VALUES (1, 5, ''), (2, 6, '')")
    with shared.stream(filtered("items", "v=eq.5", snapshot="1")) as stream:
        events = stream.until("caught-up")
        changes = [json.loads(event.data) for event in events if event.name == "message"]
        assert changes[-1]["key"] == {"id": 1}
        run_sql(shared.database, "UPDATE items SET v = 11 - v")
        assert keys(shown(stream.changes(2))) == [("DELETE", 1), ("INSERT", 2)]


# Columns.


def test_columns_show_those_and_the_key(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM items")
    found = seen(
        shared,
        filtered("items", columns="V"),
        "INSERT INTO items VALUES (1, 5, 'a')",
        "UPDATE items SET w = 'b'",
        "DELETE FROM items",
    )
    row = {"id": 1, "v": 5}
    # The UPDATE changes none of them, and is sent.
    assert [(type, old, new) for type, _, old, new in found] == [
        ("INSERT", None, row),
        ("UPDATE", row, row),
        ("DELETE", row, None),
    ]


def test_a_filter_may_use_columns_that_are_not_shown(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM items")
    found = seen(
        shared,
        filtered("items", "w=eq.a", columns="v"),
        "INSERT INTO items VALUES (1, 5, 'b')",
        "UPDATE items SET w = 'a'",
        "UPDATE items SET w = 'b'",
    )
    row = {"id": 1, "v": 5}
    assert [(type, old, new) for type, _, old, new in found] == [
        ("INSERT", None, row),
        ("DELETE", row, None),
    ]


def test_columns_of_several_tables_and_of_keys_of_all_kinds(shared: HubProcess) -> None:
    found = seen(
        shared,
        filtered("pairs,bare,notes", columns="pairs.w,bare.v"),
        "INSERT INTO pairs VALUES (1, 'b', 2, 3)",
        "INSERT INTO bare(rowid, v, w) VALUES (7, 1, 2)",
        "INSERT INTO notes VALUES (70, 'a', 'b')",
    )
    assert [(key, list(new.items())) for _, key, _, new in found] == [
        ({"a": 2, "b": "b"}, [("b", "b"), ("a", 2), ("w", 3)]),
        ({"rowid": 7}, [("v", 1)]),
        ({"id": 70}, [("id", 70), ("room", "a"), ("body", "b")]),
    ]


def test_a_snapshot_of_some_columns(shared: HubProcess) -> None:
    query = filtered("fixed", "v=eq.5", columns="w,room")
    assert snapshot_ids(shared, query) == [4]
    assert shared.get(f"/cdc/snapshot?{query}").json()["rows"] == [{"id": 4, "room": "a", "w": "X"}]
    csv_text = shared.get(f"/cdc/snapshot?{query}", Accept="text/csv").body
    assert csv_text == b"id,room,w\r\n4,a,X\r\n"
