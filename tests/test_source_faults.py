"""What can happen to a source under a running hub: schema changes, restores, lost files, full disks."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdchub.capture.telling import TOLD_ROWS_MAX
from tests.harness import (
    HubProcess,
    Stream,
    cdchub,
    make_database,
    quote,
    run_sql,
    verified,
    wait_for,
)


def add(database: Path, *ids: str) -> None:
    run_sql(database, *[f"INSERT INTO todos(id, title) VALUES ('{i}', 't')" for i in ids])


def ids(changes: list[dict[str, Any]]) -> list[str]:
    return [change["key"]["id"] for change in changes]


def reset_of(stream: Stream) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(stream.until("reset")[-1].data)
    return document


def backup(source: Path, target: Path) -> None:
    """SQLite's own backup, by another process; onto an existing target it is a restore."""
    script = (
        "import sqlite3, sys\n"
        "a, b = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2], timeout=30)\n"
        "a.backup(b); a.close(); b.close()"
    )
    subprocess.run([sys.executable, "-c", script, source, target], check=True, timeout=60)


# Other databases in the place of the one that was read.


def test_an_older_copy_is_one_also_where_the_outbox_is_empty(hub: HubProcess, tmp_path: Path) -> None:
    add(hub.database, "a", "b")
    hub.wait_for_lsn(2)
    backup(hub.database, tmp_path / "copy.db")
    add(hub.database, "c", "d", "e")
    hub.wait_for_lsn(5)
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        run_sql(hub.database, "DELETE FROM _cdchub_outbox")
        assert reset_of(stream)["reason"] == "epoch"
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        backup(tmp_path / "copy.db", hub.database)
        assert reset_of(stream)["reason"] == "epoch"
        add(hub.database, "f")
        assert ids(stream.changes(1)) == ["f"]


def test_a_copy_in_place_is_noticed_before_anybody_writes(hub: HubProcess, tmp_path: Path) -> None:
    """SQLite goes on with the pages that it has read as long as the -wal says nothing else."""
    add(hub.database, "kept")
    hub.wait_for_lsn(1)
    run_sql(hub.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(hub.database, tmp_path / "copy.db")
    add(hub.database, "lost")
    hub.wait_for_lsn(2)
    run_sql(hub.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        subprocess.run(["cp", tmp_path / "copy.db", hub.database], check=True)
        # Whoever asks for a snapshot reads the database anew.
        wait_for(lambda: hub.get("/cdc/snapshot?table=todos").status == 200, "a snapshot")
        assert reset_of(stream)["reason"] == "epoch"
    rows = hub.get("/cdc/snapshot?table=todos").json()["rows"]
    assert [row["id"] for row in rows] == ["kept"]


@pytest.mark.parametrize("mine", [[], ["mine"]])
def test_a_database_that_was_captured_elsewhere_is_another_history(
    hub: HubProcess, tmp_path: Path, mine: list[str]
) -> None:
    other = tmp_path / "other.db"
    backup(hub.database, other)
    assert cdchub("deinit", "--yes", other).returncode == 0
    with HubProcess(other) as elsewhere:
        add(other, "theirs", "too")
        elsewhere.wait_for_lsn(2)
        assert elsewhere.stop() == 0
    for each in mine:
        add(hub.database, each)
    hub.wait_for_lsn(len(mine))
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        backup(other, hub.database)
        assert reset_of(stream)["reason"] == "epoch"
        add(hub.database, "later")
        assert ids(stream.changes(1)) == ["later"]
    wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "a base snapshot")
    verified(hub.database)
    assert hub.stop() == 0
    hub.start()


# Schema changes.


def test_a_new_table_is_captured_with_its_rows(hub: HubProcess) -> None:
    with hub.stream("table=*") as stream:
        stream.until("caught-up")
        run_sql(hub.database, "BEGIN", "CREATE TABLE late(a)", "INSERT INTO late VALUES (7)", "COMMIT")
        (first,) = stream.changes(1)
        run_sql(hub.database, "INSERT INTO late VALUES (8)")
        (second,) = stream.changes(1)
    assert [c["newValue"] for c in (first, second)] == [{"a": 7}, {"a": 8}]
    assert "late" in [t["table"] for t in hub.get("/cdc/tables").json()]


def test_a_new_column_is_an_update_of_each_row(hub: HubProcess) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    # Without a base there is nothing to tell a difference from.
    wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "a base snapshot")
    before = hub.head()
    with hub.stream("table=todos") as live:
        live.until("caught-up")
        run_sql(hub.database, "ALTER TABLE todos ADD COLUMN note DEFAULT 'n'")
        (change,) = live.changes(1)
        old = {"id": "a", "title": "t", "completed": 0}
        assert (change["type"], change["oldValue"]) == ("UPDATE", old)
        assert change["newValue"] == old | {"note": "n"}
        add(hub.database, "b")
        assert live.changes(1)[0]["newValue"] == old | {"id": "b", "note": "n"}
    with hub.stream("table=todos", Last_Event_ID=before) as late:
        assert ids(late.changes(2)) == ["a", "b"]


def test_a_table_that_is_too_large_to_compare_is_reset_and_goes_on(hub: HubProcess) -> None:
    rows = TOLD_ROWS_MAX + 1
    run_sql(
        hub.database,
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
        " INSERT INTO todos(id) SELECT i FROM n",
    )
    hub.wait_for_lsn(rows)
    before = hub.head()
    with hub.stream("table=todos") as live:
        live.until("caught-up")
        run_sql(hub.database, "ALTER TABLE todos ADD COLUMN note DEFAULT 'n'")
        document = reset_of(live)
        assert (document["reason"], document["tables"]) == ("schema", ["todos"])
        assert live.last_id == document["position"]
        add(hub.database, "b")
        assert live.changes(1)[0]["newValue"] == {"id": "b", "title": "t", "completed": 0, "note": "n"}
    # The break is in the log: whoever comes back from before meets it too.
    with hub.stream("table=todos", Last_Event_ID=before) as late:
        assert reset_of(late)["reason"] == "schema"
        assert ids(late.changes(1)) == ["b"]
    gone = hub.get(f"/cdc/changes?table=todos&since={before}")
    assert (gone.status, gone.code) == (410, "schema_changed")
    after = hub.get(f"/cdc/changes?table=todos&since={quote(gone.json()['position'])}").json()
    assert ids(after["changes"]) == ["b"]


def test_a_schema_change_of_another_table_is_no_event(hub: HubProcess) -> None:
    run_sql(hub.database, "CREATE TABLE other(a)")
    wait_for(lambda: len(hub.get("/cdc/tables").json()) == 2, "the other table to be captured")
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        run_sql(hub.database, "ALTER TABLE other ADD COLUMN b", "DROP TABLE other", "VACUUM")
        add(hub.database, "a")
        assert ids(stream.changes(1)) == ["a"]
        assert "reset" not in stream.text


# Other histories.


@pytest.mark.parametrize("how", ["backup", "replace", "replace_with_wal"])
def test_a_restored_copy_begins_another_epoch(hub: HubProcess, tmp_path: Path, how: str) -> None:
    copy = tmp_path / "copy.db"
    add(hub.database, "a")
    backup(hub.database, copy)
    add(hub.database, "b", "c")
    hub.wait_for_lsn(3)
    old_head = hub.head()
    with hub.stream("table=todos") as live, hub.stream("table=todos&snapshot=1") as kept:
        live.until("caught-up")
        kept.until("caught-up")
        restore(how, copy, hub.database)
        assert reset_of(live)["reason"] == "epoch"
        events = kept.until("caught-up")
        assert [e.name for e in events if e.name != "message"] == ["reset", "snapshot", "caught-up"]
        rows = [json.loads(e.data)["key"]["id"] for e in events if e.name == "message"]
        # With the old -wal left in place SQLite itself still shows its pages; else only the copy's.
        assert rows == [i for (i,) in run_sql(hub.database, "SELECT id FROM todos ORDER BY id")]
        assert how == "replace_with_wal" or rows == ["a"]
        # The same LSNs come again, in another epoch.
        add(hub.database, "d")
        for stream in (live, kept):
            assert ids(stream.changes(1)) == ["d"]
        assert live.last_id.split(":")[0] != old_head.split(":")[0]
    with hub.stream("table=todos", Last_Event_ID=old_head) as late:
        assert reset_of(late)["reason"] == "epoch"
    assert hub.get(f"/cdc/changes?table=todos&since={old_head}").code == "epoch_changed"


def restore(how: str, copy: Path, database: Path) -> None:
    if how == "backup":
        backup(copy, database)
        return
    if how == "replace":
        for suffix in ("-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, copy.with_name("staged.db"))
    copy.with_name("staged.db").rename(database)


def test_a_restore_while_the_hub_is_down_is_noticed(hub: HubProcess, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    add(hub.database, "a")
    backup(hub.database, copy)
    add(hub.database, "b", "c")
    hub.wait_for_lsn(3)
    old_head = hub.head()
    hub.stop()
    backup(copy, hub.database)
    # The restored copy overtakes the old history, so that LSNs alone would look like progress.
    add(hub.database, *"defghi")
    hub.start()
    with hub.stream("table=todos", Last_Event_ID=old_head) as late:
        assert reset_of(late)["reason"] == "epoch"


def test_a_copy_from_before_capture_is_captured_anew(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE todos(id TEXT PRIMARY KEY, title)")
    before = tmp_path / "before.db"
    backup(database, before)
    with HubProcess(database) as hub, hub.stream("table=todos") as stream:
        stream.until("caught-up")
        add(database, "a")
        stream.changes(1)
        backup(before, database)
        assert reset_of(stream)["reason"] == "epoch"
        add(database, "b")
        assert ids(stream.changes(1)) == ["b"]


def test_a_lost_log_begins_another_epoch(hub: HubProcess) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    head = hub.head()
    hub.stop()
    for suffix in ("-cdchub", "-cdchub-wal", "-cdchub-shm"):
        hub.database.with_name(hub.database.name + suffix).unlink(missing_ok=True)
    hub.start()
    with hub.stream("table=todos", Last_Event_ID=head) as stream:
        assert reset_of(stream)["reason"] == "epoch"


def test_a_deleted_wal_does_not_end_capture(hub: HubProcess) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    with hub.stream("table=todos&snapshot=1") as stream:
        stream.until("caught-up")
        for suffix in ("-wal", "-shm"):
            hub.database.with_name(hub.database.name + suffix).unlink()
        add(hub.database, "z")
        wait_for(lambda: seen(stream, "z"), "the change after the deletion")


def seen(stream: Stream, key: str) -> bool:
    event = stream.next()
    return event.name == "message" and json.loads(event.data)["key"] == {"id": key}


# The hub's own end.


def test_a_killed_hub_resumes_where_it_was(hub: HubProcess) -> None:
    with hub.stream("table=todos") as stream:
        stream.until("caught-up")
        add(hub.database, "a")
        stream.changes(1)
        position = stream.last_id
    hub.kill()
    add(hub.database, "b", "c")
    hub.start()
    with hub.stream("table=todos", Last_Event_ID=position) as stream:
        assert ids(stream.changes(2)) == ["b", "c"]
        # Before or after them: the hub serves while it reads what was left in the outbox.
        stream.read_until(lambda it: "caught-up" in it.text)
        assert "reset" not in stream.text


def test_a_schema_change_under_a_dead_hub_that_was_behind_does_not_stop_the_next(
    hub: HubProcess,
) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    hub.kill()
    add(hub.database, "b", "c")
    run_sql(hub.database, "ALTER TABLE todos ADD COLUMN note DEFAULT 'n'")
    hub.start()
    with hub.stream("table=todos&since=beginning") as stream:
        stream.until("caught-up")
        add(hub.database, "d")
        assert ids(stream.changes(1)) == ["d"]
    assert "ValueError" not in hub.log


def test_a_full_disk_interrupts_and_loses_nothing(hub: HubProcess) -> None:
    """The kernel refuses the log's writes, as it does on a full disk, until there is room again."""
    add(hub.database, "a")
    with hub.stream("table=todos&since=beginning") as stream:
        stream.changes(1)
        limit = resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
        add(hub.database, "b")
        wait_for(lambda: hub.get("/readyz").status == 503, "the hub to say that capture is failing")
        assert hub.get("/readyz").json()["status"] == "failing"
        add(hub.database, "c")
        resource.prlimit(hub.pid, resource.RLIMIT_FSIZE, limit)
        assert ids(stream.changes(2)) == ["b", "c"]
    wait_for(lambda: hub.get("/readyz").status == 200, "the hub to be ready again")
    assert "nothing is lost" in hub.log


def test_a_stalled_reader_holds_nobody_and_misses_nothing(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, pad)")
    rows, batch = 3_000, 100
    with HubProcess(database) as hub, hub.stream("table=t") as quick, hub.stream("table=t") as stalled:
        quick.until("caught-up")
        stalled.until("caught-up")
        for first in range(1, rows, batch):
            run_sql(
                database,
                f"WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n"
                f" WHERE i < {first + batch - 1})"
                " INSERT INTO t SELECT i, hex(zeroblob(2000)) FROM n",
            )
            assert len(quick.changes(batch)) == batch, "the quick one is served at once"
        outcomes = hub.get("/cdc/status").json()["subscribers"]["outcomes"]
        assert outcomes.get("fell_behind", 0) >= 1, "the stalled one has left the live path"
        assert [c["lsn"] for c in stalled.changes(rows)] == list(range(1, rows + 1))
