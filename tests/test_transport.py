"""What a connection and the hub may do to each other: before, during and after a stream."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import HubProcess, make_database, run_sql, wait_for
from tests.wire import Wire, request

STREAM = "/cdc/stream?table=notes"
ORIGIN = "http://page.example"


@pytest.fixture(scope="module")
def shared(
    serving: Callable[..., HubProcess], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("transport") / "app.db",
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, body)",
    )
    with serving(database, "--cors-origin", ORIGIN) as hub:
        yield hub
        assert not [line for line in hub.lines if "Traceback" in line or "ERROR" in line]


@pytest.fixture
def idle(shared: HubProcess) -> HubProcess:
    """The hub, without streams of an earlier test."""
    wait_for(lambda: shared.subscribers() == 0, "the streams of earlier tests to be gone")
    return shared


@pytest.fixture
def product(database: Path) -> Iterator[HubProcess]:
    """`cdchub serve`, where other servers behave differently."""
    run_sql(database, "CREATE TABLE notes(id INTEGER PRIMARY KEY, body)")
    with HubProcess(database) as hub:
        yield hub


def commit(hub: HubProcess, body: str = "x") -> bytes:
    """Commits a change, and returns what its event begins with."""
    epoch, lsn = hub.head().split(":")
    run_sql(hub.database, f"INSERT INTO notes(body) VALUES ({body!r})")
    return f"id: {epoch}:{int(lsn) + 1}\ndata: {{".encode()


def goes_on(wire: Wire, hub: HubProcess) -> None:
    """The stream is live: what is committed now comes."""
    wire.read_until(commit(hub))


def gone(hub: HubProcess) -> None:
    wait_for(lambda: hub.subscribers() == 0, "the hub to notice that its reader has left")


# Methods, and what comes before a stream on its connection.


def test_head_is_answered_without_a_stream(idle: HubProcess) -> None:
    with Wire(idle.port) as wire:
        wire.ask(STREAM, method="HEAD")
        head = wire.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-type: text/event-stream" in head
        # The connection goes on with the next answer: there was no body.
        wire.ask("/healthz")
        assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert idle.subscribers() == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_told_which_are_allowed(idle: HubProcess, method: str) -> None:
    answer = idle.request(method, STREAM)
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert idle.subscribers() == 0


def test_a_stream_may_come_after_other_requests(idle: HubProcess) -> None:
    with Wire(idle.port) as wire:
        for path in ["/healthz", "/healthz", STREAM]:
            wire.ask(path)
            wire.read_until(b"HTTP/1.1 200 ")
        goes_on(wire, idle)


def test_a_stream_may_be_pipelined_behind_another_request(idle: HubProcess) -> None:
    with Wire(idle.port) as wire:
        wire.send(request("/healthz") + request(STREAM))
        wire.read_until(b": connected")
        goes_on(wire, idle)


BEHIND = {
    "a request": request("/healthz"),
    "many requests": request("/healthz") * 50,
    "another stream": request("/cdc/stream?table=*"),
    "a body": b"",
}


@pytest.mark.parametrize("what", BEHIND)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_comes_behind_the_request_is_ignored(idle: HubProcess, what: str, at_once: bool) -> None:
    ask = request(STREAM)
    behind = BEHIND[what]
    if what == "a body":
        ask, behind = request(STREAM, "Content-Length: 10"), b"0123456789"
    with Wire(idle.port) as wire:
        wire.send(ask + (behind if at_once else b""))
        if not at_once:
            wire.read_until(b"caught-up")
            wire.send(behind)
        for _ in range(2):
            goes_on(wire, idle)
        assert idle.subscribers() == 1
        if "httptools" in idle.process.args:
            # uvicorn tells only the newest of pipelined requests that their peer has left.
            idle.kill()
            idle.start()
    gone(idle)


def test_who_talks_too_much_is_cut_off(idle: HubProcess) -> None:
    with Wire(idle.port) as wire:
        wire.ask(STREAM)
        wire.read_until(b"caught-up")
        with pytest.raises(ConnectionError):
            wire.send(b"x" * 2**26)
    gone(idle)


# The head of the response.


def test_the_head_of_a_response(idle: HubProcess) -> None:
    with Wire(idle.port) as wire:
        wire.ask(STREAM, f"Origin: {ORIGIN}")
        head = wire.read_until(b"\r\n\r\n").decode()
        wire.read_until(b"caught-up")
    lines = head.split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    pairs = [line.lower().split(": ", 1) for line in lines[1:] if line]
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names), "a header twice"
    headers = dict(pairs)
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-cdc-version"] == "1"
    assert headers["x-cdc-position"] == idle.head().lower()
    assert headers["access-control-allow-origin"] == ORIGIN
    assert "content-length" not in headers


def test_a_stream_that_was_handed_over_ends_with_its_connection(product: HubProcess) -> None:
    """Where uvicorn writes the body, it frames it."""
    for version in ("1.0", "1.1"):
        with Wire(product.port) as wire:
            wire.ask(STREAM, version=version)
            head = wire.read_until(b"\r\n\r\n").lower()
            assert b"\r\nconnection: close\r\n" in head
            assert b"transfer-encoding" not in head
            assert wire.read_until(b"\n") == b": connected\n", "no chunks around it"
            goes_on(wire, product)


# Leaving.


def test_a_reader_that_closes_is_noticed(idle: HubProcess) -> None:
    wires = [Wire(idle.port) for _ in range(20)]
    for wire in wires:
        wire.ask(STREAM)
        wire.read_until(b"caught-up")
    assert idle.subscribers() == 20
    for place, wire in enumerate(wires):
        wire.reset() if place % 2 else wire.close()
    gone(idle)


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_reader_may_leave_right_after_its_request(idle: HubProcess, how: str) -> None:
    opened = idle.outcomes("opened")
    wires = []
    for count in range(100):
        wire = Wire(idle.port)
        wire.ask(STREAM + "&snapshot=1" * (count % 2))
        getattr(wire, how)()
        wires.append(wire)
    gone(idle)
    with Wire(idle.port) as last:
        last.ask(STREAM)
        goes_on(last, idle)
    assert idle.outcomes("opened") > opened
    for wire in wires:
        wire.close()
    gone(idle)


def test_a_reader_that_closes_its_side_has_left(idle: HubProcess) -> None:
    with Wire(idle.port) as wire:
        wire.ask(STREAM)
        wire.read_until(b"caught-up")
        wire.half_close()
        gone(idle)
        assert wire.rest() is not None


def test_a_reader_that_closes_its_side_while_it_is_behind_has_left(product: HubProcess) -> None:
    """Elsewhere uvicorn waits until the peer has taken what is buffered, or for the stall limit."""
    with Wire(product.port, receive_bytes=4_096) as wire:
        wire.ask(STREAM)
        wire.read_until(b"caught-up")
        fill(product)
        wait_for(
            lambda: product.status()["subscribers"]["byState"] == {"lagging": 1}, "it to fall behind"
        )
        wire.half_close()
        gone(product)


def test_a_reader_cut_off_in_the_middle_of_a_frame_harms_nobody(idle: HubProcess) -> None:
    epoch, lsn = idle.head().split(":")
    victims = [Wire(idle.port, receive_bytes=4_096) for _ in range(8)]
    others = [idle.stream("table=notes") for _ in range(4)]
    for wire in victims:
        wire.ask(STREAM)
        wire.read_until(b"caught-up")
    for stream in others:
        stream.until("caught-up")
    for count, wire in enumerate(victims):
        fill(idle, rows=40)
        # In the middle of a large row.
        wire.read(1_000 + count)
        wire.reset()
    expected = list(range(int(lsn) + 1, int(lsn) + 1 + 40 * len(victims)))
    for stream in others:
        assert [change["lsn"] for change in stream.changes(len(expected))] == expected
        assert re.fullmatch(f"{epoch}:{expected[-1]}", stream.last_id)
        stream.close()
    gone(idle)


def fill(hub: HubProcess, rows: int = 400) -> None:
    """Commits more than a reader's kernel buffers and ours hold together, where it is slow."""
    before = int(hub.head().split(":")[1])
    run_sql(
        hub.database,
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
        " INSERT INTO notes(body) SELECT printf('%.*c', 20000, 'x') FROM n",
    )
    hub.wait_for_lsn(before + rows)


# TLS.


def certified(folder: Path) -> tuple[Path, Path, ssl.SSLContext]:
    """A key, a certificate of localhost that it has signed itself, and who trusts that."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    )
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *made.split(), *names, *files], check=True, capture_output=True)
    return key, certificate, ssl.create_default_context(cafile=str(certificate))


@pytest.mark.needs("openssl")
def test_streams_over_tls(database: Path, tmp_path: Path) -> None:
    key, certificate, trusts = certified(tmp_path)
    program = ("-m", "tests.serving", "--http", "cdchub.handover:HandOverProtocol")
    run_sql(database, "CREATE TABLE notes(id INTEGER PRIMARY KEY, body)")
    tls = ("--tls", str(key), str(certificate))
    with HubProcess(database, *tls, program=program, trusts=trusts) as hub:
        fill(hub, rows=100)
        with hub.stream("table=notes&since=0") as late, hub.stream("table=notes") as live:
            assert [change["lsn"] for change in late.changes(100)] == list(range(1, 101))
            live.until("caught-up")
            assert "transfer-encoding" not in live.headers
            fill(hub, rows=100)
            for stream in (late, live):
                assert [change["lsn"] for change in stream.changes(100)] == list(range(101, 201))
        gone(hub)
        # One that does not read falls behind, as over TCP, and catches up.
        with Wire(hub.port, receive_bytes=4_096, trusts=trusts) as slow:
            slow.ask(STREAM)
            slow.read_until(b"caught-up")
            fill(hub)
            wait_for(lambda: hub.outcomes("fell_behind") > 0, "it to fall behind")
            last = hub.head()
            slow.read_until(f"id: {last}\n".encode())
            with hub.stream("table=notes", Last_Event_ID=last) as other:
                other.until("caught-up")
                event = commit(hub)
                slow.read_until(event)
                assert json.dumps(other.changes(1)[0]["newValue"]["body"]) == '"x"'
                slow.half_close()
            gone(hub)
        assert hub.stop() == 0
        assert not [line for line in hub.lines if "Traceback" in line or "ERROR" in line]
