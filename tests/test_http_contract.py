"""INTERFACE §4 over real HTTP: the JSON endpoints and their problems."""

from __future__ import annotations

import csv
import http.client
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Answer, HubProcess, make_database, quote, run_sql, wait_for

FULL_TODOS = (
    "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT NOT NULL, completed INTEGER DEFAULT 0,"
    " position INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL)"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("http") / "app.db",
        FULL_TODOS,
        "CREATE TABLE things(id INTEGER PRIMARY KEY, v)",
        "CREATE TABLE other(id INTEGER PRIMARY KEY, v)",
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, room TEXT, body TEXT)",
        "CREATE TABLE pairs(b TEXT, a INTEGER, v REAL, PRIMARY KEY(a, b)) WITHOUT ROWID",
        "CREATE TABLE late(id INTEGER PRIMARY KEY)",
        "CREATE TABLE bare(id INTEGER PRIMARY KEY)",
        'CREATE TABLE "a""b c"("x""y" TEXT PRIMARY KEY)',
        "CREATE TABLE fixed(id INTEGER PRIMARY KEY, room TEXT, v)",
        "INSERT INTO fixed VALUES (10, 'a', 'x'), (2, 'b', 1.0), (1, 'a', NULL), (3, 'a', x'00')",
    )
    with HubProcess(database) as hub:
        yield hub


def insert(hub: HubProcess, table: str, *values: str) -> list[dict[str, Any]]:
    """Inserts rows, one transaction each. The changes, as a page from before them."""
    before = hub.head()
    run_sql(hub.database, *(f"INSERT INTO {table} VALUES ({each})" for each in values))
    hub.wait_for_lsn(int(before.split(":")[1]) + len(values))
    changes: list[dict[str, Any]] = hub.get(f"/cdc/changes?table={table}&since={before}").json()[
        "changes"
    ]
    assert len(changes) == len(values)
    return changes


def is_problem(answer: Answer, status: int, code: str) -> None:
    assert answer.headers["content-type"] == "application/problem+json", answer.body
    document = answer.json()
    assert (answer.status, document["status"], document["code"]) == (status, status, code)
    assert document["title"]


# Refusals.

BAD_REQUESTS = [
    ("/cdc/{e}", 400, "missing_table"),
    ("/cdc/{e}?table=", 400, "missing_table"),
    ("/cdc/{e}?table=nope", 404, "unknown_table"),
    ("/cdc/{e}?table=%FF", 404, "unknown_table"),
    ("/cdc/{e}?table=%00", 404, "unknown_table"),
    ("/cdc/{e}?table=_cdchub_outbox", 404, "unknown_table"),
    ("/cdc/{e}?table=sqlite_schema", 404, "unknown_table"),
    ("/cdc/{e}?table=things&room=a", 400, "no_room_column"),
    ("/cdc/{e}?table=things&filter=id", 400, "bad_filter"),
    ("/cdc/{e}?table=things&filter=nope=eq.1", 400, "unknown_column"),
    ("/cdc/{e}?table=things&columns=nope", 400, "unknown_column"),
    ("/cdc/{e}?table=things&source=x", 400, "not_implemented"),
]
BAD_POSITIONS = ["foo", "-1", "", "1.5", "%FF", "a:b", "abcdefgh:", ":1", "abcdefgh:-1", "x:1", "1:1:1"]


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("endpoint", ["stream", "changes", "snapshot"])
@pytest.mark.parametrize(("path", "status", "code"), BAD_REQUESTS)
def test_a_bad_request_is_a_problem(
    shared: HubProcess, prefix: str, endpoint: str, path: str, status: int, code: str
) -> None:
    answer = shared.get(prefix + path.format(e=endpoint), Accept="text/event-stream, */*")
    is_problem(answer, status, code)
    assert answer.headers["x-cdc-version"] == "1"


@pytest.mark.parametrize("endpoint", ["stream", "changes"])
@pytest.mark.parametrize("name", ["since", "startLSN"])
@pytest.mark.parametrize("position", BAD_POSITIONS)
def test_a_malformed_position_is_400(
    shared: HubProcess, endpoint: str, name: str, position: str
) -> None:
    is_problem(shared.get(f"/cdc/{endpoint}?table=things&{name}={position}"), 400, "bad_position")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("format=nonsense", "validation_failed"),
        ("limit=0", None),
        ("limit=-1", None),
        ("limit=x", None),
        ("limit=", None),
        ("limit=%D9%A3%00", None),
        ("wait=x", None),
        ("wait=-1", None),
        ("wait=nan", None),
    ],
)
def test_a_bad_page_parameter_is_400(shared: HubProcess, query: str, code: str | None) -> None:
    answer = shared.get(f"/cdc/changes?table=things&{query}")
    is_problem(answer, 400, code or answer.code)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/cdc/nothing-here", 404),
        ("GET", "/nothing-here", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/static/..%2f..%2fapp.py", 404),
        ("POST", "/cdc/stream?table=things", 405),
        ("PUT", "/cdc/changes?table=things", 405),
        ("DELETE", "/cdc/snapshot?table=things", 405),
        ("PUT", "/api/todos", 405),
    ],
)
def test_an_unknown_path_or_method(shared: HubProcess, method: str, path: str, status: int) -> None:
    answer = shared.request(method, path)
    is_problem(answer, status, answer.code)
    if status == 405:
        assert "GET" in answer.headers["allow"]  # RFC 9110 §15.5.6: a 405 must say what is allowed


# Pages of changes.


def test_a_page_has_exactly_the_fields_of_the_contract(shared: HubProcess) -> None:
    epoch = shared.head().split(":")[0]
    (change,) = insert(shared, "things", "1, 'one'")
    answer = shared.get("/cdc/changes?table=*")
    page = answer.json()
    assert set(page) == {"epoch", "changes", "next", "head", "upToDate"}
    assert (page["epoch"], page["next"], page["head"]) == (epoch, page["head"], shared.head())
    assert page["upToDate"] is True
    assert page["changes"][-1] == change
    assert [each["lsn"] for each in page["changes"]] == list(range(1, change["lsn"] + 1))
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers
    fields = {"lsn", "type", "table", "key", "oldValue", "newValue", "timestamp", "txid", "commit"}
    assert set(change) == fields
    assert (change["key"], change["newValue"]) == ({"id": 1}, {"id": 1, "v": "one"})


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20_000])
def test_paging_gives_every_change_once(shared: HubProcess, limit: int) -> None:
    insert(shared, "other", *(f"NULL, {n}" for n in range(3)))
    whole = shared.get("/cdc/changes?table=other&since=beginning").json()["changes"]
    position, paged = "0", []
    while True:
        page = shared.get(f"/cdc/changes?table=other&since={position}&limit={limit}").json()
        assert len(page["changes"]) <= limit
        paged += page["changes"]
        if page["upToDate"]:
            break
        assert page["next"] != position, "a page that is not the last must move on"
        position = page["next"]
    assert paged == whole


def test_next_moves_past_changes_that_do_not_match(shared: HubProcess) -> None:
    before = shared.head()
    insert(shared, "other", "NULL, 1", "NULL, 2")
    page = shared.get(f"/cdc/changes?table=bare&since={before}").json()
    assert page["changes"] == []
    assert page["next"] == page["head"] != before


def test_a_long_poll_answers_when_a_change_comes(shared: HubProcess) -> None:
    answers: list[Answer] = []
    path = f"/cdc/changes?table=things&since={shared.head()}&wait=30"
    poll = threading.Thread(target=lambda: answers.append(shared.get(path)))
    poll.start()
    run_sql(shared.database, "INSERT INTO things VALUES (NULL, 'polled')")
    poll.join(25)
    assert not poll.is_alive(), "the poll must answer before its wait is over"
    assert [change["newValue"]["v"] for change in answers[0].json()["changes"]] == ["polled"]


def test_a_long_poll_without_a_change_ends_empty(shared: HubProcess) -> None:
    page = shared.get(f"/cdc/changes?table=bare&since={shared.head()}&wait=0.2").json()
    assert (page["changes"], page["upToDate"]) == ([], True)


def test_ndjson_is_one_change_a_line(shared: HubProcess) -> None:
    insert(shared, "things", "NULL, 'line\n\u2028break'")
    answer = shared.get("/cdc/changes?table=things", Accept="application/x-ndjson")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = answer.body.decode().removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == shared.get("/cdc/changes?table=things").json()[
        "changes"
    ]


@pytest.mark.parametrize(
    ("position", "code", "reason"),
    [
        ("foreignEpoch:1", "epoch_changed", "epoch"),
        ("{epoch}:99999999", "position_ahead", "ahead"),
        ("99999999", "position_ahead", "ahead"),
        ("{epoch}:9223372036854775807", "position_ahead", "ahead"),
    ],
)
def test_a_break_is_410_with_the_fields_of_reset(
    shared: HubProcess, position: str, code: str, reason: str
) -> None:
    head = shared.head()
    since = position.format(epoch=head.split(":")[0])
    answer = shared.get(f"/cdc/changes?table=things,notes&since={since}")
    is_problem(answer, 410, code)
    document = answer.json()
    assert (document["reason"], document["position"]) == (reason, head)
    assert sorted(document["tables"]) == ["notes", "things"]
    assert document["oldest"].startswith(head.split(":")[0] + ":")


# Snapshots.

FIXED_ROWS = [
    {"id": 1, "room": "a", "v": None},
    {"id": 2, "room": "b", "v": 1.0},
    {"id": 3, "room": "a", "v": {"$blob": "AA=="}},
    {"id": 10, "room": "a", "v": "x"},
]


def test_a_snapshot_as_json(shared: HubProcess) -> None:
    document = shared.get("/cdc/snapshot?table=fixed").json()
    assert set(document) == {"epoch", "lsn", "position", "table", "rows"}
    assert document["position"] == f"{document['epoch']}:{document['lsn']}" == shared.head()
    assert (document["table"], document["rows"]) == ("fixed", FIXED_ROWS)
    assert b'"v":1.0' in shared.get("/cdc/snapshot?table=fixed").body


def test_a_snapshot_of_a_room_and_of_nothing(shared: HubProcess) -> None:
    rows = shared.get("/cdc/snapshot?table=fixed&room=a").json()["rows"]
    assert rows == [row for row in FIXED_ROWS if row["room"] == "a"]
    assert shared.get("/cdc/snapshot?table=bare").json()["rows"] == []


def test_a_snapshot_as_ndjson(shared: HubProcess) -> None:
    answer = shared.get("/cdc/snapshot?table=fixed", Accept="application/x-ndjson")
    first, *rows = (json.loads(line) for line in answer.body.decode().splitlines())
    assert first["position"] == shared.head()
    assert rows == FIXED_ROWS


def test_a_snapshot_as_csv(shared: HubProcess) -> None:
    run_sql(
        shared.database,
        "INSERT INTO notes VALUES (1, 'a,b', 'say \"hi\"\r\nthere'), (2, '=1+1', 'é😀'), (3, NULL, '')",
    )
    wait_for(lambda: len(shared.get("/cdc/snapshot?table=notes").json()["rows"]) == 3, "the rows")
    answer = shared.get("/cdc/snapshot?table=notes", Accept="text/csv")
    assert answer.headers["content-type"].startswith("text/csv")
    text = answer.body.decode()
    assert text.startswith("id,room,body\r\n")
    assert text.endswith("\r\n")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[1] == ["1", "a,b", 'say "hi"\r\nthere']
    assert rows[2][2] == "é😀"
    assert len(rows) == 4


def test_head_answers_as_get_without_a_body(shared: HubProcess) -> None:
    paths = (
        "/cdc/changes?table=bare",
        "/cdc/snapshot?table=fixed",
        "/cdc/tables",
        "/healthz",
        "/readyz",
    )
    for path in paths:
        head, get = shared.request("HEAD", path), shared.get(path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    stream = shared.request("HEAD", "/cdc/stream?table=things")
    assert (stream.status, stream.body) == (200, b"")
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert shared.request("HEAD", "/cdc/stream?table=nope").status == 404


def test_a_snapshot_after_a_reset_is_not_older_than_the_reset(shared: HubProcess) -> None:
    """§3: without `snapshot=1` the stream goes on live from `position`: an older one leaves a gap."""
    assert shared.get("/cdc/snapshot?table=late").json()["rows"] == []
    (change,) = insert(shared, "late", "1")
    with shared.stream("table=late&since=foreignEpoch:1") as stream:
        position = json.loads(stream.until("reset")[-1].data)["position"]
    assert int(position.split(":")[1]) >= change["lsn"]
    snapshot = shared.get("/cdc/snapshot?table=late").json()
    assert (snapshot["position"], snapshot["rows"]) == (position, [{"id": 1}])


# Tables, status, health.


def test_tables_lists_each_with_key_room_and_columns(shared: HubProcess) -> None:
    tables = {each["table"]: each for each in shared.get("/cdc/tables").json()}
    assert set(tables) == {
        "todos", "things", "other", "notes", "pairs", "bare", 'a"b c', "fixed", "late",
    }  # fmt: skip
    assert tables["pairs"] == {
        "table": "pairs",
        "key": ["a", "b"],
        "room": None,
        "columns": [
            {"name": "b", "type": "TEXT"},
            {"name": "a", "type": "INTEGER"},
            {"name": "v", "type": "REAL"},
        ],
    }
    assert tables["notes"]["room"] == "room"
    assert tables['a"b c']["columns"] == [{"name": 'x"y', "type": "TEXT"}]
    assert shared.get("/cdc/snapshot?table=" + quote('a"b c')).json()["rows"] == []


def test_status_counts_subscribers(shared: HubProcess) -> None:
    with shared.stream("table=pairs") as stream:
        stream.until("caught-up")
        status = wait_for(
            lambda: (
                (s := shared.get("/cdc/status").json())["subscribers"]["byTable"].get("pairs") and s
            ),
            "the subscriber to be counted",
        )
        assert status["subscribers"]["byTransport"] == {"sse": 1}
    assert f"{status['epoch']}:{status['headLsn']}" == shared.head()
    assert status["firstLsn"] == 1
    assert status["version"]
    assert status["uptimeMs"] > 0
    wait_for(
        lambda: shared.get("/cdc/status").json()["subscribers"]["total"] == 0,
        "the subscriber to be gone",
    )


def test_health_and_readiness(shared: HubProcess) -> None:
    assert shared.get("/healthz").status == 200
    assert shared.get("/readyz").status == 200


def test_a_peer_that_speaks_no_http_harms_nothing(shared: HubProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    connection.connect()
    connection.sock.sendall(b"\x16\x03\x01nonsense\r\n\r\n")
    assert b" 400 " in connection.sock.recv(1000).split(b"\r\n")[0]
    connection.close()
    assert shared.get("/healthz").status == 200
