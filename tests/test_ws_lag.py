"""Many subscriptions on few connections, peers that lag in rooms, and clients of other makers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from cdchub.ws import SCHEMA
from tests.harness import PATIENCE_S, HubProcess, make_database, run_sql, wait_for
from tests.ws_client import SUBPROTOCOL, Peer, opened

Serving = Callable[..., HubProcess]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, pad)", SCHEMA)


def fill(hub: HubProcess, rows: int) -> None:
    """Some 4 KB a row, ten rows a commit."""
    run_sql(
        hub.database,
        *(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10)"
            " INSERT INTO t(pad) SELECT printf('%.*c', 4000, 'x') FROM n"
            for _ in range(rows // 10)
        ),
    )


# Peers that lag in a room.


def test_who_lagged_learns_who_is_there_now(database: Path, serving: Serving) -> None:
    with serving(database, "--set", "websocket.grace_s=0.5") as hub, ExitStack() as stack:
        slow = stack.enter_context(opened(hub, user="slow", receive_bytes=4_096))
        slow.join("r")
        slow.ask("subscribe", sub="s", table="t")
        ann = stack.enter_context(opened(hub, user="ann"))
        ann.join("r")
        fill(hub, 3_000)
        wait_for(lambda: hub.status()["subscribers"]["byState"].get("lagging"), "the slow one to lag")
        bob = stack.enter_context(opened(hub, user="bob"))
        bob.join("r")
        ann.ask("leave", room="r")
        bob.ask("message", content="while you lagged")
        present = {"slow"}
        said = []
        while present != {"slow", "bob"} or not said:
            message = slow.next()
            if message["type"] == "user-joined":
                present.add(message["userId"])
            elif message["type"] == "user-left":
                present.discard(message["userId"])
            elif message["type"] == "members":
                present = set(message["members"])
            elif message["type"] == "message":
                said.append(message["content"])
        assert said == ["while you lagged"]
        assert slow.ask("ping")["type"] == "pong"


def test_who_reads_slowly_but_reads_is_not_silent(database: Path) -> None:
    """One change takes longer to read than a peer may be silent for, and the ping waits behind it. (On
    another server, the pings are that server's.)"""
    options = ("--heartbeat", "0.2", "--set", "stream.stall_s=3")
    program = ("-m", "tests.serving")
    with HubProcess(database, *options, program=program) as hub, opened(hub) as clock:
        with opened(hub, receive_bytes=4_096) as slow:
            slow.ask("subscribe", sub="s", table="t")
            run_sql(database, "INSERT INTO t(pad) VALUES (printf('%.*c', 8000000, 'x'))")
            for beat in range(30):
                clock.until("heartbeat")
                while len(slow.wire.data) < beat * 150_000:
                    assert slow.wire.read(16_384), f"cut off: {hub.status()['subscribers']['outcomes']}"
            assert slow.until("change")["change"]["lsn"] == 1
            assert slow.ask("ping")["type"] == "pong"
        assert not hub.outcomes("silent") + hub.outcomes("stalled")


def test_a_lagging_peer_holds_up_nobody_and_misses_no_message(database: Path, serving: Serving) -> None:
    with serving(database) as hub, ExitStack() as stack:
        slow = stack.enter_context(opened(hub, user="slow", receive_bytes=4_096))
        quick = [stack.enter_context(opened(hub, user=f"q{n}")) for n in range(5)]
        for peer in (slow, *quick):
            peer.join("r")
        texts = [f"{n} " + "x" * 15_000 for n in range(90)]
        for text in texts:
            quick[0].say("message", content=text)
        for peer in quick:
            assert [m["content"] for m in peer.several(len(texts), "message")] == texts
        heard = slow.several(len(texts), "message")
        assert [m["content"] for m in heard] == texts
        assert [m["lsn"] for m in heard] == list(range(1, len(texts) + 1))


def test_conflation_on_a_shared_connection(database: Path) -> None:
    """A lagging subscription with `conflate` gets the last states; one beside it, every change."""
    run_sql(database, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    with HubProcess(database) as hub, opened(hub, receive_bytes=4_096) as peer:
        peer.ask("subscribe", sub="all", table="t")
        peer.ask("subscribe", sub="last", table="t", conflate=True)
        peer.until("caught-up", sub="last")
        update = "UPDATE t SET pad = printf('%.*c', 4000, 'x') || {n} WHERE id = 1 + {n} % 2"
        for first in range(0, 2_000, 500):
            run_sql(database, *(update.format(n=n) for n in range(first, first + 500)))
        hub.wait_for_lsn(2_000)
        got: dict[str, list[int]] = {"all": [], "last": []}
        state = {}
        while got["all"][-1:] != [2_000] or got["last"][-1:] != [2_000]:
            message = peer.until("change")
            change = message["change"]
            got[message["sub"]].append(change["lsn"])
            if message["sub"] == "last":
                state[change["key"]["id"]] = change["newValue"]["pad"][4_000:]
        assert got["all"] == list(range(1, 2_001))
        assert got["last"] == sorted(set(got["last"]))
        assert len(got["last"]) < 2_000
        assert state == {1: "1998", 2: "1999"}


def test_equal_subscriptions_of_many_connections(database: Path, serving: Serving) -> None:
    """They share frames; each comes and goes as it likes."""
    rng = random.Random(3)
    with serving(database) as hub, ExitStack() as stack:
        peers: list[tuple[Peer, int]] = []
        for n in range(1, 31):
            peer = stack.enter_context(opened(hub))
            sub = rng.choice(["a", "a", "b"])
            start = int(peer.ask("subscribe", sub=sub, table="t")["position"].split(":")[1])
            peers.append((peer, start))
            run_sql(hub.database, f"INSERT INTO t VALUES ({n}, NULL)")
            hub.wait_for_lsn(n)
            if n % 7 == 0:
                peers.pop(rng.randrange(len(peers)))[0].wire.reset()
        for peer, start in peers:
            assert [c["lsn"] for c in peer.changes(30 - start)] == list(range(start + 1, 31))


# Clients of other makers.


@pytest.fixture
def library(database: Path, serving: Serving) -> Iterator[tuple[HubProcess, ClientConnection]]:
    with serving(database) as hub:
        address = f"ws://127.0.0.1:{hub.port}/cdc/ws?user=lib"
        with connect(address, subprotocols=[SUBPROTOCOL], max_size=None) as client:  # type: ignore[list-item]
            yield hub, client


def test_a_library_with_compression_offered(library: tuple[HubProcess, ClientConnection]) -> None:
    hub, client = library
    assert client.subprotocol == SUBPROTOCOL
    hello = json.loads(client.recv(PATIENCE_S))
    assert (hello["type"], hello["userId"]) == ("connected", "lib")
    client.send('{"type":"subscribe","sub":"s","table":"t","snapshot":true}')
    fill(hub, 500)
    last = 0
    while last < 500:
        message = json.loads(client.recv(PATIENCE_S))
        if message["type"] == "change" and message["change"]["type"] == "INSERT":
            assert last in (0, message["change"]["lsn"] - 1)
            last = message["change"]["lsn"]
        elif message["type"] == "snapshot-end":
            last = int(message["position"].split(":")[1])
    assert client.ping().wait(PATIENCE_S)


def test_a_library_that_sends_fragments_of_any_size(
    library: tuple[HubProcess, ClientConnection],
) -> None:
    rng = random.Random(11)
    _, client = library
    client.recv(PATIENCE_S)
    for n in range(60):
        document = {"type": "ping", "id": n, "pad": "é😀" * rng.randrange(3_000)}
        whole = json.dumps(document, ensure_ascii=False)
        places = sorted(rng.randrange(len(whole) + 1) for _ in range(rng.randrange(6)))
        client.send(whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True))
        assert json.loads(client.recv(PATIENCE_S)) == {"type": "pong", "id": n}
    client.close(4_000, "enough")
    assert client.close_code == 4_000
