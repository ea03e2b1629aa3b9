"""`cdchub demo`, and what the dashboard asks of a hub besides the stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdchub.views import local_time_zone
from tests.harness import HubProcess, make_database, run_sql, wait_for

USERS = "CREATE TABLE users(id TEXT PRIMARY KEY, name, email UNIQUE, created_at)"
ORDERS = "CREATE TABLE orders(id TEXT PRIMARY KEY, user_id, total REAL, status TEXT, created_at)"
SESSIONS = "CREATE TABLE sessions(token TEXT PRIMARY KEY, user_id, created_at, last_active)"


def test_the_demo_has_visitors_and_ends_in_order(tmp_path: Path) -> None:
    database = tmp_path / "cdchub-demo.db"
    with HubProcess(database, command=["demo"], cwd=tmp_path) as hub:
        with hub.stream("table=*") as stream:
            stream.until("caught-up")
            tables = {change["table"] for change in stream.changes(3)}
        assert tables <= {"users", "orders", "sessions", "messages", "todos"}
        assert hub.stop() == 0
    assert "simulated visitors" in hub.log
    assert "Traceback" not in hub.log


def test_a_quiet_demo_has_none(tmp_path: Path) -> None:
    database = tmp_path / "cdchub-demo.db"
    with HubProcess(database, command=["demo", "--quiet"], cwd=tmp_path) as hub:
        run_sql(database, "UPDATE users SET name = 'Ada' WHERE id = (SELECT min(id) FROM users)")
        hub.wait_for_lsn(1)
        assert hub.status()["headLsn"] == 1
        assert hub.stop() == 0
    assert "simulated visitors" not in hub.log


def test_a_demo_is_filled_once(tmp_path: Path) -> None:
    database = tmp_path / "cdchub-demo.db"
    hub = HubProcess(database, command=["demo", "--quiet"], cwd=tmp_path)
    with hub:
        run_sql(
            database, "DELETE FROM todos", "DELETE FROM users WHERE id > (SELECT min(id) FROM users)"
        )
        hub.stop()
    with hub:
        assert run_sql(
            database, "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM todos)"
        ) == [[1, 0]]


def test_the_dashboard_is_told_the_zone_and_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Chatham")
    database = make_database(tmp_path / "app.db", USERS, ORDERS, SESSIONS)
    with HubProcess(database) as hub:
        answer = hub.get("/api/dashboard")
        assert answer.headers["cache-control"] == "no-store"
        document = answer.json()
        assert document["timeZone"] == "Pacific/Chatham"
        run_sql(database, "INSERT INTO users VALUES ('a', 'Ada', 'ada@example.org', 0)")
        with hub.stream("table=users&since=beginning") as stream:
            stamp = next(c for c in stream.changes(1))["timestamp"]
        # The clock that changes are stamped with.
        assert 0 <= stamp - document["now"] < 60_000


def test_a_database_without_the_tables_says_which_is_missing(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", USERS, ORDERS)
    with HubProcess(database) as hub:
        answer = hub.get("/api/dashboard")
        assert (answer.status, answer.code) == (404, "not_found")
        assert answer.json()["detail"] == "This database has no captured table called sessions."
        run_sql(database, "CREATE TABLE sessions(token TEXT PRIMARY KEY, user_id, created_at)")
        run_sql(database, "INSERT INTO sessions VALUES ('t', 'a', 0)")

        def says(detail: str) -> bool:
            return bool(json.loads(hub.get("/api/dashboard").body)["detail"] == detail)

        wait_for(lambda: says("The table sessions lacks last_active."), "the new table to be captured")


@pytest.mark.parametrize(
    ("tz", "name"),
    [
        ("Europe/Zurich", "Europe/Zurich"),
        (":Europe/Zurich", "Europe/Zurich"),
        ("/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo"),
        ("UTC", "UTC"),
        ("", "UTC"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", "UTC"),
        ("../../etc/passwd", "UTC"),
        ("No/Such_Place", "UTC"),
        ("Europe", "UTC"),
    ],
)
def test_the_zone_is_that_of_the_environment(tz: str, name: str) -> None:
    assert local_time_zone(tz) == name


def test_without_one_it_is_that_of_the_system(tmp_path: Path) -> None:
    link = tmp_path / "localtime"
    assert local_time_zone(None, localtime=link) == "UTC"
    link.symlink_to("/usr/share/zoneinfo/America/New_York")
    assert local_time_zone(None, localtime=link) == "America/New_York"
    link.unlink()
    link.write_bytes(b"TZif2")
    assert local_time_zone(None, localtime=link) == "UTC"
