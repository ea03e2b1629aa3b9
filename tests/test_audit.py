"""Changes that escape capture are noticed, told of, and brought up."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from cdchub import Hub
from cdchub.capture.mending import Finding
from cdchub.capture.source import Source
from cdchub.config import BaseConfig, CaptureConfig, Config
from tests.harness import (
    PATIENCE_S,
    HubProcess,
    make_database,
    run_sql,
    wait_for,
    write_without_triggers,
)
from tests.test_hub import until


def config(**capture: float) -> Config:
    return Config(capture=CaptureConfig(audit_every_s=0.05, safety_look_s=0.05, **capture))


async def audited(hub: Hub) -> None:
    """Returns when every table has been counted at least once more."""
    tailer = hub._capturing._tailer
    assert tailer is not None
    tailer._auditor._rows.clear()
    tailer._auditor._due_s = 0.0
    await until(lambda: tailer._auditor._rows, "an audit")


async def test_rows_that_escaped_are_brought_up(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_sql(database, "INSERT INTO todos(id) VALUES ('old')")
    async with Hub(database, config=config()) as hub:
        async with contextlib.aclosing(hub.subscribe("todos")) as changes:
            await audited(hub)
            write_without_triggers(
                database,
                "INSERT INTO todos(id) VALUES ('a'), ('b'); DELETE FROM todos WHERE id = 'old'",
            )
            async with asyncio.timeout(PATIENCE_S):
                told = [await anext(changes) for _ in range(3)]
            assert {(c["type"], c["key"]["id"]) for c in told} == {
                ("INSERT", "a"),
                ("INSERT", "b"),
                ("DELETE", "old"),
            }
            run_sql(database, "INSERT INTO todos(id) VALUES ('c')")
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(changes))["key"] == {"id": "c"}, "capture stands"
        assert hub.status()["capture"]["auditsFailed"] == 1
    assert "changed without capture (it holds 2 rows, 1 by what was captured)" in caplog.text


async def test_a_later_base_hides_nothing(database: Path) -> None:
    run_sql(database, "INSERT INTO todos(id) VALUES ('a'), ('b')")
    bases = BaseConfig(bytes_min=1)
    async with Hub(database, config=Config(capture=config().capture, base=bases)) as hub:
        tailer = hub._capturing._tailer
        assert tailer is not None
        async with contextlib.aclosing(hub.subscribe("todos")) as changes:
            await audited(hub)
            # The next audit comes only when there is a base that has what escaped.
            tailer._auditor._due_s = float("inf")
            write_without_triggers(database, "DELETE FROM todos WHERE id = 'a'")
            taken = hub.status()["log"]["basesTaken"]
            run_sql(database, *["UPDATE todos SET completed = completed + 1"] * 20)
            await until(lambda: hub.status()["log"]["basesTaken"] > taken, "another base")
            tailer._auditor._due_s = 0.0
            async with asyncio.timeout(PATIENCE_S):
                async for change in changes:
                    if change["type"] == "DELETE":
                        break
            assert change["key"] == {"id": "a"}


async def test_a_busy_source_hides_nothing(database: Path) -> None:
    run_sql(database, "INSERT INTO todos(id) VALUES ('a'), ('b')")
    async with Hub(database, config=config()) as hub:
        await audited(hub)
        tailer = hub._capturing._tailer
        assert tailer is not None
        compare, found = tailer._mender.compare, []

        def interrupted(source: Source, table: str) -> Finding:
            if not found:
                run_sql(database, "UPDATE todos SET completed = 1 WHERE id = 'b'")
            found.append(compare(source, table))
            return found[-1]

        tailer._mender.compare = interrupted  # type: ignore[method-assign]
        write_without_triggers(database, "DELETE FROM todos WHERE id = 'a'")
        await until(lambda: hub.status()["capture"]["auditsFailed"], "the audit to find it later")
        assert found[0] is Finding.UNDER_WAY


async def test_what_can_not_be_compared_is_told_and_nothing_is_reset(database: Path) -> None:
    without = Config(capture=config().capture, base=BaseConfig(enabled=False))
    async with Hub(database, config=without) as hub:
        await audited(hub)
        write_without_triggers(database, "INSERT INTO todos(id) VALUES ('a')")
        await until(lambda: hub.status()["capture"]["warnings"], "a warning")
        capture = hub.status()["capture"]
        assert "`cdchub verify` tells" in capture["warnings"][-1]
        assert capture["breaks"] == 0


async def test_triggers_that_were_edited_by_hand_are_made_anew(database: Path) -> None:
    async with Hub(database, config=config()) as hub:
        await audited(hub)
        sabotage = (
            "UPDATE sqlite_schema SET sql = replace(sql, '''c''', '''d''') WHERE type = 'trigger'"
        )
        run_sql(database, "PRAGMA writable_schema = 1", sabotage, "PRAGMA writable_schema = 0")
        await until(lambda: hub.status()["capture"]["auditsFailed"], "the audit to see it")
        async with contextlib.aclosing(hub.subscribe("todos")) as changes:
            await asyncio.to_thread(run_sql, database, "INSERT INTO todos(id) VALUES ('a')")
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(changes))["type"] == "INSERT"


async def test_triggers_that_only_add_up_differently_are_no_alarm(database: Path) -> None:
    # A newer trigger deletes the row before our own sees it: the outbox has a DELETE without INSERT.
    async with Hub(database, config=config()) as hub:
        run_sql(
            database,
            "CREATE TRIGGER z AFTER INSERT ON todos WHEN new.id = 'gone' BEGIN"
            " DELETE FROM todos WHERE id = 'gone'; END",
        )
        await audited(hub)
        await asyncio.to_thread(
            run_sql, database, *("INSERT INTO todos(id) VALUES ('gone')" for _ in range(3))
        )
        await until(lambda: hub.core.present.head.lsn, "the changes")
        await audited(hub)
        await audited(hub)
        capture = hub.status()["capture"]
        assert (capture["auditsFailed"], capture["breaks"]) == (0, 0)


async def test_rows_that_replace_removed_under_a_passing_index_are_told_of(tmp_path: Path) -> None:
    """Nobody saw the index: it came and went in one transaction, and the triggers don't know it."""
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    run_sql(database, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    quick = Config(capture=CaptureConfig(safety_look_s=0.05))
    async with Hub(database, config=quick) as hub, contextlib.aclosing(hub.subscribe("t")) as changes:
        await audited(hub)
        run_sql(
            database,
            "BEGIN",
            "CREATE UNIQUE INDEX passing ON t(v)",
            "UPDATE OR REPLACE t SET v = 'c'",
            "DROP INDEX passing",
            "COMMIT",
        )
        rows = {1: "a", 2: "b"}
        async with asyncio.timeout(PATIENCE_S):
            while rows != {2: "c"}:
                change = await anext(changes)
                key = change["key"]["id"]
                if change["newValue"] is None:
                    rows.pop(key, None)
                else:
                    rows[key] = change["newValue"]["v"]


@pytest.mark.parametrize(
    ("stops", "statement"),
    [
        ("RAISE(IGNORE)", "INSERT INTO todos(id) VALUES ('a')"),
        ("RAISE(FAIL, 'no')", "INSERT INTO todos(id) VALUES ('a')"),
    ],
)
def test_rows_that_a_newer_trigger_hid_from_ours_are_told(
    database: Path, stops: str, statement: str
) -> None:
    """The newest trigger fires first, and can keep a row and end the others. No hub was there to put
    capture's up again before it."""
    with HubProcess(database) as hub:
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "the base")
        assert hub.stop() == 0
    run_sql(
        database, f"CREATE TRIGGER z AFTER INSERT ON todos WHEN new.id = 'a' BEGIN SELECT {stops}; END"
    )
    with contextlib.suppress(AssertionError):
        run_sql(database, statement)
    with HubProcess(database) as hub:
        with hub.stream("table=todos&since=beginning") as stream:
            (change,) = stream.changes(1)
        assert (change["type"], change["key"]) == ("INSERT", {"id": "a"})
        run_sql(database, "INSERT INTO todos(id) VALUES ('b')")
        hub.wait_for_lsn(change["lsn"] + 1)
        assert hub.stop() == 0


async def test_a_comparison_that_takes_too_long_holds_nobody_up(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It replays the log, and nothing is delivered meanwhile."""
    async with Hub(database, config=config(compare_s_max=1e-6)) as hub:
        async with contextlib.aclosing(hub.subscribe("todos")) as changes:
            run_sql(database, "INSERT INTO todos(id) VALUES ('a')")
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(changes))["key"] == {"id": "a"}
            await audited(hub)
            write_without_triggers(database, "INSERT INTO todos(id) VALUES ('escaped')")
            await until(lambda: "can't be compared here" in caplog.text, "the warning")
            run_sql(database, "INSERT INTO todos(id) VALUES ('b')")
            async with asyncio.timeout(PATIENCE_S):
                assert (await anext(changes))["key"] == {"id": "b"}
        assert hub.failing is None


def test_what_is_promised_as_a_difference_may_take_longer(database: Path) -> None:
    bound = ("--set", "capture.compare_s_max=0.000001")
    with HubProcess(database, *bound, program=("-m", "tests.serving")) as hub:
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "the base")
        with hub.stream("table=todos") as stream:
            stream.until("caught-up")
            run_sql(database, "INSERT INTO todos(id) VALUES ('a')")
            stream.changes(1)
            run_sql(database, "ALTER TABLE todos ADD COLUMN note DEFAULT 'n'")
            (change,) = stream.changes(1)
            assert (change["type"], change["newValue"]["note"]) == ("UPDATE", "n")
            assert "reset" not in stream.text
