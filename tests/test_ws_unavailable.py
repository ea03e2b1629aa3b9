"""Rooms that can't be had: without a fit table, and on a database that can't be written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdchub.ws import SCHEMA
from tests.harness import HubProcess, has_base, make_database, run_sql, wait_for
from tests.test_disk_faults import full, small_disk
from tests.ws_client import error_of, opened


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database with a message that was there before capture."""
    return make_database(
        tmp_path / "app.db", SCHEMA, "INSERT INTO messages VALUES ('old', 'r', 'u', 'x', 1)"
    )


# Rooms that can't be had.


@pytest.mark.parametrize(
    ("schema", "options"),
    [
        ("CREATE TABLE t(id INTEGER PRIMARY KEY)", ()),
        (SCHEMA, ("--exclude", "messages")),
        (SCHEMA, ("--exclude", "messages.content")),
        (SCHEMA + " WITHOUT ROWID", ()),
        ("CREATE TABLE messages(id TEXT PRIMARY KEY, room TEXT, body TEXT)", ()),
        ("CREATE TABLE messages(id TEXT PRIMARY KEY, room, user_id, content, created_at, more)", ()),
        ("CREATE TABLE messages(id TEXT, room, user_id, content, created_at)", ()),
        ("CREATE TABLE messages(id, room, user_id, content, created_at, PRIMARY KEY(id, room))", ()),
        ("CREATE VIEW messages AS SELECT 'a' id, 'r' room, 'u' user_id, 'c' content, 1 created_at", ()),
    ],
)
def test_rooms_are_unavailable(tmp_path: Path, schema: str, options: tuple[str, ...]) -> None:
    database = make_database(tmp_path / "app.db", schema)
    with HubProcess(database, *options) as hub, opened(hub) as peer:
        answer = peer.ask("join", room="r", history=5)
        assert (error_of(answer), answer["room"]) == ("rooms_unavailable", "r")
        assert error_of(peer.ask("message", room="r", content="x")) == "not_joined"
        assert peer.ask("ping")["type"] == "pong"


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("RENAME COLUMN content TO other", "RENAME COLUMN other TO content"),
        # SQLite refuses to drop a column that a capture trigger names.
        ("ADD COLUMN other", None),
    ],
)
def test_a_table_that_changes_its_shape_is_not_written_to(
    old: Path, change: str, back: str | None
) -> None:
    with HubProcess(old) as hub, opened(hub) as peer:
        peer.join("r")
        run_sql(old, f"ALTER TABLE messages {change}")
        wait_for(lambda: "other" in str(hub.get("/cdc/tables").json()), "the new shape")
        assert error_of(peer.ask("message", content="x")) == "rooms_unavailable"
        assert run_sql(old, "SELECT count(*) FROM messages") == [[1]]
        assert error_of(peer.ask("history")) == "rooms_unavailable"
        if back is None:
            return
        run_sql(old, f"ALTER TABLE messages {back}")
        wait_for(lambda: "other" not in str(hub.get("/cdc/tables").json()), "the old shape")
        assert peer.ask("message", content="again")["type"] == "ack"


# Databases that can't be written.


@contextmanager
def locked(database: Path) -> Iterator[None]:
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        yield
        holder.communicate()


def test_a_locked_database(old: Path) -> None:
    with HubProcess(old) as hub, opened(hub, user="ann") as peer:
        peer.join("r")
        with locked(old):
            answer = peer.ask("message", room="r", content="x", messageId="once")
            assert error_of(answer) in ("overloaded", "timeout")
            assert (answer["messageId"], answer["room"]) == ("once", "r")
            assert answer["retryAfterMs"] > 0
        again = peer.ask("message", content="x", messageId="once")
        assert (again["type"], again["duplicate"]) == ("ack", False)
        assert run_sql(old, "SELECT count(*) FROM messages WHERE id = 'once'") == [[1]]
        assert len([m for m in [*peer.passed, *peer.so_far()] if m["type"] == "message"]) == 1


def test_a_full_disk() -> None:
    with small_disk(24 * 2**20) as folder:
        database = make_database(folder / "app.db", SCHEMA)
        with HubProcess(database) as hub, opened(hub, user="ann") as peer:
            wait_for(lambda: has_base(hub), "the base")
            peer.join("r")
            refused: dict[str, Any] = {}
            with full(folder):
                for n in range(400):
                    answer = peer.ask("message", content="x" * 16_000, messageId=f"m{n}")
                    if answer["type"] == "error" and answer["code"] != "too_many_requests":
                        refused = answer
                        break
            assert refused["code"] == "overloaded", refused
            id = refused["messageId"]
            wait_for(
                lambda: peer.ask("message", content="y", messageId=id)["type"] == "ack", "room again"
            )
            assert run_sql(database, f"SELECT count(*) FROM messages WHERE id = '{id}'") == [[1]]
