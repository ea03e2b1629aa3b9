"""`format=debezium` and `format=cloudevents`, wherever a change can be had, against the published
formats: Debezium's "Data change events", and CloudEvents 1.0.2 in its JSON format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import pytest

from tests.harness import HubProcess, cdchub, has_base, make_database, run_sql, wait_for

FORMATS = ["debezium", "cloudevents"]
VALUES = ["1.0", "9007199254740993", "x'00ff'", "'é\N{GRINNING FACE}\n'", "NULL", "9e999"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """With rows in its base snapshot, and changes of all kinds behind it."""
    database = make_database(
        tmp_path_factory.mktemp("formats") / "app.db",
        "CREATE TABLE t(id PRIMARY KEY, v)",
        "CREATE TABLE bare(v)",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
        "INSERT INTO t VALUES (1, 'a'), (1.0 || 'x', 2), (x'61', NULL)",
        "INSERT INTO bare VALUES (5), (5)",
    )
    with HubProcess(database) as process:
        wait_for(lambda: has_base(process), "the base snapshot")
        make_changes(process)
        yield process


def make_changes(hub: HubProcess) -> int:
    """Changes of all kinds. How many there are in the end."""
    head = int(hub.head().split(":")[1])
    statements = [f"INSERT INTO t VALUES ('n{n}', {value})" for n, value in enumerate(VALUES)]
    statements += ["UPDATE t SET v = 'é' WHERE id LIKE 'n%'", "UPDATE t SET id = 'm0' WHERE id = 'n0'"]
    statements += ["DELETE FROM t WHERE id = 'm0' OR id LIKE 'n%'", "INSERT INTO bare VALUES (6)"]
    run_sql(hub.database, *statements)
    wanted = head + 3 * len(VALUES) + 3
    hub.wait_for_lsn(wanted)
    return wanted


Document = dict[str, Any]


def debezium(document: Document, change: Document, epoch: str) -> None:
    assert set(document) >= {"before", "after", "source", "op", "ts_ms"}
    operations = {"INSERT": "c", "UPDATE": "u", "DELETE": "d", "SNAPSHOT": "r"}
    assert document["op"] == operations[change["type"]]
    assert (document["before"], document["after"]) == (change["oldValue"], change["newValue"])
    assert document["key"] == change["key"]
    assert document["ts_ms"] >= document["source"]["ts_ms"] == change["timestamp"]
    source = document["source"]
    # What its connectors' sources have in common.
    assert set(source) >= {
        "version",
        "connector",
        "name",
        "ts_ms",
        "snapshot",
        "db",
        "sequence",
        "table",
    }
    assert all(
        isinstance(source[each], str) and source[each] for each in ("version", "connector", "name")
    )
    assert source["table"] == change["table"]
    assert source["snapshot"] in (("true", "last") if change["type"] == "SNAPSHOT" else ("false",))
    assert json.loads(source["sequence"]) == [epoch, str(change["lsn"])]
    assert (source["lsn"], source["txId"]) == (change["lsn"], change["txid"])


def cloudevents(document: Document, change: Document, epoch: str) -> None:
    for name in ("id", "source", "specversion", "type", "subject", "datacontenttype"):
        assert isinstance(document[name], str), name
        assert document[name], f"{name} is a non-empty string"
    # Names of attributes (§3): lower-case letters and digits.
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in document)
    assert document["specversion"] == "1.0"
    # A URI-reference (RFC 3986): no spaces, quotes or brackets of other kinds.
    assert re.fullmatch(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+", document["source"])
    time = datetime.fromisoformat(document["time"])
    assert round(time.timestamp() * 1000) == change["timestamp"]
    assert re.search("(Z|[+-][0-9]{2}:[0-9]{2})$", document["time"]), "RFC 3339 has an offset"
    assert document["datacontenttype"] == "application/json"
    assert document["data"] == change
    assert epoch in document["id"] + document["source"]


JUDGES: dict[str, Callable[[Document, Document, str], None]] = {
    "debezium": debezium,
    "cloudevents": cloudevents,
}


def judge(format: str, documents: Sequence[Document], changes: Sequence[Document], epoch: str) -> None:
    assert len(documents) == len(changes) > 0
    for document, change in zip(documents, changes, strict=True):
        JUDGES[format](document, change, epoch)
    if format == "cloudevents":
        named = {(document["source"], document["id"]) for document in documents}
        assert len(named) == len(documents), "source and id together name one event"


def streamed(hub: HubProcess, query: str) -> tuple[list[Document], list[str]]:
    """The documents up to the present, and their ids."""
    with hub.stream(query) as stream:
        events = [event for event in stream.until("caught-up") if event.name == "message"]
    return [json.loads(event.data) for event in events], re.findall(
        "^id: .*$", stream.text, re.MULTILINE
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("begin", ["snapshot=1", "since=beginning", "since={epoch}:3"])
def test_a_stream_in_another_format(hub: HubProcess, format: str, begin: str) -> None:
    epoch = hub.head().split(":")[0]
    query = f"table=*&{begin.format(epoch=epoch)}"
    changes, ids = streamed(hub, query)
    documents, same_ids = streamed(hub, f"{query}&format={format}")
    if begin == "snapshot=1":
        # Each snapshot is another reading, at another time.
        times = {change["timestamp"] for change in changes}
        assert len(times) <= 2
        documents = [timeless(format, each, changes[0]["timestamp"]) for each in documents]
        changes = [change | {"timestamp": changes[0]["timestamp"]} for change in changes]
    judge(format, documents, changes, epoch)
    assert same_ids == ids
    kinds = {change["type"] for change in changes}
    assert kinds == {
        "snapshot=1": {"SNAPSHOT"},
        "since=beginning": {"SNAPSHOT", "INSERT", "UPDATE", "DELETE"},
    }.get(begin, {"INSERT", "UPDATE", "DELETE"})


def timeless(format: str, document: Document, timestamp: int) -> Document:
    """A document of a snapshot as if it had been read at that time."""
    if format == "debezium":
        return document | {"ts_ms": timestamp, "source": document["source"] | {"ts_ms": timestamp}}
    time = datetime.fromtimestamp(timestamp / 1000).astimezone().isoformat(timespec="milliseconds")
    return document | {"time": time, "data": document["data"] | {"timestamp": timestamp}}


@pytest.mark.parametrize("format", FORMATS)
def test_a_live_stream_in_another_format(hub: HubProcess, format: str) -> None:
    epoch = hub.head().split(":")[0]
    with hub.stream("table=*") as plain, hub.stream(f"table=*&format={format}") as other:
        plain.until("caught-up")
        other.until("caught-up")
        before = int(hub.head().split(":")[1])
        count = make_changes(hub) - before
        judge(format, other.changes(count), plain.changes(count), epoch)
        assert other.last_id == plain.last_id


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_beside_a_filter_and_columns(hub: HubProcess, format: str) -> None:
    epoch = hub.head().split(":")[0]
    query = "table=t&since=beginning&filter=v=is.not_null&columns=id"
    changes, _ = streamed(hub, query)
    documents, _ = streamed(hub, f"{query}&format={format}")
    assert {change["type"] for change in changes} >= {"SNAPSHOT", "INSERT", "DELETE"}
    judge(format, documents, changes, epoch)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_pages_in_another_format(hub: HubProcess, format: str, accept: str) -> None:
    plain = hub.get("/cdc/changes?table=*").json()
    answer = hub.get(f"/cdc/changes?table=*&format={format}", Accept=accept)
    if accept == "application/json":
        page = answer.json()
        assert (page["next"], page["head"]) == (plain["next"], plain["head"])
        documents = page["changes"]
    else:
        documents = [json.loads(line) for line in answer.body.splitlines()]
    judge(format, documents, plain["changes"], plain["epoch"])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("of", ["file", "url"])
@pytest.mark.parametrize("begin", [("--since", "beginning"), ("--snapshot",)])
def test_tail_prints_another_format(
    hub: HubProcess, format: str, of: str, begin: tuple[str, ...]
) -> None:
    epoch = hub.head().split(":")[0]
    where = hub.database if of == "file" else hub.url
    printed = {}
    for name in ("json", format):
        done = cdchub("tail", where, *begin, "--no-follow", "--format", name)
        assert done.returncode == 0, done.stderr
        printed[name] = [json.loads(line) for line in done.stdout.splitlines()]
    changes, documents = printed["json"], printed[format]
    if begin == ("--snapshot",):
        documents = [timeless(format, each, changes[0]["timestamp"]) for each in documents]
        changes = [change | {"timestamp": changes[0]["timestamp"]} for change in changes]
    judge(format, documents, changes, epoch)


@pytest.mark.parametrize("endpoint", ["stream", "changes"])
def test_an_unknown_format_is_refused(hub: HubProcess, endpoint: str) -> None:
    answer = hub.get(f"/cdc/{endpoint}?table=t&format=avro", Accept="text/event-stream, */*")
    assert (answer.status, answer.code) == (400, "validation_failed")
    assert "format" in answer.json()["errors"]
