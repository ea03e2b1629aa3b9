"""A log that is deleted, copies that are served elsewhere, clocks that step: told, never guessed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.harness import (
    HubProcess,
    beside,
    cdchub,
    has_base,
    one_line,
    run_sql,
    verified,
    wait_for,
)
from tests.test_source_faults import add, ids, reset_of


def test_a_log_that_is_deleted_under_the_hub_is_noticed(hub: HubProcess) -> None:
    add(hub.database, "a")
    with hub.stream("table=todos&since=beginning") as stream:
        stream.changes(1)
        head = hub.head()
        for suffix in ("-cdchub", "-cdchub-wal", "-cdchub-shm"):
            beside(hub.database, suffix).unlink(missing_ok=True)
        wait_for(
            lambda: hub.head().split(":")[0] != head.split(":")[0], "a log and an epoch of its own"
        )
        assert reset_of(stream)["reason"] == "epoch"
        add(hub.database, "b")
        assert ids(stream.changes(1)) == ["b"]
    assert any("the change log was deleted" in line for line in hub.lines)
    verified(hub.database)
    hub.stop()
    add(hub.database, "c")
    hub.start()
    with hub.stream("table=todos", Last_Event_ID=head) as stream:
        assert reset_of(stream)["reason"] == "epoch"
        wait_for(lambda: has_base(hub), "the base")
    verified(hub.database)


@pytest.mark.parametrize("running", [True, False])
def test_the_wal_of_a_deleted_log_is_not_taken_for_another_ones(hub: HubProcess, running: bool) -> None:
    """Whoever reads in the README of one file deletes one file."""
    add(hub.database, *map(str, range(100)))
    hub.wait_for_lsn(100)
    epoch = hub.status()["epoch"]
    if not running:
        hub.kill()
    beside(hub.database, "-cdchub").unlink()
    assert beside(hub.database, "-cdchub-wal").exists()
    if not running:
        hub.start()
    wait_for(lambda: hub.status()["epoch"] != epoch, "a log and an epoch of its own")
    wait_for(lambda: has_base(hub), "the base")
    add(hub.database, "later")
    hub.wait_for_lsn(101)
    verified(hub.database)
    assert hub.get("/readyz").status == 200


def test_a_copied_source_without_its_log_begins_anew(hub: HubProcess, tmp_path: Path) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    head = hub.head()
    hub.stop()
    run_sql(hub.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "app.db"
    copy.write_bytes(hub.database.read_bytes())
    with HubProcess(copy) as other, other.stream("table=todos", Last_Event_ID=head) as stream:
        assert reset_of(stream)["reason"] == "epoch"
        add(copy, "b")
        assert ids(stream.changes(1)) == ["b"]
        wait_for(lambda: has_base(other), "the base")
    verified(copy)


def test_a_copied_source_with_its_log_begins_another_epoch(hub: HubProcess, tmp_path: Path) -> None:
    """Both go on from the same place: each must have an epoch of its own."""
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    head = hub.head()
    hub.stop()
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "app.db"
    for suffix in ("", "-wal", "-cdchub", "-cdchub-wal"):
        if beside(hub.database, suffix).exists():
            beside(copy, suffix).write_bytes(beside(hub.database, suffix).read_bytes())
    with HubProcess(copy) as other, other.stream("table=todos", Last_Event_ID=head) as stream:
        assert reset_of(stream)["reason"] == "epoch"
        wait_for(lambda: has_base(other), "the base")
    verified(copy)


# Clocks.


def test_a_clock_that_goes_back_reorders_nothing(hub: HubProcess) -> None:
    """Timestamps are what the writers' clocks said; order is the LSN's."""
    with hub.stream("table=todos&since=beginning") as stream:
        for day, key in enumerate("abc"):
            forged = (
                f"UPDATE _cdchub_outbox SET ts = ts - {86_400_000 * 30 * day} WHERE lsn = {day + 1}"
            )
            insert = f"INSERT INTO todos(id) VALUES ('{key}')"
            run_sql(hub.database, "BEGIN", insert, forged, "COMMIT")
        changes = stream.changes(3)
    assert [change["lsn"] for change in changes] == [1, 2, 3]
    stamps = [change["timestamp"] for change in changes]
    assert stamps == sorted(stamps, reverse=True)
    assert stamps[0] - stamps[2] > 86_400_000 * 59
    hub.stop()
    verified(hub.database)


def test_entries_from_the_future_and_the_past_are_kept_as_long_as_any_before_them(
    hub: HubProcess,
) -> None:
    """A clock that was a year ahead and was set right: retention lets go of nothing too early."""
    year_ms = 365 * 86_400_000
    for lsn, shift_ms in ((1, year_ms), (2, -year_ms), (3, 0)):
        forged = f"UPDATE _cdchub_outbox SET ts = ts + {shift_ms} WHERE lsn = {lsn}"
        insert = f"INSERT INTO todos(id) VALUES ('{lsn}')"
        run_sql(hub.database, "BEGIN", insert, forged, "COMMIT")
        hub.wait_for_lsn(lsn)
    hub.stop()
    with HubProcess(hub.database, "--retain-age", "3600", "--base-interval", "0.1") as again:
        add(hub.database, "4")
        again.wait_for_lsn(4)
        wait_for(lambda: again.get("/cdc/status").json()["log"]["basesTaken"] > 0, "a newer base")
        page = again.get("/cdc/changes?table=todos&since=beginning").json()
        lsns = [change["lsn"] for change in page["changes"]]
        assert lsns == [1, 2, 3, 4], "what precedes an entry that is young enough stays"
        again.stop()
    verified(hub.database)


def test_the_log_is_no_database_of_another_program(hub: HubProcess) -> None:
    hub.stop()
    log = beside(hub.database, "-cdchub")
    log.unlink()
    other = sqlite3.connect(log)
    other.execute("CREATE TABLE precious(x)")
    other.commit()
    other.close()
    before = log.read_bytes()
    one_line(cdchub("serve", hub.database, "--port", "0"), str(log), "not a change log")
    assert log.read_bytes() == before
