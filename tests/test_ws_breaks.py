"""Positions that can't be served over WebSocket, and quiet subscriptions, whose positions can."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cdchub.ws import SCHEMA
from tests.harness import HubProcess, make_database, run_sql, wait_for
from tests.test_source_faults import backup
from tests.ws_client import Message, Peer, opened

RETAINING = ("--retain-changes", "10", "--set", "log.retain_every_s=0.1", "--heartbeat", "0.2")


@pytest.fixture
def pruned(tmp_path: Path) -> Iterator[HubProcess]:
    """A hub that forgets its oldest changes, with a quiet table beside a busy one."""
    database = make_database(
        tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)", "CREATE TABLE quiet(id)", SCHEMA
    )
    with HubProcess(database, *RETAINING, program=("-m", "tests.serving")) as hub:
        yield hub


def forget(hub: HubProcess) -> None:
    """Writes until the log has lost its oldest changes."""
    first = hub.status()["firstLsn"]

    def forgotten() -> bool:
        run_sql(hub.database, *["INSERT INTO t DEFAULT VALUES"] * 20)
        return bool(hub.status()["firstLsn"] > first + 20)

    wait_for(forgotten, "retention to run")


def kinds(messages: list[Message]) -> list[str]:
    """In runs: how often a change follows a change does not matter."""
    found: list[str] = []
    for message in messages:
        if message["type"] != "heartbeat" and found[-1:] != [message["type"]]:
            found.append(message["type"])
    return found


@pytest.mark.parametrize("snapshot", [False, True])
def test_an_expired_position_is_reset(pruned: HubProcess, snapshot: bool) -> None:
    start = pruned.head()
    forget(pruned)
    with opened(pruned) as peer:
        answer = peer.ask("subscribe", sub="s", table="t", since=start, snapshot=snapshot)
        assert (answer["position"] is None) is snapshot
        messages = peer.upto("caught-up")
        reset = messages[0]
        assert (reset["type"], reset["reason"], reset["tables"]) == ("reset", "expired", ["t"])
        found = kinds(messages)
        if snapshot:
            assert found == ["reset", "snapshot", "change", "snapshot-end", "caught-up"]
            rows = [m for m in messages if m["type"] == "change"]
            assert len(rows) == run_sql(pruned.database, "SELECT count(*) FROM t")[0][0]
        else:
            assert found == ["reset", "caught-up"]
            # Who was cut off before the reset must be told of it again.
            assert answer["position"] == start != reset["position"]
        run_sql(pruned.database, "INSERT INTO t DEFAULT VALUES")
        assert peer.changes(1)[0]["type"] == "INSERT"


def test_an_expired_position_of_a_room_is_reset(pruned: HubProcess) -> None:
    with opened(pruned) as peer:
        start = peer.join("r")["position"]
        peer.ask("message", content="one")
    forget(pruned)
    with opened(pruned) as peer:
        answer = peer.join("r", since=start, history=50)
        assert answer["position"] == start
        reset = peer.find("reset")
        assert (reset["room"], reset["reason"]) == ("r", "expired")
        assert [m["content"] for m in peer.ask("history", room="r")["messages"]] == ["one"]
        peer.ask("message", room="r", content="two")
        assert peer.find("message")["content"] == "two"


def test_a_quiet_subscription_never_expires(pruned: HubProcess) -> None:
    with opened(pruned) as peer:
        peer.ask("subscribe", sub="s", table="quiet")
        peer.join("r")
        forget(pruned)
        head = pruned.status()["headLsn"]
        for address in ({"room": "r"}, {"sub": "s"}):
            position = peer.find("heartbeat", **address)["position"]
            while int(position.split(":")[1]) < head:
                position = peer.find("heartbeat", **address)["position"]
    with opened(pruned) as again:
        again.ask("subscribe", sub="s", table="quiet", since=position)
        again.join("r", since=position)
        run_sql(pruned.database, "INSERT INTO quiet VALUES (1)")
        assert again.find("change", sub="s")["change"]["newValue"] == {"id": 1}
        assert not [m for m in again.passed if m["type"] == "reset"]


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_schema_change_under_a_subscription_is_what_the_stream_says(
    pruned: HubProcess, snapshot: bool
) -> None:
    """A table that is dropped and made anew, with other columns, beside one that stays."""
    run_sql(pruned.database, "INSERT INTO quiet VALUES (7)")
    more = "&snapshot=1" if snapshot else ""
    with opened(pruned) as peer, pruned.stream(f"table=t,quiet{more}") as stream:
        peer.ask("subscribe", sub="s", table="t,quiet", snapshot=snapshot)
        peer.find("caught-up")
        stream.until("caught-up")
        peer.passed.clear()
        run_sql(
            pruned.database,
            "BEGIN",
            "DROP TABLE quiet",
            "CREATE TABLE quiet(a TEXT PRIMARY KEY, b)",
            "COMMIT",
        )
        wait_for(lambda: "'b'" in str(pruned.get("/cdc/tables").json()), "the new shape")
        run_sql(pruned.database, "INSERT INTO quiet VALUES ('x', 1)")
        last = {"a": "x", "b": 1}
        heard = []
        while not heard or heard[-1].get("change", {}).get("newValue") != last:
            heard.append(peer.next())
        streamed = []
        while not streamed or '"a":"x"' not in streamed[-1].data:
            streamed.append(stream.next())
    ours = [m["type"].replace("change", "message") for m in heard]
    theirs = [event.name for event in streamed if event.data]
    passed_by = ("heartbeat", "snapshot-end")
    assert [t for t in ours if t not in passed_by] == theirs


def test_many_resets_of_many_subscriptions(pruned: HubProcess, tmp_path: Path) -> None:
    """A restored database: each subscription and room of a connection is reset once, and goes on."""
    backup(pruned.database, tmp_path / "copy.db")
    run_sql(pruned.database, "INSERT INTO t VALUES (1000)")
    with ExitStack() as stack:
        peers: list[Peer] = [stack.enter_context(opened(pruned)) for _ in range(3)]
        for peer in peers:
            for n in range(10):
                peer.ask("subscribe", sub=f"s{n}", table="t", snapshot=n % 2 == 1)
                peer.join(f"r{n}")
            peer.so_far()
            peer.passed.clear()
        backup(tmp_path / "copy.db", pruned.database)
        wait_for(lambda: pruned.status()["headLsn"] == 0, "the other history")
        run_sql(pruned.database, "INSERT INTO t VALUES (2000)")
        for peer in peers:
            heard: list[Message] = []
            new = 0
            while new < 10:
                heard.append(peer.next())
                change = heard[-1].get("change", {})
                new += change.get("key") == {"id": 2000}
            resets = [m.get("sub") or m["room"] for m in heard if m["type"] == "reset"]
            assert len(resets) == len(set(resets))
            assert {f"s{n}" for n in range(10)} <= set(resets)


def test_subscriptions_come_and_go_while_others_write(pruned: HubProcess) -> None:
    """Names are used again and again; what a name hears belongs to its present subscription."""
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            run_sql(pruned.database, *["INSERT INTO t DEFAULT VALUES"] * 20)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with opened(pruned) as peer:
            for turn in range(60):
                answer = peer.ask("subscribe", sub="s", table="t")
                assert answer["type"] == "subscribed", answer
                peer.passed.clear()
                at = int(answer["position"].split(":")[1])
                for lsn, change in enumerate(peer.changes(turn % 5), at + 1):
                    assert change["lsn"] == lsn
                peer.ask("unsubscribe", sub="s")
                assert [m["type"] for m in peer.so_far() if m["type"] != "heartbeat"] == []
    finally:
        ended.set()
        writer.join()
