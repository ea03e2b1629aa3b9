"""What goes wrong with a WebSocket: handshakes, peers that stall or misbehave, hubs that end.

Longer than a module should be: all of it, from the first byte to the last, on the same two hubs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.client import connect

from cdchub.ws import SCHEMA
from tests.harness import PATIENCE_S, HubProcess, make_database, rss_bytes, run_sql, wait_for
from tests.test_source_faults import backup
from tests.test_transport import certified
from tests.wire import Wire, request
from tests.ws_client import (
    CLOSE,
    CONT,
    PING,
    SUBPROTOCOL,
    TEXT,
    Closed,
    Peer,
    frame,
    handshake,
    opened,
    text,
)

Serving = Callable[..., HubProcess]
ROWS, ROW_BYTES = 2_000, 4_000
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@pytest.fixture(scope="module")
def shared(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("faults") / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)"
    )
    with serving(
        database, "--cors-origin", "https://friend.example", "--allow-host", "hub.test"
    ) as hub:
        yield hub


@pytest.fixture
def big(tmp_path: Path) -> Path:
    return make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, pad)", SCHEMA)


def commit(hub: HubProcess, *, rows: int = ROWS) -> None:
    """Commits so many rows of 4 KB, in transactions of a hundred."""
    first = hub.status()["headLsn"] + 1
    run_sql(
        hub.database,
        *(
            f"WITH RECURSIVE n(i) AS (SELECT {start} UNION ALL SELECT i + 1 FROM n"
            f" WHERE i < {start + 99})"
            f" INSERT INTO t SELECT i, printf('%.*c', {ROW_BYTES}, 'x') FROM n"
            for start in range(first, first + rows, 100)
        ),
    )
    hub.wait_for_lsn(first + rows - 1)


# Handshakes.


def answer(hub: HubProcess, data: bytes) -> str:
    with Wire(hub.port) as wire:
        wire.send(data)
        return wire.read_until(b"\r\n\r\n").decode("latin-1").partition("\r\n")[0]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ((), 101),
        (("Host: localhost:1", "Origin: http://localhost:1"), 101),
        (("Host: 127.0.0.1", "Origin: http://127.0.0.1"), 101),
        (("Origin: https://friend.example",), 101),
        (("Host: hub.test", "Origin: http://hub.test"), 101),
        (("Origin: https://evil.example",), 403),
        (("Origin: null",), 403),
        (("Origin: http://localhost:1",), 403),
        (("Origin: http://localhost.evil.example",), 403),
        (("Host: evil.example",), 403),
        (("Host: evil.example", "Origin: http://evil.example"), 403),
    ],
)
def test_who_may_open_one(shared: HubProcess, headers: tuple[str, ...], code: int) -> None:
    assert answer(shared, handshake("/cdc/ws", *headers)).startswith(f"HTTP/1.1 {code} ")


def upgrade(*headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return request("/cdc/ws", *headers, method=method, version=version)


UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: WebSocket")
BAD_HANDSHAKES = {
    "no key": upgrade(*UPGRADE, "Sec-WebSocket-Version: 13"),
    "a short key": upgrade(*UPGRADE, "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="),
    "a key that is no base64": upgrade(*UPGRADE, "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: ?"),
    "two keys": upgrade(*UPGRADE, "Sec-WebSocket-Version: 13", *[f"Sec-WebSocket-Key: {KEY}"] * 2),
    "no version": upgrade(*UPGRADE, f"Sec-WebSocket-Key: {KEY}"),
    "version 8": upgrade(*UPGRADE, f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 8"),
    "a version that is no number": upgrade(
        *UPGRADE, f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: x"
    ),
    "POST": upgrade(*UPGRADE, f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", method="POST"),
    "another protocol": upgrade("Connection: Upgrade", "Upgrade: h2c"),
    "a plain GET": upgrade(),
}


@pytest.mark.parametrize("name", BAD_HANDSHAKES)
def test_a_bad_handshake_is_refused(shared: HubProcess, name: str) -> None:
    line = answer(shared, BAD_HANDSHAKES[name])
    assert re.match(r"HTTP/1\.1 4\d\d ", line), line
    assert shared.get("/readyz").status == 200


def test_a_plain_get_is_told_what_is_spoken_here(shared: HubProcess) -> None:
    found = shared.get("/cdc/ws")
    assert (found.status, found.code) == (426, "upgrade_required")
    assert found.headers["x-cdc-version"] == "1"


def test_a_good_handshake_with_odd_words(shared: HubProcess) -> None:
    data = upgrade(*UPGRADE, f"Sec-WebSocket-Key: {KEY}", "sec-websocket-version: 13")
    with Wire(shared.port) as wire:
        wire.send(data)
        head = wire.read_until(b"\r\n\r\n").decode("latin-1").lower()
        assert head.startswith("http/1.1 101 ")
        # The example of RFC 6455 §1.3.
        assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n" in head


def test_what_comes_with_the_handshake_is_not_lost(big: Path) -> None:
    """RFC 6455 §4.1 has a client wait for the answer. Whoever does not is heard, or is cut off."""
    with HubProcess(big) as hub, Peer(hub, pipelined=text(type="ping", id="early")) as peer:
        try:
            assert peer.until("pong") == {"type": "pong", "id": "early"}
        except Closed:
            return


def test_a_handshake_byte_by_byte(shared: HubProcess) -> None:
    with Wire(shared.port) as wire:
        for byte in handshake():
            wire.send(bytes([byte]))
        assert b" 101 " in wire.read_until(b"\r\n\r\n")
        wire.read_until(b'"connected"')


# Peers that go.


@pytest.mark.parametrize("how", ["close frame", "half-close", "reset", "closed"])
def test_a_peer_that_goes_is_forgotten(shared: HubProcess, how: str) -> None:
    before = shared.subscribers()
    with opened(shared) as peer:
        peer.ask("subscribe", sub="s", table="t")
        assert shared.subscribers() == before + 1
        if how == "close frame":
            peer.send(CLOSE, b"\x03\xe8")
            assert peer.close_code() == 1000
        elif how == "half-close":
            peer.wire.half_close()
            peer.wire.rest()
        elif how == "reset":
            peer.wire.reset()
        else:
            peer.wire.close()
        wait_for(lambda: shared.subscribers() == before, "it to be forgotten")


def test_a_peer_that_says_nothing_after_a_close_frame_is_cut_off(shared: HubProcess) -> None:
    with opened(shared) as peer:
        peer.polite = False
        peer.send(2, b"binary")
        found = peer.frame()
        assert found is not None
        assert found.code == 1003
        assert peer.frame() is None


def test_a_peer_that_answers_no_ping_is_given_up(big: Path) -> None:
    options = ("--heartbeat", "0.2", "--set", "stream.stall_s=1")
    with ExitStack() as stack:
        hub = stack.enter_context(HubProcess(big, *options, program=("-m", "tests.serving")))
        polite, silent = (stack.enter_context(opened(hub)) for _ in range(2))
        silent.ask("subscribe", sub="s", table="t")
        silent.polite = False
        while not hub.outcomes("silent"):
            polite.until("heartbeat")
        assert silent.close_code() == 1006
        assert polite.ask("ping")["type"] == "pong"
        assert hub.outcomes("silent") == 1


# Peers that don't read.


def lsns(peer: Peer, last: int) -> list[int]:
    found = []
    while not found or found[-1] < last:
        found.append(peer.until("change")["change"]["lsn"])
        peer.passed.clear()
    return found


def test_peers_that_do_not_read_cost_little_and_miss_nothing(big: Path, serving: Serving) -> None:
    with serving(big) as hub, ExitStack() as stack:
        quick = stack.enter_context(opened(hub))
        quick.ask("subscribe", sub="s", table="t")
        slow = [stack.enter_context(opened(hub, receive_bytes=4_096)) for _ in range(20)]
        for peer in slow:
            peer.ask("subscribe", sub="s", table="t")
            peer.ask("subscribe", sub="s2", table="t", filter="id=gt.0")
        for turn in range(1, 5):
            commit(hub)
            assert lsns(quick, turn * ROWS)[-1] == turn * ROWS
            if turn == 1:
                # Recent frames are kept for everybody up to a bound, which is reached by now.
                before_bytes = rss_bytes(hub.pid)
        more_bytes = rss_bytes(hub.pid) - before_bytes
        print(f"{more_bytes >> 10} KiB more for 20 peers that take nothing")
        assert more_bytes < 60 * 2**20
        got: dict[str, list[int]] = {"s": [], "s2": []}
        while len(got["s"]) + len(got["s2"]) < 8 * ROWS:
            message = slow[0].until("change")
            got[message["sub"]].append(message["change"]["lsn"])
        assert got["s"] == got["s2"] == list(range(1, 4 * ROWS + 1))


@pytest.mark.parametrize("asks", ["pings", "requests", "history"])
def test_answers_that_nobody_reads_cost_a_bounded_amount(big: Path, asks: str) -> None:
    """A peer that asks and asks, and does not read the answers."""
    content = "x" * 16_000
    run_sql(
        big,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
        f" INSERT INTO messages SELECT i, 'r', 'u', '{content}', 1 FROM n",
    )
    with HubProcess(big) as hub, opened(hub, receive_bytes=4_096) as peer, opened(hub) as other:
        peer.join("r")
        what = {
            "pings": frame(PING, b"x" * 125) * 1_000,
            "requests": text(type="ping", id="x" * 100_000),
            "history": text(type="history", room="r", limit=500),
        }[asks]
        before_bytes, most_bytes = rss_bytes(hub.pid), 0
        # 50 MB of pongs, of answers, or 800 MB of history.
        peer.wire._socket.settimeout(1)
        try:
            for _ in range({"pings": 400, "requests": 500, "history": 100}[asks]):
                peer.wire.send(what)
                most_bytes = max(most_bytes, rss_bytes(hub.pid))
        except (TimeoutError, ConnectionError):
            # It takes no more, which is a good answer.
            pass
        for _ in range(20):
            other.ask("ping")
            other.join("r")
            most_bytes = max(most_bytes, rss_bytes(hub.pid))
        print(f"{(most_bytes - before_bytes) >> 10} KiB more")
        assert most_bytes - before_bytes < 80 * 2**20


def test_empty_fragments_without_end_cost_nothing(big: Path) -> None:
    with HubProcess(big) as hub, opened(hub) as peer:
        before_bytes = rss_bytes(hub.pid)
        peer.send(TEXT, b"", fin=False)
        for _ in range(10):
            peer.wire.send(frame(CONT, b"", fin=False) * 50_000)
        peer.send(PING, b"behind")
        while (found := peer.frame()) is not None and found.payload != b"behind":
            pass
        assert rss_bytes(hub.pid) - before_bytes < 10 * 2**20


# Hubs that end.


def test_shutdown_closes_with_1001(big: Path) -> None:
    """On another server it may be that server's own code, 1012."""
    with HubProcess(big, "--drain", "1") as hub, ExitStack() as stack:
        peers = [stack.enter_context(opened(hub, user=f"u{n}")) for n in range(6)]
        for peer in peers[:2]:
            peer.ask("subscribe", sub="s", table="t")
        for peer in peers[2:4]:
            peer.join("r")
        commit(hub, rows=100)
        for peer in peers[:2]:
            assert lsns(peer, 100)[-1] == 100
        assert hub.stop() == 0
        assert [peer.close_code() for peer in peers] == [1001] * 6
        assert not [line for line in hub.lines if "Traceback" in line or "ERROR" in line]


def test_shutdown_closes_quiet_connections_with_1001_too(big: Path) -> None:
    """Those that have subscribed to nothing."""
    with HubProcess(big, "--drain", "1") as hub, ExitStack() as stack:
        peers = [stack.enter_context(opened(hub)) for _ in range(10)]
        assert hub.stop() == 0
        assert [peer.close_code() for peer in peers] == [1001] * 10


def test_shutdown_does_not_wait_for_who_takes_nothing(big: Path, serving: Serving) -> None:
    with serving(big, "--drain", "1") as hub, opened(hub, receive_bytes=4_096) as peer:
        peer.ask("subscribe", sub="s", table="t")
        commit(hub)
        assert hub.stop() == 0


def test_kill_9_loses_and_repeats_nothing(big: Path, serving: Serving) -> None:
    with serving(big) as hub:
        position, got = hub.head(), list[int]()
        for turn in range(1, 4):
            with opened(hub) as peer:
                peer.say("subscribe", sub="s", table="t", since=position)
                commit(hub, rows=500)
                for change in peer.changes(200 * turn):
                    got.append(change["lsn"])
                position = f"{position.split(':')[0]}:{got[-1]}"
                hub.kill()
            hub.start()
        with opened(hub) as peer:
            peer.say("subscribe", sub="s", table="t", since=position)
            got += lsns(peer, 1_500)
        assert got == list(range(1, 1_501))


# Breaks.


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_restored_database_resets_subscriptions(
    big: Path, tmp_path: Path, serving: Serving, snapshot: bool
) -> None:
    run_sql(big, "INSERT INTO t VALUES (1, 'a')")
    with serving(big) as hub, opened(hub) as peer:
        backup(big, tmp_path / "copy.db")
        run_sql(big, "INSERT INTO t VALUES (2, 'b')")
        peer.ask("subscribe", sub="s", table="t", snapshot=snapshot)
        peer.until("caught-up")
        peer.join("r")
        peer.passed.clear()
        backup(tmp_path / "copy.db", big)
        resets = {}
        while len(resets) < 2:
            message = peer.until("reset")
            resets[message.get("sub") or message.get("room")] = message
        assert {r["reason"] for r in resets.values()} == {"epoch"}
        assert set(resets["s"]) == {"type", "sub", "reason", "tables", "position", "oldest"}
        if snapshot:
            peer.find("snapshot-end")
            told = [m["type"] for m in peer.passed if m.get("sub") == "s" and m["type"] != "heartbeat"]
            assert told[:2] == ["snapshot", "change"]
            assert [m["change"]["newValue"]["id"] for m in peer.passed if m["type"] == "change"] == [1]
        run_sql(big, "INSERT INTO t VALUES (7, 'd')")
        assert peer.until("change", sub="s")["change"]["key"] == {"id": 7}
        assert peer.ask("message", room="r", content="x")["type"] == "ack"


# Limits and TLS.


def test_a_connection_too_many_is_told_to_come_later(serving: Serving, big: Path) -> None:
    with (
        serving(big, "--set", "stream.subscribers_max=2") as hub,
        opened(hub) as one,
        opened(hub) as two,
    ):
        assert one.ask("ping")["type"] == "pong"
        with Peer(hub) as third:
            assert third.close_code() == 1013
        two.wire.close()
        wait_for(lambda: hub.status()["connections"] == 1, "the hub to notice who has left")
        with opened(hub) as again:
            assert again.ask("ping")["type"] == "pong"


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("http", ["cdchub.handover:HandOverProtocol", "httptools"])
def test_a_client_over_tls(big: Path, tmp_path: Path, http: str) -> None:
    key, certificate, trusts = certified(tmp_path)
    program = ("-m", "tests.serving", "--http", http)
    tls = ("--tls", str(key), str(certificate))
    with HubProcess(big, *tls, program=program, trusts=trusts) as hub:
        with connect(
            f"wss://localhost:{hub.port}/cdc/ws", subprotocols=[SUBPROTOCOL], ssl=trusts
        ) as client:
            assert json.loads(client.recv(PATIENCE_S))["type"] == "connected"
            client.send(json.dumps({"type": "subscribe", "sub": "s", "table": "t"}))
            assert [json.loads(client.recv(PATIENCE_S))["type"] for _ in range(2)] == [
                "subscribed",
                "caught-up",
            ]
            # More than any buffer on the way holds.
            commit(hub)
            found = [json.loads(client.recv(PATIENCE_S)) for _ in range(ROWS)]
            assert [frame["change"]["lsn"] for frame in found] == list(range(1, ROWS + 1))
        wait_for(lambda: hub.subscribers() == 0, "the hub to notice who has left")
        assert hub.stop() == 0
        assert not [line for line in hub.lines if "Traceback" in line or "ERROR" in line]
