"""A hub on a database whose schema is changed, and a reader that applies what the hub tells."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.harness import HubProcess, Stream, cdchub, wait_for, write_without_triggers

Table = dict[str, dict[str, Any]]


class World:
    """A hub on a database, and what is done to it."""

    def __init__(self, hub: HubProcess, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    @property
    def database(self) -> Path:
        return self.hub.database

    def read(self, sql: str, *parameters: object) -> list[Any]:
        with closing(sqlite3.connect(self.database, timeout=30)) as db:
            return db.execute(sql, parameters).fetchall()

    def write(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.database, timeout=30, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    def settle(self) -> None:
        """Waits until the hub has looked at the schema as it is now, and its log has every change."""
        noted = (
            "SELECT (SELECT value FROM _cdchub_meta WHERE key = 'schema_version')"
            " = CAST((SELECT schema_version FROM pragma_schema_version) AS TEXT)"
        )
        wait_for(lambda: self.read(noted) == [(1,)], "the hub to have looked at the schema")
        self.hub.wait_for_lsn(
            self.read("SELECT seq FROM sqlite_sequence WHERE name = '_cdchub_outbox'")[0][0]
        )

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """The hub sees nothing of this before its end."""
        os.kill(self.hub.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.hub.pid, signal.SIGCONT)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        assert self.hub.stop() == 0
        try:
            yield
        finally:
            self.hub.start()

    def migrate(self, script: str) -> None:
        file = self.folder / "migration.sql"
        file.write_text(script)
        done = cdchub("migrate", self.database, file)
        assert done.returncode == 0, done.stderr

    def capture_triggers(self, table: str) -> list[str]:
        sql = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?"
        return [name for (name,) in self.read(sql, table) if name.startswith("_cdchub_")]

    def bypass(self, *statements: str) -> None:
        write_without_triggers(self.database, *statements)

    def tables(self) -> dict[str, Table]:
        """All user tables as they are: rows by key, both as a change has them."""
        keys = {t["table"]: t["key"] for t in self.hub.get("/cdc/tables").json()}
        found: dict[str, Table] = {}
        with closing(sqlite3.connect(self.database, timeout=30)) as db:
            db.row_factory = sqlite3.Row
            for name, key in keys.items():
                found[name] = {}
                rowid = "rowid AS _rowid, " if key == ["rowid"] else ""
                for values in db.execute(f"SELECT {rowid}* FROM {name}"):
                    row = dict(values)
                    number = row.pop("_rowid", None)
                    wire = {"rowid": number} if rowid else {column: row[column] for column in key}
                    found[name][json.dumps(wire)] = row
        return {name: rows for name, rows in found.items() if rows and name != "mark"}


class Follower:
    """Applies a stream by key, and counts what it was sent."""

    def __init__(self, stream: Stream, model: dict[str, Table] | None = None) -> None:
        self.stream = stream
        self.model = {table: dict(rows) for table, rows in (model or {}).items()}
        # By table.
        self.sent: Counter[tuple[str, str]] = Counter()
        # False between a reset and the end of the snapshot that follows it.
        self.whole = True

    def until_mark(self, number: int) -> None:
        mark = {"id": 1, "n": number}
        while not self.whole or self.model.get("mark", {}).get('{"id": 1}') != mark:
            self.step()

    def until_caught_up(self) -> None:
        while self.step() != "caught-up":
            pass
        self.sent.clear()

    def step(self) -> str:
        """Takes in the next event and returns its name."""
        event = self.stream.next()
        if event.name == "message":
            self._apply(json.loads(event.data))
        elif event.name in ("reset", "snapshot"):
            tables = json.loads(event.data)["tables"]
            for table in tables:
                self.model.pop(table, None)
                if event.name == "reset":
                    self.sent[table, "reset"] += 1
        self.whole = event.name == "caught-up" or (self.whole and event.name != "reset")
        return event.name

    def _apply(self, change: dict[str, Any]) -> None:
        table, key = change["table"], json.dumps(change["key"])
        if change["newValue"] is None:
            self.model.get(table, {}).pop(key, None)
        else:
            self.model.setdefault(table, {})[key] = change["newValue"]
        if table != "mark" and change["type"] != "SNAPSHOT":
            self.sent[table, change["type"]] += 1

    def tables(self) -> dict[str, Table]:
        return {name: rows for name, rows in self.model.items() if rows and name != "mark"}
