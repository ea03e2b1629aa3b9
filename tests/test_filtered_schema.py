"""Filters and columns of a running stream while the schema changes under it: what its reader holds in
the end is what SQLite says, by the columns that are there then."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.harness import HubProcess, Stream, cdchub, make_database, run_sql, wait_for

ROWS = "INSERT INTO t VALUES (1, 5, 'a'), (2, 6, 'a'), (3, NULL, 'b')"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(
        tmp_path / "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, w TEXT)",
        "CREATE TABLE pairs(a TEXT, b TEXT, c TEXT, PRIMARY KEY(a, b))",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
        ROWS,
    )


class View:
    """What a page holds that follows a stream: rows by their keys."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.rows: dict[str, Any] = {}

    def comes_to_hold(self, hub: HubProcess, rows: list[Any]) -> None:
        """The hub notices a change of the schema some time after its commit."""

        def held() -> bool:
            return sorted(map(json.dumps, self.read_behind(hub))) == sorted(map(json.dumps, rows))

        wait_for(held, f"{rows}, holds {self.rows}", within_s=15)

    def read_behind(self, hub: HubProcess) -> list[Any]:
        """The rows behind all that has been committed; a change of another table marks that place."""
        run_sql(hub.database, "INSERT INTO quiet VALUES (NULL)")
        ((wanted,),) = run_sql(hub.database, "SELECT max(id) FROM quiet")
        while True:
            event = self._stream.next()
            data = json.loads(event.data)
            if event.name in ("reset", "snapshot"):
                self._drop(data["tables"])
            elif event.name == "message":
                if data["table"] == "quiet" and data["key"]["id"] >= wanted:
                    return list(self.rows.values())
                self._apply(data)

    def _drop(self, tables: list[str]) -> None:
        for name in [name for name in self.rows if json.loads(name)[0] in tables]:
            del self.rows[name]

    def _apply(self, change: dict[str, Any]) -> None:
        if change["table"] == "quiet":
            return
        name = json.dumps([change["table"], change["key"]])
        if change["newValue"] is None:
            self.rows.pop(name, None)
        else:
            self.rows[name] = change["newValue"]


def migrate(hub: HubProcess, sql: str) -> None:
    script = hub.database.with_name("next.sql")
    script.write_text(sql)
    done = cdchub("migrate", hub.database, script)
    assert done.returncode == 0, done.stderr


def test_a_renamed_column_holds_nothing_until_there_is_one_of_its_name(database: Path) -> None:
    with (
        HubProcess(database) as hub,
        hub.stream("table=t,quiet&snapshot=1&filter=t.v=eq.5") as equal,
        hub.stream("table=t,quiet&snapshot=1&filter=t.v=is.null") as null,
    ):
        views = [View(equal), View(null)]

        def hold(*wanted: list[int]) -> None:
            for view, ids in zip(views, wanted, strict=True):
                rows = [row for row in run_sql(database, "SELECT * FROM t") if row[0] in ids]
                columns = [
                    name for (name,) in run_sql(database, "SELECT name FROM pragma_table_info('t')")
                ]
                view.comes_to_hold(hub, [dict(zip(columns, row, strict=True)) for row in rows])

        hold([1], [3])
        run_sql(database, "ALTER TABLE t RENAME COLUMN v TO x")
        hold([], [1, 2, 3])
        run_sql(database, "INSERT INTO t VALUES (4, 5, 'c')", "DELETE FROM t WHERE id = 1")
        hold([], [2, 3, 4])
        run_sql(database, "ALTER TABLE t ADD COLUMN v INTEGER DEFAULT 5")
        hold([2, 3, 4], [])
        run_sql(database, "UPDATE t SET v = NULL WHERE id = 3")
        hold([2, 4], [3])


def test_a_dropped_column_holds_nothing(database: Path) -> None:
    with (
        HubProcess(database) as hub,
        hub.stream("table=t,quiet&snapshot=1&filter=t.w=like.a*&columns=t.v,t.w") as stream,
    ):
        view = View(stream)
        view.comes_to_hold(hub, [{"id": 1, "v": 5, "w": "a"}, {"id": 2, "v": 6, "w": "a"}])
        migrate(hub, "ALTER TABLE t DROP COLUMN w;")
        view.comes_to_hold(hub, [])
        run_sql(database, "INSERT INTO t VALUES (4, 5)", "UPDATE t SET v = 1")
        view.comes_to_hold(hub, [])
        assert hub.get("/cdc/changes?table=t&filter=w=eq.a").code == "unknown_column"
        hub.stop()


def test_a_column_that_is_written_in_other_cases_is_the_same_column(database: Path) -> None:
    with (
        HubProcess(database) as hub,
        hub.stream("table=t,quiet&snapshot=1&filter=t.v=eq.5&columns=t.v") as stream,
    ):
        view = View(stream)
        view.comes_to_hold(hub, [{"id": 1, "v": 5}])
        run_sql(database, "ALTER TABLE t RENAME COLUMN v TO V")
        view.comes_to_hold(hub, [{"id": 1, "V": 5}])
        run_sql(database, "UPDATE t SET V = 11 - V")
        view.comes_to_hold(hub, [{"id": 2, "V": 5}])


def test_a_column_of_the_key_is_shown_under_its_new_name(database: Path) -> None:
    with (
        HubProcess(database) as hub,
        hub.stream("table=pairs,quiet&columns=pairs.a&snapshot=1") as stream,
    ):
        view = View(stream)
        run_sql(database, "INSERT INTO pairs VALUES ('1', '2', '3')")
        view.comes_to_hold(hub, [{"a": "1", "b": "2"}])
        run_sql(database, "ALTER TABLE pairs RENAME COLUMN b TO bb")
        run_sql(database, "INSERT INTO pairs VALUES ('4', '5', '6')")
        view.comes_to_hold(hub, [{"a": "1", "bb": "2"}, {"a": "4", "bb": "5"}])
        run_sql(database, "INSERT INTO pairs VALUES ('7', '8', '9')")
        view.comes_to_hold(hub, [{"a": n, "bb": m} for n, m in ("12", "45", "78")])


def test_columns_that_are_all_gone_leave_the_rows(tmp_path: Path) -> None:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE bare(v, w)",
        "CREATE TABLE quiet(id INTEGER PRIMARY KEY)",
        "INSERT INTO bare VALUES (1, 2), (3, 4)",
    )
    with (
        HubProcess(database) as hub,
        hub.stream("table=bare,quiet&snapshot=1&columns=bare.v") as stream,
    ):
        view = View(stream)
        view.comes_to_hold(hub, [{"v": 1}, {"v": 3}])
        run_sql(database, "ALTER TABLE bare RENAME COLUMN v TO x")
        view.comes_to_hold(hub, [{}, {}])
        run_sql(database, "INSERT INTO bare VALUES (5, 6)", "DELETE FROM bare WHERE w = 2")
        view.comes_to_hold(hub, [{}, {}])
        hub.stop()
        assert "Traceback" not in hub.log


def test_a_table_that_comes_again_is_filtered_as_before(database: Path) -> None:
    with (
        HubProcess(database) as hub,
        hub.stream("table=t,quiet&snapshot=1&filter=t.v=eq.5") as stream,
    ):
        view = View(stream)
        view.comes_to_hold(hub, [{"id": 1, "v": 5, "w": "a"}])
        run_sql(database, "DROP TABLE t")
        view.comes_to_hold(hub, [])
        # As text now, and the literal with it.
        run_sql(
            database,
            "CREATE TABLE t(v TEXT, id INTEGER PRIMARY KEY)",
            "INSERT INTO t VALUES (5, 1), (5.0, 2)",
        )
        view.comes_to_hold(hub, [{"v": "5", "id": 1}])


def test_who_resumes_behind_a_change_of_the_schema_holds_the_same(database: Path) -> None:
    with HubProcess(database) as hub:
        query = "table=t,quiet&snapshot=1&filter=t.v=eq.5"
        with hub.stream(query) as stream:
            view = View(stream)
            view.comes_to_hold(hub, [{"id": 1, "v": 5, "w": "a"}])
            last_id = stream.last_id
        run_sql(database, "INSERT INTO t VALUES (9, 5, '')", "ALTER TABLE t ADD COLUMN y DEFAULT 1")
        run_sql(database, "UPDATE t SET v = 5 WHERE id = 2", "DELETE FROM t WHERE id = 9")
        with hub.stream(query, Last_Event_ID=last_id) as stream:
            again = View(stream)
            again.rows = view.rows
            rows = [{"id": id, "v": 5, "w": "a", "y": 1} for id in (1, 2)]
            again.comes_to_hold(hub, rows)


def test_a_column_of_another_type_compares_otherwise(database: Path) -> None:
    """As numbers 100 and 50 are above 20, as text only 50 is: the row of the 100 must go."""
    run_sql(database, "INSERT INTO t VALUES (7, 100, ''), (8, 50, '')")
    with (
        HubProcess(database) as hub,
        hub.stream("table=t,quiet&snapshot=1&filter=t.v=gt.20") as stream,
    ):
        view = View(stream)
        view.comes_to_hold(hub, [{"id": 7, "v": 100, "w": ""}, {"id": 8, "v": 50, "w": ""}])
        migrate(
            hub,
            "CREATE TABLE n(id INTEGER PRIMARY KEY, v TEXT, w TEXT); INSERT INTO n SELECT * FROM t;"
            " DROP TABLE t; ALTER TABLE n RENAME TO t;",
        )
        wanted = [{"id": id, "v": v, "w": w} for id, v, w in ((1, "5", "a"), (2, "6", "a"))]
        view.comes_to_hold(hub, [*wanted, {"id": 8, "v": "50", "w": ""}])


def test_a_row_that_goes_while_its_column_gets_another_name(database: Path) -> None:
    with (
        HubProcess(database) as hub,
        hub.stream("table=t,quiet&snapshot=1&filter=t.v=in.(5,6)") as stream,
    ):
        view = View(stream)
        view.comes_to_hold(hub, [{"id": 1, "v": 5, "w": "a"}, {"id": 2, "v": 6, "w": "a"}])
        migrate(hub, "ALTER TABLE t RENAME COLUMN v TO x; DELETE FROM t WHERE id = 1;")
        view.comes_to_hold(hub, [])


def test_a_row_that_went_unseen_and_whose_key_was_used_again(database: Path) -> None:
    """Under an index that the hub has not seen, REPLACE evicts a row that no trigger looks for. The
    difference that is told later knows what the key holds by then, which the filter does not pass."""
    run_sql(database, "DELETE FROM t", "INSERT INTO t VALUES (1, 5, 'a'), (2, 6, 'b')")
    with (
        HubProcess(database) as hub,
        hub.stream("table=t,quiet&snapshot=1&filter=t.v=in.(5,6)") as stream,
    ):
        # Without one every difference is a reset.
        wait_for(lambda: hub.status()["log"]["baseLsn"] is not None, "a base snapshot")
        view = View(stream)
        view.comes_to_hold(hub, [{"id": 1, "v": 5, "w": "a"}, {"id": 2, "v": 6, "w": "b"}])
        hub.process.send_signal(signal.SIGSTOP)
        run_sql(
            database,
            "CREATE UNIQUE INDEX one_w ON t(w)",
            "INSERT OR REPLACE INTO t VALUES (4, 9, 'a')",
            "INSERT INTO t VALUES (1, 9, 'z')",
        )
        hub.process.send_signal(signal.SIGCONT)
        view.comes_to_hold(hub, [{"id": 2, "v": 6, "w": "b"}])
