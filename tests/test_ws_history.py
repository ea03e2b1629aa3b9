"""INTERFACE §5, what was said in a room: history, messages by other programs, resuming."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdchub.ws import SCHEMA
from tests.harness import PATIENCE_S, HubProcess, make_database, run_sql, wait_for
from tests.ws_client import Closed, Message, Peer, opened

INSERT = "INSERT INTO messages VALUES ('{id}', '{room}', 'prog', '{id}', 1700000000000)"


WRITER = (
    "import sqlite3, sys\n"
    "db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n"
    "for id in sys.argv[3:]:\n"
    "    db.execute(\"INSERT INTO messages VALUES (?, ?, 'prog', 'x', 1)\", (id, sys.argv[2]))"
)


def put(hub_or_path: HubProcess | Path, *ids: str, room: str = "r") -> None:
    """Messages that another program inserts."""
    path = hub_or_path.database if isinstance(hub_or_path, HubProcess) else hub_or_path
    run_sql(path, *(INSERT.format(id=id, room=room) for id in ids))


def named(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n:04}" for n in range(count)]


def ids(messages: list[Message]) -> list[str]:
    return [m["messageId"] for m in messages]


def joined(peer: Peer, history: int, room: str = "r") -> list[Message]:
    """The history that comes with a join."""
    answer = peer.join(room, history=history)
    found = [peer.next() for _ in range(answer["history"])]
    assert all(m["type"] == "message" and m["history"] is True for m in found)
    return found


def all_pages(peer: Peer, limit: int, room: str = "r") -> list[Message]:
    """The whole history, backwards page by page, as a client that scrolls up asks for it."""
    found: list[Message] = []
    more, request = True, {"room": room, "limit": limit}
    while more:
        page = peer.ask("history", **request)
        assert page["type"] == "history", page
        assert len(page["messages"]) <= limit
        assert page["messages"] or not page["more"], "there is more, but nothing came"
        found = page["messages"] + found
        more = page["more"]
        if found:
            request |= {"before": found[0]["lsn"], "beforeId": found[0]["messageId"]}
        assert len(found) < 20_000
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database whose messages were there before capture."""
    path = make_database(tmp_path / "app.db", SCHEMA)
    put(path, *named("old", 30))
    put(path, "elsewhere", room="other")
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(tmp_path_factory.mktemp("many") / "app.db", SCHEMA)
    with HubProcess(database) as hub:
        put(hub, *named("m", 620))
        put(hub, *named("n", 20), room="other")
        hub.wait_for_lsn(640)
        yield hub


# History.


@pytest.mark.parametrize("in_log", [True, False])
def test_a_history_of_long_messages_comes_in_parts(tmp_path: Path, in_log: bool) -> None:
    """Of 256 KiB, for who does not read it; but of one message at the least."""
    database = make_database(tmp_path / "app.db", SCHEMA)
    with contextlib.ExitStack() as stack:
        if in_log:
            hub = stack.enter_context(HubProcess(database))
        run_sql(
            database,
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19)"
            " INSERT INTO messages SELECT i, 'r', 'prog', replace(printf('%.*c',"
            " iif(i = 10, 100000, 16384), 'x'), 'x', '😀'), i FROM n",
        )
        if not in_log:
            hub = stack.enter_context(HubProcess(database))
        hub.wait_for_lsn(20 if in_log else 0)
        peer = stack.enter_context(opened(hub))
        answer = peer.join("r", history=500)
        assert (answer["history"], answer["more"]) == (3, True)
        found = [peer.find("message")["messageId"] for _ in range(3)]
        assert found == ["17", "18", "19"]
        assert ids(all_pages(peer, 500, "r")) == [str(n) for n in range(20)]


@pytest.mark.parametrize(("history", "count"), [(0, 0), (1, 1), (50, 50), (500, 500), (10**6, 500)])
def test_history_on_join(many: HubProcess, history: int, count: int) -> None:
    with opened(many) as peer:
        found = joined(peer, history)
        assert ids(found) == named("m", 620)[620 - count :]
        assert [m["lsn"] for m in found] == list(range(621 - count, 621))
        assert {(m["userId"], m["timestamp"]) for m in found} <= {("prog", "2023-11-14T22:13:20.000Z")}


@pytest.mark.parametrize("limit", [1, 7, 50, 500])
def test_pages_go_back_to_the_very_beginning(many: HubProcess, limit: int) -> None:
    room, count = ("other", 20) if limit == 1 else ("r", 620)
    with opened(many) as peer:
        peer.join(room)
        found = all_pages(peer, limit, room)
    assert ids(found) == named("n" if limit == 1 else "m", count)
    assert [m["lsn"] for m in found] == sorted(m["lsn"] for m in found)


def test_the_edges_of_a_history_request(many: HubProcess) -> None:
    with opened(many) as peer:
        peer.join("r")
        assert len(peer.ask("history")["messages"]) == 50
        assert len(peer.ask("history", limit=10**9)["messages"]) == 500
        nothing = peer.ask("history", limit=0)
        assert (nothing["messages"], nothing["more"]) == ([], True)
        first = peer.ask("history", before=1)
        assert (first["messages"], first["more"]) == ([], False)
        assert ids(peer.ask("history", before=10**15, limit=2)["messages"]) == ["m0618", "m0619"]
        assert ids(peer.ask("history", before=2**62, limit=1)["messages"]) == ["m0619"]


def test_what_is_said_comes_after_the_history(many: HubProcess) -> None:
    """While others write: the history and what follows have no gap and no repeat."""
    room = f"busy-{random.random()}"
    for burst in range(4):
        names = named(f"{room}-{burst}-", 25)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, many.database, room, *names])
        with opened(many) as peer:
            found = joined(peer, 500, room)
            want = 25 * (burst + 1)
            found += peer.several(want - len(found), "message")
            assert writer.wait(PATIENCE_S) == 0
            assert len(set(ids(found))) == len(found)
            assert ids(found)[-25:] == names


def test_messages_from_before_capture(old: Path) -> None:
    with HubProcess(old) as hub, opened(hub) as peer:
        put(hub, *named("new", 10))
        hub.wait_for_lsn(10)
        found = joined(peer, 25)
        assert ids(found) == [*named("old", 30)[15:], *named("new", 10)]
        assert [m["lsn"] for m in found] == [0] * 15 + list(range(1, 11))
        for limit in (1, 4, 10, 11, 500):
            assert ids(all_pages(peer, limit)) == [*named("old", 30), *named("new", 10)]


def test_messages_from_before_retention(old: Path) -> None:
    retaining = ("--retain-changes", "10", "--set", "log.retain_every_s=0.1")
    with HubProcess(old, *retaining, program=("-m", "tests.serving")) as hub:
        put(hub, *named("mid", 40))
        wait_for(lambda: hub.status()["log"]["basesTaken"] > 1, "a newer base")
        put(hub, *named("new", 20))
        hub.wait_for_lsn(60)
        wait_for(lambda: hub.status()["firstLsn"] > 1, "retention to run")
        with opened(hub) as peer:
            whole = [*named("old", 30), *named("mid", 40), *named("new", 20)]
            assert ids(joined(peer, 500)) == whole
            for limit in (1, 7, 500):
                found = all_pages(peer, limit)
                assert ids(found) == whole
                known = [m["lsn"] for m in found if m["lsn"]]
                assert known == list(range(61 - len(known), 61))
            # An LSN that the log has forgotten.
            assert ids(peer.ask("history", before=5, limit=500)["messages"])[:30] == named("old", 30)


def test_history_shows_messages_as_they_are_now(old: Path) -> None:
    with HubProcess(old) as hub, opened(hub) as peer:
        put(hub, *named("new", 10))
        joined(peer, 0)
        run_sql(
            old,
            "DELETE FROM messages WHERE id IN ('old0003', 'new0003', 'new0009')",
            "UPDATE messages SET content = 'edited' WHERE id IN ('old0004', 'new0004')",
            "UPDATE messages SET room = 'other' WHERE id IN ('old0005', 'new0005')",
        )
        gone = {"old0003", "new0003", "new0009", "old0005", "new0005"}
        whole = [id for id in [*named("old", 30), *named("new", 10)] if id not in gone]
        for limit in (1, 3, 500):
            found = all_pages(peer, limit)
            assert ids(found) == whole
            edited = {m["messageId"] for m in found if m["content"] == "edited"}
            assert edited == {"old0004", "new0004"}


def test_an_old_message_that_moves_in_hides_no_others(old: Path) -> None:
    """Its row is older than the room's other messages, though it entered the room last."""
    with HubProcess(old) as hub, opened(hub) as peer:
        put(hub, "last")
        run_sql(old, "INSERT INTO messages(rowid, id, room) VALUES (-1, 'moved', 'other')")
        run_sql(old, "UPDATE messages SET room = 'r' WHERE id IN ('moved', 'elsewhere')")
        peer.join("r")
        for limit in (1, 500):
            found = ids(all_pages(peer, limit))
            assert sorted(found) == sorted([*named("old", 30), "last", "moved", "elsewhere"])


# Other programs.


def test_what_other_programs_do_is_told(old: Path) -> None:
    with HubProcess(old) as hub, opened(hub) as peer:
        peer.join("r")
        put(hub, "new")
        message = peer.until("message")
        assert (message["messageId"], message["lsn"], message["userId"]) == ("new", 1, "prog")
        run_sql(old, "UPDATE messages SET content = 'edited' WHERE id IN ('new', 'old0001')")
        told = {
            m["messageId"]: m for m in (peer.until("message-updated"), peer.until("message-updated"))
        }
        assert told["new"] == {
            **message,
            "type": "message-updated",
            "content": "edited",
            "lsn": told["new"]["lsn"],
        }
        assert {m["lsn"] for m in told.values()} == {2, 3}
        run_sql(old, "DELETE FROM messages WHERE id = 'old0001'")
        assert peer.until("message-deleted") == {
            "type": "message-deleted",
            "room": "r",
            "messageId": "old0001",
            "lsn": 4,
        }
        run_sql(old, "UPDATE messages SET room = 'other' WHERE id = 'new'")
        assert peer.until("message-deleted")["messageId"] == "new"
        run_sql(old, "UPDATE messages SET room = 'r' WHERE id = 'new'")
        assert peer.until("message")["content"] == "edited"


ODD: list[tuple[str, str]] = [
    ("NULL", "1700000000000"),
    ("7", "NULL"),
    ("1.5", "1.5"),
    ("9223372036854775807", "9223372036854775807"),
    ("x'00ff'", "'yesterday'"),
    ("CAST(x'61ff62' AS TEXT)", "-1"),
    ("'a' || char(0) || 'b'", "253402300800000"),
    ("9e999", "9e999"),
]


@pytest.mark.parametrize(("content", "at"), ODD)
def test_odd_values_are_told_the_same_live_and_as_history(old: Path, content: str, at: str) -> None:
    """Anybody may write to the table, anything: a room lives with it."""
    with HubProcess(old) as hub, opened(hub) as peer:
        peer.join("r")
        run_sql(old, f"INSERT INTO messages VALUES ('odd', 'r', NULL, {content}, {at})")
        message = peer.until("message", messageId="odd")
        assert isinstance(message["content"], str)
        answer = peer.ask("history", room="r", limit=1)
        assert answer["type"] == "history", answer
        (shown,) = answer["messages"]
        del message["type"]
        assert {k: v for k, v in shown.items() if v is not None} == message


@pytest.mark.parametrize("id", ["a\u0000b", "é😀", "\"'\\", " ", "%"])
def test_history_of_any_id(old: Path, id: str) -> None:
    with HubProcess(old) as hub, opened(hub, user="ann") as peer:
        peer.join("r")
        assert peer.ask("message", content="x", messageId=id)["type"] == "ack"
        again = peer.ask("message", content="x", messageId=id)
        assert (again["duplicate"], again["lsn"]) == (True, 1)
        (found,) = peer.ask("history", limit=1)["messages"]
        assert (found["messageId"], found["lsn"]) == (id, 1)


def test_an_id_of_null_does_no_harm(old: Path) -> None:
    with HubProcess(old) as hub, opened(hub) as peer:
        peer.join("r")
        run_sql(old, *["INSERT INTO messages(room, content) VALUES ('r', 'nameless')"] * 2)
        peer.several(2, "message")
        put(old, "after")
        peer.until("message", messageId="after")
        assert ids(all_pages(peer, 500))[:30] == named("old", 30)
        run_sql(old, "DELETE FROM messages WHERE id IS NULL")
        peer.several(2, "message-deleted")


# Resuming.


def test_a_room_resumes_without_gap_or_repeat(old: Path) -> None:
    """Connections are cut anywhere, and the hub is killed."""
    rng = random.Random(7)
    with HubProcess(old) as hub:
        with opened(hub) as peer:
            position = peer.join("r")["position"]
        got: list[str] = []
        for burst in range(6):
            put(hub, *named(f"a{burst}-", 10))
            with opened(hub) as peer:
                answer = peer.join("r", since=position, history=50)
                assert answer["history"] == 0
                put(hub, *named(f"b{burst}-", 10))
                for message in peer.several(rng.randrange(1, 20), "message"):
                    assert "history" not in message
                    got.append(message["messageId"])
                    position = f"{position.split(':')[0]}:{message['lsn']}"
            if burst % 3 == 2:
                hub.kill()
                hub.start()
        with opened(hub) as peer:
            peer.join("r", since=position)
            got += [m["messageId"] for m in peer.upto("caught-up") if m["type"] == "message"]
        sent = [id for burst in range(6) for x in "ab" for id in named(f"{x}{burst}-", 10)]
        assert got == sent


@pytest.mark.parametrize("since", ["Unheard0f:7", "ahead"])
def test_a_position_that_cannot_be_served(old: Path, since: str) -> None:
    with HubProcess(old) as hub, opened(hub) as peer:
        if since == "ahead":
            since = f"{hub.status()['epoch']}:1000000"
        answer = peer.join("r", since=since)
        # Who was cut off before the reset must be told of it again.
        assert answer["position"] == since
        reset = peer.until("reset")
        assert (reset["room"], reset["reason"]) == ("r", "ahead" if "1000000" in since else "epoch")
        put(hub, "after")
        assert peer.until("message")["messageId"] == "after"


def test_kills_in_the_middle_of_history_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """Who was cut in it has a beginning of it, and begins again; what was being said is stored once."""
    rng = random.Random(11)
    database = make_database(tmp_path / "app.db", SCHEMA)
    run_sql(
        database,
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 399) INSERT INTO"
        " messages SELECT printf('m%03d', i), 'r', 'prog', printf('%.*c', 4000, 'x'), i FROM n",
    )
    expected = [f"m{n:03}" for n in range(400)]
    with HubProcess(database) as hub:
        for round_ in range(4):
            with opened(hub, user="ann", receive_bytes=4_096) as cut:
                said = f"said{round_}"
                cut.say("message", room="r", content="hi", messageId=said)
                cut.say("join", room="r", history=500)
                cut.say("message", room="r", content="hi", messageId=said)
                count = cut.until("joined")["history"]
                found = [cut.until("message") for _ in range(rng.randrange(count))]
                hub.kill()
                with contextlib.suppress(Closed):
                    while True:
                        found.append(cut.until("message"))
            heard = ids(found)
            whole = expected[-count:]
            assert heard == whole[: len(heard)] or heard == [*whole, said]
            hub.start()
            with opened(hub, user="ann") as back:
                back.join("r")
                ack = back.ask("message", room="r", content="hi", messageId=said)
                assert (ack["type"], ack["messageId"]) == ("ack", said)
                assert ack["lsn"] > 0
            expected.append(said)
            with opened(hub, user="bob") as other:
                heard = ids(joined(other, 500))
                while heard[-1] != said:
                    # Acknowledged in the source, and just on its way into the log.
                    heard.append(other.until("message")["messageId"])
                assert heard == expected[-len(heard) :]
                assert ids(all_pages(other, 500)) == expected
