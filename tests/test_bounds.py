"""What peers may take from the hub before it says no: heads of requests, time, connections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.harness import HubProcess, Stream, make_database, rss_bytes, run_sql, wait_for
from tests.wire import Wire, request

STREAM = "/cdc/stream?table=todos"
HEAD = request("/healthz")[:-2]


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """A hub that waits a moment only for the head of a request, or its body."""
    database = make_database(
        tmp_path_factory.mktemp("bounds") / "app.db", "CREATE TABLE todos(id TEXT PRIMARY KEY)"
    )
    options = ("--set", "http.head_s_max=0.5", "--set", "http.body_s_max=0.5")
    with HubProcess(database, *options, program=("-m", "tests.serving")) as hub:
        yield hub


# The head of a request.

FLOODS = {
    "many headers": b"X-Flood: 1234567890\r\n",
    "one endless header": b"x" * 20,
    "empty lines first": b"\r\n",
}


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_headers_is_refused_and_held_by_nobody(
    impatient: HubProcess, flood: str, before: int
) -> None:
    """`before`: requests that were answered on the same connection."""
    piece, refused = FLOODS[flood], impatient.outcomes("head_too_large")
    start = b"" if flood == "empty lines first" else HEAD + b"X-Long: " * (len(piece) == 20)
    held_bytes = rss_bytes(impatient.pid)
    with ExitStack() as open_wires:
        wires = [open_wires.enter_context(Wire(impatient.port)) for _ in range(40)]
        for wire in wires:
            for _ in range(before):
                wire.ask("/healthz")
                wire.read_until(b'"}')
            with suppress(ConnectionError):
                wire.send(start)
                for _ in range(2**20 // len(piece) // 100):
                    wire.send(piece * 100)
        for wire in wires:
            assert wire.rest().startswith(b"HTTP/1.1 431 ")
    assert impatient.outcomes("head_too_large") == refused + 40
    # All of them together would be 40 MiB.
    assert rss_bytes(impatient.pid) - held_bytes < 12 * 2**20


def test_a_large_head_is_served(impatient: HubProcess) -> None:
    for _ in range(2):
        answer = impatient.get("/healthz", Cookie="x" * 60_000)
        assert answer.status == 200


def test_a_body_is_no_head(impatient: HubProcess) -> None:
    """A body may be longer, also one that nobody wants; the connection is good for the next request."""
    with Wire(impatient.port) as wire:
        wire.ask("/healthz", "Content-Length: 200000", method="POST")
        for _ in range(20):
            wire.send(b"x" * 10_000)
        wire.read_until(b"HTTP/1.1 405 ")
        wire.ask("/healthz")
        wire.read_until(b"HTTP/1.1 200 ")


UNFINISHED = {
    "nothing": b"",
    "half a line": b"GET /heal",
    "a head without an end": HEAD,
    "an empty line": b"\r\n",
}


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("what", UNFINISHED)
def test_a_head_that_never_ends_is_given_up(impatient: HubProcess, what: str, before: int) -> None:
    slow = impatient.outcomes("head_too_slow")
    with Wire(impatient.port) as wire:
        for _ in range(before):
            wire.ask("/healthz")
            wire.read_until(b'"}')
        wire.send(UNFINISHED[what])
        assert wire.rest().startswith(b"HTTP/1.1 408 ")
    assert impatient.outcomes("head_too_slow") == slow + 1


POLL = "/cdc/changes?table=todos&since=now&wait="


def test_a_pipelined_head_waits_for_the_answer_before(impatient: HubProcess) -> None:
    with Wire(impatient.port) as wire:
        # Longer than a head may take.
        wire.send(request(POLL + "2") + HEAD)
        assert wire.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        answer, _, refusal = wire.rest().partition(b"HTTP/1.1 ")
        assert json.loads(answer)["changes"] == []
        assert refusal.startswith(b"408 ")


def test_a_flood_behind_another_request_is_no_part_of_its_answer(impatient: HubProcess) -> None:
    refused = impatient.outcomes("head_too_large")
    with Wire(impatient.port) as wire:
        wire.send(request("/healthz") + request(POLL + "60") + HEAD)
        wire.read_until(b'"}')
        with suppress(ConnectionError):
            for _ in range(1_000):
                wire.send(FLOODS["many headers"] * 100)
        assert wire.rest() == b""
    assert impatient.outcomes("head_too_large") == refused + 1


# The body of a request that is refused. Behind some proxies an answer that overtakes it is lost.

REFUSED = {
    403: ("/api/todos", "Origin: https://evil.example"),
    404: ("/nowhere",),
    405: ("/healthz",),
}


def refused(wire: Wire, status: int, *headers: str) -> None:
    path, *others = REFUSED[status]
    wire.ask(path, *others, *headers, method="POST")


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_does_not_overtake_the_body(impatient: HubProcess, status: int) -> None:
    with Wire(impatient.port) as wire:
        refused(wire, status, "Content-Length: 10")
        wire.send(b"0123456789")
        wire.read_until(b"HTTP/1.1 %d " % status)
    with Wire(impatient.port) as wire:
        refused(wire, status, "Content-Length: 10")
        wire.send(b"01234")
        # It will never be whole, so there was no moment for an answer.
        wire.half_close()
        assert wire.rest() == b""


def test_a_body_that_does_not_come_is_not_waited_for_long(impatient: HubProcess) -> None:
    unread = impatient.outcomes("body_unread")
    with Wire(impatient.port) as wire:
        refused(wire, 405, "Content-Length: 200000")
        wire.read_until(b"HTTP/1.1 405 ")
        assert impatient.outcomes("body_unread") == unread + 1
        wire.send(b"x")
        assert b"HTTP/1.1 408 " in wire.rest()


def test_a_body_of_any_length_is_not_taken(hub: HubProcess) -> None:
    with Wire(hub.port) as wire:
        refused(wire, 405, f"Content-Length: {2**40}")
        wire.send(b"x" * 2**20)
        wire.read_until(b"HTTP/1.1 405 ")
    assert hub.outcomes("body_unread") == 1


def test_a_body_that_waits_to_be_asked_for_is_not_asked_for(impatient: HubProcess) -> None:
    unread = impatient.outcomes("body_unread")
    with Wire(impatient.port) as wire:
        refused(wire, 405, "Content-Length: 10", "Expect: 100-continue")
        assert b"100 Continue" not in wire.read_until(b"HTTP/1.1 405 ")
    assert impatient.outcomes("body_unread") == unread


def test_a_stream_has_no_such_limits(impatient: HubProcess) -> None:
    slow = impatient.outcomes("head_too_slow")
    with impatient.stream("table=todos") as stream:
        stream.until("caught-up")
        # Long enough for others to be given up.
        with Wire(impatient.port) as wire:
            wire.rest()
        assert impatient.outcomes("head_too_slow") == slow + 1
        run_sql(impatient.database, "INSERT INTO todos VALUES ('still here')")
        assert stream.changes(1)[0]["key"] == {"id": "still here"}


# Connections.


def test_more_connections_than_descriptors(database: Path) -> None:
    with ExitStack() as stack:
        hub = stack.enter_context(HubProcess(database, descriptors_max=1_024))
        streams = [hub.stream("table=todos") for _ in range(20)]
        for stream in streams:
            stack.callback(stream.close)
            stream.until("caught-up")
        kept, refused, unavailable = storm(hub, attempts=20_000)
        for wire in kept:
            stack.callback(wire.close)
        print(f"{len(kept)} kept, {refused} refused, {unavailable} times 503")
        assert len(kept) + refused + unavailable == 20_000
        assert hub.subscribers() == 20 + len(kept)
        assert 500 < len(kept) < 1_024
        assert refused > unavailable, "a native EventSource never comes back from a 503"
        told_off(hub)
        more = ", ".join(f"('{n}')" for n in range(100))
        run_sql(database, f"INSERT INTO todos(id) VALUES {more}")
        for stream in streams:
            # 20 were committed during the storm.
            assert [change["lsn"] for change in stream.changes(120)] == list(range(1, 121))
        for wire in kept:
            wire.close()
        wait_for(lambda: hub.subscribers() == 20, "the hub to notice who has left")
        with hub.stream("table=todos&since=0") as late:
            assert len(late.changes(120)) == 120
        assert not [line for line in hub.lines if "Traceback" in line or "ERROR" in line]


def storm(hub: HubProcess, *, attempts: int) -> tuple[list[Wire], int, int]:
    """So many streams are asked for, as many at a time as the kernel keeps waiting. Those that began;
    and how many were refused by the hub, and how many by the server."""
    kept: list[Wire] = []
    refused = unavailable = 0
    for start in range(0, attempts, 100):
        wires = [Wire(hub.port) for _ in range(100)]
        for wire in wires:
            with suppress(ConnectionError):
                wire.ask(STREAM, "Accept: text/event-stream")
        for wire in wires:
            while b"caught-up" not in wire.data and wire.read():
                pass
            if not wire.ended:
                kept.append(wire)
                continue
            wire.close()
            if wire.data.startswith(b"HTTP/1.1 503 "):
                unavailable += 1
            else:
                refused_kindly(wire.data)
                refused += 1
        if start % 1_000 == 0:
            run_sql(hub.database, f"INSERT INTO todos(id) VALUES ('storm {start}')")
    return kept, refused, unavailable


def refused_kindly(answer: bytes) -> None:
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 "), answer
    assert b"content-type: text/event-stream" in head
    retry, event, data = body.decode().strip().split("\n")
    said = json.loads(data.removeprefix("data: "))
    assert event == "event: refused"
    assert (said["code"], retry) == ("overloaded", f"retry: {said['retryAfterMs']}")


def told_off(hub: HubProcess) -> None:
    """Those who only connect find the places taken that are kept for requests; then requests do."""
    silent = [Wire(hub.port) for _ in range(200)]
    try:
        answers = [wire.rest() for wire in silent[-50:]]
        assert all(a.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in a for a in answers)
    finally:
        for wire in silent:
            wire.close()
    wait_for(lambda: answered(hub), "the places of those who left")
    other = hub.get("/cdc/stream?table=todos", Accept="application/json")
    assert (other.status, other.code) == (503, "overloaded")
    refused = Stream(hub.port, STREAM)
    assert [event.name for event in refused.rest()] == ["refused"]
    refused.close()


def answered(hub: HubProcess) -> bool:
    try:
        return hub.get("/healthz").status == 200
    except OSError:
        return False


def test_a_body_that_comes_with_its_head_is_no_head(impatient: HubProcess) -> None:
    """In one piece, as a client may send it."""
    body = b"x" * 200_000
    with Wire(impatient.port) as wire:
        head = b"POST /api/todos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        wire.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wire.read_until(b"HTTP/1.1 404 ")
