"""INTERFACE §3 over real HTTP: the event stream, point by point."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import HubProcess, Stream, make_database, run_sql, wait_for

Serving = Callable[..., HubProcess]
RETAINING = ("--retain-changes", "10", "--set", "log.retain_every_s=0.1")


@pytest.fixture(scope="module")
def shared(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("stream") / "app.db",
        "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT, completed INTEGER DEFAULT 0)",
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, room TEXT, body)",
        "CREATE TABLE big(id INTEGER PRIMARY KEY, v)",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
        "CREATE TABLE hollow(id INTEGER PRIMARY KEY)",
        "INSERT INTO notes VALUES (10, 'a', 'x'), (9, 'b', 'y'), (-1, NULL, 'z')",
        "INSERT INTO todos VALUES ('b', 'B', 0), ('B', 'b', 1), ('a', 'A', 0)",
    )
    with serving(database, "--heartbeat", "0.3") as hub:
        run_sql(
            database, "INSERT INTO todos(id) VALUES ('first')", "DELETE FROM todos WHERE id = 'first'"
        )
        hub.wait_for_lsn(2)
        yield hub


@pytest.fixture(scope="module")
def pruned(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A hub whose log has lost its oldest changes."""
    database = make_database(
        tmp_path_factory.mktemp("pruned") / "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, room TEXT)",
    )
    with serving(database, *RETAINING) as hub:
        run_sql(database, *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(1, 41)))
        # Changes go only up to a newer base snapshot, which is taken because they ought to go.
        wait_for(lambda: hub.get("/cdc/status").json()["log"]["basesTaken"] > 1, "a newer base")
        run_sql(database, *(f"INSERT INTO t VALUES ({n}, 'a')" for n in range(41, 61)))
        hub.wait_for_lsn(60)
        wait_for(lambda: hub.get("/cdc/status").json()["firstLsn"] > 1, "retention to run")
        assert hub.stop() == 0
    # Nothing more goes while the tests look.
    with serving(database) as hub:
        yield hub


def data(stream: Stream, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(stream.until(name)[-1].data)
    return document


# The opening, ids and headers.


@pytest.mark.parametrize("prefix", ["/cdc", "/api/cdc"])
def test_the_opening(shared: HubProcess, prefix: str) -> None:
    head = shared.head()
    with Stream(shared.port, f"{prefix}/stream?table=quiet") as stream:
        stream.until("caught-up")
        pattern = rf": connected\n+retry: ?(\d+)\n+id: ?{head}\n\n"
        opening = re.match(pattern, stream.text)
        assert opening, stream.text
        assert 2500 <= int(opening[1]) <= 7500
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["x-cdc-version"] == "1"
        assert stream.headers["x-cdc-position"] == head
        assert "access-control-allow-origin" not in stream.headers
        assert "content-encoding" not in stream.headers


def test_each_change_is_one_message_with_its_position_as_id(shared: HubProcess) -> None:
    with shared.stream("table=todos") as stream:
        assert data(stream, "caught-up") == {"position": shared.head()}
        run_sql(
            shared.database, "INSERT INTO todos(id) VALUES ('x')", "DELETE FROM todos WHERE id = 'x'"
        )
        for _ in range(2):
            event = stream.next()
            assert event.name == "message"
            assert event.last_id == f"{shared.head().split(':')[0]}:{json.loads(event.data)['lsn']}"
    assert len(re.findall(r"^data:.*\"type\"", stream.text, re.MULTILINE)) == 2


@pytest.mark.parametrize("query", ["table=todos,notes", "table=todos&table=notes", "table=*"])
def test_several_tables(shared: HubProcess, query: str) -> None:
    with shared.stream(query) as stream:
        stream.until("caught-up")
        run_sql(
            shared.database,
            "INSERT INTO todos(id) VALUES ('s')",
            "INSERT INTO notes(id) VALUES (99)",
            "DELETE FROM todos WHERE id = 's'",
            "DELETE FROM notes WHERE id = 99",
        )
        assert [change["table"] for change in stream.changes(4)] == ["todos", "notes", "todos", "notes"]


def test_a_table_created_later_is_streamed_too(shared: HubProcess) -> None:
    with shared.stream("table=*") as stream:
        stream.until("caught-up")
        run_sql(shared.database, "CREATE TABLE IF NOT EXISTS later(id INTEGER PRIMARY KEY)")
        tables = "/cdc/tables"
        wait_for(lambda: b'"later"' in shared.get(tables).body, "the new table to be captured")
        run_sql(shared.database, "INSERT INTO later VALUES (1)")
        assert stream.changes(1)[0]["table"] == "later"


# Where to begin.


def test_every_position_is_followed_by_exactly_the_rest(shared: HubProcess) -> None:
    whole = shared.get("/cdc/changes?table=*").json()["changes"]
    epoch, head = shared.head().split(":")
    for lsn in {0, 1, int(head) // 2, int(head) - 1, int(head)}:
        rest = [change for change in whole if change["lsn"] > lsn]
        for query, headers in (
            (f"since={epoch}:{lsn}", {}),
            (f"startLSN={epoch}:{lsn}", {}),
            # A bare 0 is the beginning, which has a base snapshot before it.
            *([(f"since={lsn}", {})] if lsn else []),
            ("", {"Last_Event_ID": f"{epoch}:{lsn}"}),
            ("since=now", {"Last_Event_ID": f"{epoch}:{lsn}"}),
            ("since=foreignEpoch:1", {"Last_Event_ID": f"{epoch}:{lsn}"}),
            ("snapshot=1", {"Last_Event_ID": f"{epoch}:{lsn}"}),
            (f"snapshot=1&since={epoch}:{lsn}", {}),
        ):
            with shared.stream(f"table=*&{query}", **headers) as stream:
                assert stream.headers["x-cdc-position"] == f"{epoch}:{lsn}", query
                events = stream.until("caught-up")
            assert [json.loads(event.data) for event in events[:-1]] == rest, query


def test_now_begins_at_the_head_and_beginning_at_the_oldest(shared: HubProcess) -> None:
    epoch = shared.head().split(":")[0]
    with shared.stream("table=todos&since=now") as stream:
        assert stream.headers["x-cdc-position"] == shared.head()
    whole = shared.get("/cdc/changes?table=todos&limit=10000").json()["changes"]
    for since in ("beginning", "0"):
        with shared.stream(f"table=todos&since={since}") as stream:
            assert "x-cdc-position" not in stream.headers
            events = stream.until("caught-up")
        assert events[0].name == "snapshot"
        assert json.loads(events[0].data)["position"] == f"{epoch}:0"
        changes = [json.loads(event.data) for event in events[1:-1]]
        assert [c for c in changes if c["type"] != "SNAPSHOT"] == whole


RESETS = [
    ("since=foreignEpoch:1", None, "epoch"),
    ("since=999999", None, "ahead"),
    ("since={epoch}:999999", None, "ahead"),
    ("", "{epoch}:999999", "ahead"),
    ("", "foreignEpoch:1", "epoch"),
    ("", "malformed", "epoch"),
    ("", "-1", "epoch"),
    ("since=now", "{epoch}:", "epoch"),
    ("since={epoch}:1", "x" * 3000, "epoch"),
]


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize(("query", "header", "reason"), RESETS)
def test_a_position_that_cannot_be_served_is_reset(
    shared: HubProcess, snapshot: bool, query: str, header: str | None, reason: str
) -> None:
    head = shared.head()
    epoch = head.split(":")[0]
    headers = {"Last_Event_ID": header.format(epoch=epoch)} if header else {}
    query = "table=notes,todos&" + query.format(epoch=epoch) + ("&snapshot=1" if snapshot else "")
    with shared.stream(query, **headers) as stream:
        assert ("x-cdc-position" in stream.headers) is not snapshot
        events = stream.until("caught-up")
        text = stream.text
    assert events[0].name == "reset"
    reset = json.loads(events[0].data)
    assert (reset["reason"], sorted(reset["tables"])) == (reason, ["notes", "todos"])
    assert set(reset) == {"reason", "tables", "position", "oldest"}
    names = [event.name for event in events]
    if snapshot:
        assert events[0].last_id == ""
        assert names[1] == "snapshot"
        assert names.count("reset") == names.count("snapshot") == names.count("caught-up") == 1
    else:
        assert (events[0].last_id, reset["position"]) == (head, head)
        assert names == ["reset", "caught-up"]
    assert text.startswith(": connected\n")


@pytest.mark.parametrize("snapshot", [False, True])
def test_an_expired_position_is_reset(pruned: HubProcess, snapshot: bool) -> None:
    status = pruned.get("/cdc/status").json()
    epoch, first = status["epoch"], status["firstLsn"]
    for lsn in (0, 1, first - 2):
        with pruned.stream(f"table=t&since={epoch}:{lsn}" + "&snapshot=1" * snapshot) as stream:
            events = stream.until("caught-up")
        assert json.loads(events[0].data)["reason"] == "expired"
        assert json.loads(events[0].data)["oldest"] == f"{epoch}:{first - 1}"
        assert sum(event.name == "message" for event in events) == 60 * snapshot
    answer = pruned.get(f"/cdc/changes?table=t&since={epoch}:0")
    assert (answer.status, answer.code, answer.json()["reason"]) == (410, "position_expired", "expired")


def test_the_oldest_position_and_beginning_are_served(pruned: HubProcess) -> None:
    status = pruned.get("/cdc/status").json()
    kept = list(range(status["firstLsn"], 61))
    for since in ("beginning", "0", f"{status['epoch']}:{kept[0] - 1}", f"{kept[0] - 1}"):
        with pruned.stream(f"table=t&since={since}") as stream:
            events = stream.until("caught-up")
        changes = [json.loads(event.data) for event in events if event.name == "message"]
        from_base = since in ("beginning", "0")
        rows = [c["key"]["id"] for c in changes if c["type"] == "SNAPSHOT"]
        assert rows == (list(range(1, kept[0])) if from_base else [])
        assert [c["lsn"] for c in changes if c["type"] != "SNAPSHOT"] == kept
    assert [c["lsn"] for c in pruned.get("/cdc/changes?table=t").json()["changes"]] == kept


# Snapshots.


def test_the_framing_of_a_snapshot(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM notes WHERE id NOT IN (10, 9, -1)")
    with shared.stream("table=todos,notes,hollow&snapshot=1") as stream:
        events = stream.until("caught-up")
        text = stream.text
        assert "x-cdc-position" not in stream.headers
    first = json.loads(events[0].data)
    position = first["position"]
    assert (events[0].name, sorted(first["tables"])) == ("snapshot", ["hollow", "notes", "todos"])
    rows = [json.loads(event.data) for event in events[1:-1]]
    assert [(row["table"], row["key"]["id"]) for row in rows] in (
        [(t, k) for t, keys in order for k in keys]
        for order in (
            [("notes", [-1, 9, 10]), ("todos", ["B", "a", "b"])],
            [("todos", ["B", "a", "b"]), ("notes", [-1, 9, 10])],
        )
    )
    for row in rows:
        assert (row["type"], row["oldValue"]) == ("SNAPSHOT", None)
        assert row["lsn"] == int(position.split(":")[1])
        assert row["newValue"]["id"] == row["key"]["id"]
    assert [event.last_id for event in events[:-1]] == [""] * (len(events) - 1)
    before, after = text[: text.rindex("SNAPSHOT")], text[text.rindex("SNAPSHOT") :]
    assert not re.search(r"^id: ?[^\n ]", before, re.MULTILINE), "an id before the last row"
    assert re.search(rf"\n\nid: ?{position}\n\n", after), "an id-only block after the last row"
    assert json.loads(events[-1].data)["position"] == events[-1].last_id


def test_a_snapshot_meets_the_changes_without_gap_or_repeat(shared: HubProcess) -> None:
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n"
        "for n in range(600):\n"
        "    db.execute('INSERT INTO big VALUES (?1 % 37, ?1)'\n"
        "        ' ON CONFLICT(id) DO UPDATE SET v = ?1', (n,))\n"
        "    db.execute('DELETE FROM big WHERE id = ?', (n * 7 % 37,))\n"
        "db.execute('INSERT INTO big VALUES (1000, 1)')\n"
    )
    run_sql(shared.database, "DELETE FROM big")
    start = int(shared.head().split(":")[1])
    streams = []
    with subprocess.Popen([sys.executable, "-c", script, shared.database]):
        for after in (1, 100, 300, 500, 700):
            shared.wait_for_lsn(start + after)
            streams.append(shared.stream("table=big&snapshot=1"))
    expected = run_sql(shared.database, "SELECT * FROM big ORDER BY id")
    for stream in streams:
        state, last = {}, 0
        while 1000 not in state:  # the last commit of all, and the last row by key
            event = stream.next()
            if event.name == "message":
                change = json.loads(event.data)
                assert change["lsn"] > last or change["type"] == "SNAPSHOT", "a repeat"
                last = change["lsn"]
                state[change["key"]["id"]] = change["newValue"]
        assert sorted([row["id"], row["v"]] for row in state.values() if row) == expected
        assert stream.text.count("event: caught-up") <= 1
        stream.close()


def test_a_slow_reader_gets_everything_once_in_order(shared: HubProcess) -> None:
    run_sql(shared.database, "DELETE FROM big")
    with shared.stream("table=big") as slow:
        slow.until("caught-up")
        for start in range(1000, 1600, 100):
            rows = ", ".join(f"({n}, printf('%.*c', 20000, 'x'))" for n in range(start, start + 100))
            run_sql(shared.database, f"INSERT INTO big VALUES {rows}")
        ((lsn,),) = run_sql(shared.database, "SELECT max(lsn) FROM _cdchub_outbox")
        shared.wait_for_lsn(lsn)
        changes = slow.changes(1)
        while changes[0]["type"] == "DELETE":
            # What was there before; it may have been logged after the stream was opened.
            changes = slow.changes(1)
        changes += slow.changes(599)
        assert [change["key"]["id"] for change in changes] == list(range(1000, 1600))
    run_sql(shared.database, "DELETE FROM big")


# Heartbeats.


def test_a_heartbeat_carries_the_cursor_of_a_quiet_subscriber(shared: HubProcess) -> None:
    with shared.stream("table=notes&room=nobody") as stream:
        stream.until("caught-up")
        run_sql(
            shared.database, "INSERT INTO todos(id) VALUES ('h')", "DELETE FROM todos WHERE id = 'h'"
        )
        shared.wait_for_lsn(int(stream.last_id.split(":")[1]) + 2)
        head = int(shared.head().split(":")[1])
        stream.read_until(lambda s: int(s.last_id.split(":")[1]) >= head)
        assert re.search(rf": ?ping\n+id: ?{stream.last_id}\n\n", stream.text)
        assert '"type"' not in stream.text


def test_heartbeats_are_events_for_who_asks(shared: HubProcess) -> None:
    """A page hears of no comments, and so not that there are none any more."""
    with shared.stream("table=notes&heartbeat=1") as stream:
        first = stream.until("heartbeat")[-1]
        assert json.loads(first.data) == {"position": shared.head(), "heartbeat": 0.3}
        stream.until("caught-up")
        run_sql(
            shared.database, "INSERT INTO todos(id) VALUES ('h')", "DELETE FROM todos WHERE id = 'h'"
        )
        head = f"{shared.status()['epoch']}:{int(first.last_id.split(':')[1]) + 2}"
        while json.loads(stream.until("heartbeat")[-1].data)["position"] != head:
            pass
        assert stream.last_id == head
        assert "ping" not in stream.text


# Ending.


def test_at_shutdown_each_stream_ends_with_a_retry_and_its_last_id(
    serving: Serving, database: Path
) -> None:
    with serving(database, "--drain", "1") as hub:
        run_sql(database, "INSERT INTO todos(id) VALUES ('a')")
        hub.wait_for_lsn(1)
        streams = [hub.stream("table=todos") for _ in range(8)]
        for stream in streams:
            stream.until("caught-up")
        head = hub.head()
        assert hub.stop() == 0
        retries = []
        for stream in streams:
            assert [event.name for event in stream.rest()] == []
            assert stream.last_id == head
            end = stream.text[stream.text.index("caught-up") :]
            assert re.search(rf"^id: ?{head}$", end.split("\n\n", 1)[1], re.MULTILINE)
            retries.append(int(re.findall(r"^retry: ?(\d+)$", end, re.MULTILINE)[-1]))
            stream.close()
        assert len(set(retries)) > 1, "jitter"


def test_while_draining_new_streams_are_refused_kindly(serving: Serving, database: Path) -> None:
    with serving(database, "--drain", "30") as hub:
        streams = [hub.stream("table=todos") for _ in range(20)]
        for stream in streams:
            stream.until("caught-up")
        hub.process.send_signal(signal.SIGTERM)
        wait_for(lambda: hub.get("/readyz").status == 503, "readiness to go")
        assert hub.get("/healthz").status == 200
        with hub.stream("table=todos") as refused:
            assert refused.status == 200
            (event,) = refused.rest()
            assert refused.parser.retry_ms
        said = json.loads(event.data)
        assert (event.name, set(said)) == ("refused", {"code", "message", "retryAfterMs"})
        other = hub.get("/cdc/stream?table=todos", Accept="application/json")
        assert (other.status, other.code) == (503, "overloaded")
        assert int(other.headers["retry-after"]) >= 0
        assert hub.get("/cdc/stream?table=nope", Accept="text/event-stream").status in (200, 404)
        hub.kill()
        for stream in streams:
            stream.close()
