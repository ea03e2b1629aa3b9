"""INTERFACE §3 over a real socket: `conflate=1` for readers that lag, live and resuming."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdchub.sse import Event, EventParser
from tests.harness import PATIENCE_S, HubProcess, make_database, run_sql, wait_for

KEYS = 7
PAD = "printf('%.*c', 2000, 'x')"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, pad TEXT)",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
    )
    with HubProcess(database) as process:
        yield process


class SlowReader:
    """A connection whose reader can stop reading: little fits into its buffers then."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._parser = EventParser()
        self._head = b""
        self.events: list[Event] = []

    def read_until(self, name: str, *, times: int = 1) -> None:
        while sum(event.name == name for event in self.events) < times:
            self._read()

    def read_to_key(self, table: str, key: int) -> None:
        while not any(c["table"] == table and c["key"]["id"] == key for c in self.changes[-50:]):
            self._read()

    def read_changes(self, count: int) -> None:
        while len(self.changes) < count:
            self._read()

    def _read(self) -> None:
        data = self._connection.recv(65_536)
        assert data, "the stream has ended"
        if b"\r\n\r\n" not in self._head:
            self._head += data
            _, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            assert b"chunked" not in self._head.lower()
        self.events += self._parser.feed(data)

    @property
    def changes(self) -> list[dict[str, Any]]:
        return [json.loads(event.data) for event in self.events if event.name == "message"]


@contextmanager
def slow(hub: HubProcess, query: str) -> Iterator[SlowReader]:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", hub.port))
        # HTTP/1.0: the body comes as it is, and not in chunks.
        connection.sendall(
            f"GET /cdc/stream?{query} HTTP/1.0\r\nHost: 127.0.0.1:{hub.port}\r\n\r\n".encode()
        )
        yield SlowReader(connection)


def write(hub: HubProcess, count: int, *more: str) -> int:
    """So many updates of few rows, each a change of its own, in some transactions. The head's LSN."""
    before = int(hub.head().split(":")[1])
    rows = f"WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < {count // 4})"
    insert = (
        f"INSERT INTO t(id, n, pad) {rows} SELECT n % {KEYS}, n, {PAD} FROM k WHERE true"
        " ON CONFLICT(id) DO UPDATE SET n = t.n + 1"
    )
    run_sql(hub.database, *[insert] * 4, *more, "INSERT INTO quiet VALUES (NULL)")
    hub.wait_for_lsn(before + 4 * (count // 4) + 1)
    return int(hub.head().split(":")[1])


def rows_of(hub: HubProcess) -> dict[int, int]:
    return dict(run_sql(hub.database, "SELECT id, n FROM t"))  # type: ignore[arg-type]


def judge(hub: HubProcess, changes: list[dict[str, Any]]) -> None:
    lsns = [change["lsn"] for change in changes]
    assert lsns == sorted(set(lsns)), "a repeat or disorder"
    held: dict[int, Any] = {}
    for change in changes:
        if change["table"] == "t":
            held[change["key"]["id"]] = change["newValue"] and change["newValue"]["n"]
        if change.get("conflated"):
            assert change["oldValue"] is None
    assert {key: n for key, n in held.items() if n is not None} == rows_of(hub)


def test_a_reader_that_lags_gets_the_last_states(hub: HubProcess) -> None:
    with slow(hub, "table=*&conflate=1") as reader:
        reader.read_until("caught-up")
        count = 6_000
        write(hub, count, "DELETE FROM t WHERE id = 3")
        reader.read_to_key("quiet", 1)
        changes = reader.changes
        conflated = [change for change in changes if change.get("conflated")]
        assert len({change["key"]["id"] for change in conflated if change["table"] == "t"}) == KEYS
        assert len(changes) < count / 4, "a lagging reader is spared most of it"
        assert [c["type"] for c in changes if c["key"]["id"] == 3 and c["table"] == "t"][-1] == "DELETE"
        judge(hub, changes)
        # It has caught up, and gets each change again.
        before = len(changes)
        run_sql(hub.database, *(f"UPDATE t SET n = -{n} WHERE id = 1" for n in (1, 2, 3)))
        reader.read_changes(before + 3)
        assert not any("conflated" in change for change in reader.changes[before:])
        assert [c["newValue"]["n"] for c in reader.changes[before:]] == [-1, -2, -3]
        assert all(change["oldValue"] for change in reader.changes[before:])
        judge(hub, reader.changes)


@pytest.mark.parametrize("more", ["", "&filter=t.n=gt.0", "&format=debezium"])
def test_who_resumes_gets_the_last_states(hub: HubProcess, more: str) -> None:
    begin = hub.head()
    write(hub, 2_000)
    with hub.stream(f"table=t,quiet&conflate=1&since={begin}{more}") as stream:
        events = [event for event in stream.until("caught-up") if event.name == "message"]
    found = [json.loads(event.data) for event in events]
    assert len(found) == KEYS + 1
    assert stream.last_id == hub.head()
    if "format" in more:
        assert {each["after"]["id"]: each["after"]["n"] for each in found[:-1]} == rows_of(hub)
        assert all(each["before"] is None for each in found)
    else:
        assert all(change["conflated"] is True for change in found)
        judge(hub, found)
    with hub.stream(f"table=t,quiet&since={begin}{more}") as stream:
        whole = [event for event in stream.until("caught-up") if event.name == "message"]
    assert len(whole) == 2_001, "without conflate it is all of it"


def test_a_reader_that_keeps_up_gets_everything(hub: HubProcess) -> None:
    run_sql(hub.database, "INSERT INTO t VALUES (1, 0, '')")
    hub.wait_for_lsn(1)
    with hub.stream("table=t&conflate=1") as stream:
        stream.until("caught-up")
        run_sql(hub.database, *["UPDATE t SET n = n + 1"] * 50)
        changes = stream.changes(50)
    assert [change["newValue"]["n"] for change in changes] == list(range(1, 51))
    assert not any("conflated" in change for change in changes)


def test_nothing_is_conflated_across_a_reset(hub: HubProcess) -> None:
    """Another history: what comes behind the reset is told behind it, and in whole."""
    begin = hub.head()
    write(hub, 400)
    # The table has no key, and its rows another one after VACUUM: its history breaks.
    run_sql(hub.database, "CREATE TABLE bare(v)")
    wait_for(
        lambda: "bare" in [table["table"] for table in hub.get("/cdc/tables").json()],
        "the table to be captured",
    )
    position = hub.head()
    run_sql(
        hub.database, "INSERT INTO bare VALUES (1), (2), (3)", "DELETE FROM bare WHERE v < 3", "VACUUM"
    )

    def broken() -> bool:
        nonlocal position
        run_sql(hub.database, "INSERT INTO quiet VALUES (NULL)")
        answer = hub.get(f"/cdc/changes?table=bare&since={position}")
        position = answer.json().get("next", position)
        return answer.status == 410

    wait_for(broken, "the break to be in the log", within_s=15)
    run_sql(hub.database, "UPDATE bare SET v = v + 1", "UPDATE bare SET v = v + 1")
    marks = run_sql(hub.database, "INSERT INTO quiet VALUES (NULL) RETURNING id")
    wait_for(
        lambda: (
            marks[-1][0]
            in [c["key"]["id"] for c in hub.get("/cdc/changes?table=quiet").json()["changes"]]
        ),
        "the last change",
    )
    with hub.stream(f"table=*&conflate=1&since={begin}") as stream:
        events = stream.until("caught-up")
    names = [event.name for event in events]
    reset = names.index("reset")
    before = [json.loads(e.data) for e in events[:reset] if e.name == "message"]
    behind = [json.loads(e.data) for e in events[reset:] if e.name == "message"]
    at = int(json.loads(events[reset].data)["position"].split(":")[1])
    assert before
    assert max(change["lsn"] for change in before) < at < min(change["lsn"] for change in behind)
    assert len([c for c in before if c["table"] == "t"]) == KEYS
    assert {c["newValue"]["v"] for c in behind if c["table"] == "bare"} == {5}
