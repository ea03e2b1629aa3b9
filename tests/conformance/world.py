"""One program in one world: a captured source, its uncaptured twin, the hub, and subscribers.

What must hold, program by program:

- the twin, which has other triggers, shows the same results, errors, changes() and
  last_insert_rowid() after each statement, and the same rows;
- the log has no hole; transactions are contiguous, whole, and end where commits did;
- every subscriber, however it began and wherever it stopped, holds exactly the rows, or exactly the
  rows of its room or filter, byte for byte and type for type;
- the rows fit into an empty database made of the log's own account of the table;
- the preupdate hook saw the same changes, commit by commit.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import apsw

from cdchub.capture.choice import Choice, TableChoice
from cdchub.capture.driver import Driver
from cdchub.capture.table import Shape
from cdchub.catalog import Selection
from cdchub.log import LogReader
from cdchub.log.protocol import Cursor
from loadtest.rows import Rows, Table, from_wire, key_from_wire
from tests.conformance.checks import check_transactions, check_updates, compare
from tests.conformance.filters import expected_rows, random_selection
from tests.conformance.hubs import FileHub, Hub, Logs, MemoryHub, head_of
from tests.conformance.older import OlderSqlite
from tests.conformance.programs import BASE, CHECK, JOIN, LOOK, PRUNE, READ, Program, name_of
from tests.conformance.rivals import AfterTriggers, HookOracle, disagreements
from tests.conformance.subscribers import Subscriber
from tests.conformance.tables import read_exact, read_table, rebuilt, rowid_name


@dataclass
class Tally:
    """What was covered. `missed` counts programs that plain AFTER triggers would have got wrong, of
    those (`rivalled`) that keep their schema; `hooked` those that the preupdate hook could judge."""

    programs: int = 0
    statements: int = 0
    refused: int = 0
    changes: int = 0
    subscribers: int = 0
    resumes: int = 0
    breaks: int = 0
    on_file: int = 0
    migrating: int = 0
    hooked: int = 0
    rivalled: int = 0
    missed: int = 0

    def add(self, other: Tally) -> None:
        for each in fields(Tally):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


_Typed = tuple[str, Any]


def run(program: Program, logs: Logs) -> Tally:
    """Runs a program. Raises AssertionError where something doesn't hold."""
    with _world(program, logs) as world:
        for step in program.steps:
            world.step(step)
        return world.finish()


@contextmanager
def _world(program: Program, logs: Logs) -> Iterator[_World]:
    with ExitStack() as stack:
        yield _World(program, logs, stack)


class _World:
    def __init__(self, program: Program, logs: Logs, stack: ExitStack) -> None:
        self._program = program
        self._rng = random.Random(program.seed)
        self._tally = Tally(programs=1, on_file=program.on_file, migrating=program.migrates)
        self._stack = stack
        self._table = name_of(program.case)
        self._older = stack.enter_context(OlderSqlite()) if program.library == "older" else None
        self._plain = self._opened(":memory:")
        self._hub = self._make_hub(logs)
        self._captured = self._hub.writer
        for sql in (f"PRAGMA encoding = '{program.encoding}'", *program.case.create):
            self._both(sql)
        how = TableChoice(self._table, room=program.room, grade=program.grade)
        self._hub.install(Choice(rooms=(how,)))
        self._shape = self._shape_of(self._table)
        self._rivals: dict[str, AfterTriggers] = {}
        self._twin()
        for sql in program.case.late:
            self._both(sql)
        for name, on in (
            ("recursive_triggers", program.recursive_triggers),
            ("foreign_keys", program.foreign_keys),
        ):
            self._both(f"PRAGMA {name} = {int(on)}")
        self._both("CREATE TEMP TABLE first(a)")
        self._level()
        # A user's trigger that is newer than ours is a schema change too.
        self._hub.look()
        self._start = self._present(self._plain)
        self._hook = self._hooked()
        self._subscribers: list[Subscriber] = []
        self._everything = self._subscribe("everything", Selection(None))
        self._everything.begin_with_base()
        if program.room is not None:
            self._subscribe("a room", self._room()).begin_with_base()
        self._subscribe("a filter", self._filter()).begin_with_base()

    # Making it.

    def _opened(self, path: str) -> Any:
        connection = self._connect(path)
        self._stack.callback(connection.close)
        return connection

    def _connect(self, path: str) -> Any:
        if self._older is not None:
            return self._older.connect(path)
        if self._program.library == "apsw":
            return apsw.Connection(path)
        return sqlite3.connect(path, isolation_level=None)

    def _make_hub(self, logs: Logs) -> Hub:
        hub: Hub
        if self._program.on_file:
            path = logs.new_folder() / "source.db"
            writer = self._opened(str(path))
            # A database that is there has its encoding.
            writer.execute(f"PRAGMA encoding = '{self._program.encoding}'")
            list(writer.execute("PRAGMA journal_mode = WAL"))
            writer.execute("PRAGMA synchronous = OFF")
            library = Driver.SQLITE3 if self._program.library == "sqlite3" else Driver.APSW
            hub = FileHub(library, path, writer, self._rng)
        else:
            hub = MemoryHub(self._program.library, logs, self._rng)
        self._stack.callback(hub.close)
        return hub

    def _hooked(self) -> HookOracle | None:
        program, shape = self._program, self._shape
        broken_text = any("AS TEXT)" in step for step in program.steps)
        if program.library != "apsw" or program.migrates or broken_text or not HookOracle.fits(shape):
            return None
        hook = HookOracle(self._captured, shape)
        self._stack.callback(hook.close)
        return hook

    def _subscribe(self, name: str, selection: Selection) -> Subscriber:
        subscriber = Subscriber(name, self._hub, selection, self._rng)
        self._stack.callback(subscriber.close)
        self._subscribers.append(subscriber)
        return subscriber

    def _room(self) -> Selection:
        # With other tables or without: the log narrows by room where it is one table alone.
        tables = None if self._rng.random() < 0.3 else (self._table,)
        return Selection(tables, self._program.follows)

    def _filter(self) -> Selection:
        catalog = self._hub.catalog()
        if not catalog.tables:
            return Selection(None)
        info = self._rng.choice(
            [each for each in catalog.tables if each.name == self._table] or catalog.tables
        )
        room = self._program.follows if self._rng.random() < 0.3 else None
        return random_selection(self._rng, catalog, info, room=room, encoding=self._program.encoding)

    def _twin(self) -> None:
        """Gives every captured table of the twin triggers, too."""
        for rival in self._rivals.values():
            rival.remove()
        self._rivals = {
            shape.name: AfterTriggers(self._plain, shape, f"sink_{number}")
            for number, shape in enumerate(self._shapes())
        }

    def _shapes(self) -> list[Shape]:
        captured = self._hub.captured
        return [captured.shapes[table_id] for table_id in captured.active]

    def _shape_of(self, table: str) -> Shape:
        return next(shape for shape in self._shapes() if shape.name == table)

    # Stepping.

    def step(self, step: str) -> None:
        match step:
            case _ if step == LOOK:
                self._look()
            case _ if step == READ:
                self._tally.resumes += 1
                self._rng.choice(self._subscribers).go_on(self._rng.choice([1, 1, 2, 5]))
            case _ if step == BASE:
                self._hub.take_base()
                self._level()
            case _ if step == PRUNE:
                self._hub.prune()
                self._level()
            case _ if step == JOIN:
                self._join()
            case _ if step == CHECK:
                self._check()
            case _:
                self._statement(step)

    def _statement(self, sql: str) -> None:
        self._tally.statements += 1
        mark = self._hook.before() if self._hook is not None else 0
        result = self._outcome(self._captured, sql)
        in_transaction = bool(self._captured.in_transaction)
        head = 0 if in_transaction else self._committed()
        if self._hook is not None:
            failed = isinstance(result, str)
            self._hook.after(sql, mark, failed=failed, in_transaction=in_transaction, head=head)
        self._tally.refused += isinstance(result, str)
        plain = self._outcome(self._plain, sql)
        assert result == plain, f"capture changed what this does: {sql}\n{result}\n{plain}"
        if sql == "VACUUM":
            # It copies all there is, and with capture that is more.
            self._level()
        counts = "SELECT changes(), last_insert_rowid()"
        captured, plain = (list(db.execute(counts)) for db in (self._captured, self._plain))
        assert captured == plain, f"capture changed changes() or last_insert_rowid(): {sql}"

    def _outcome(self, db: Any, sql: str) -> str | list[Any]:
        try:
            return [tuple(row) for row in db.execute(sql)]
        except (sqlite3.Error, apsw.Error) as error:
            return str(error)

    def _both(self, sql: str) -> None:
        for db in (self._captured, self._plain):
            list(db.execute(sql))

    def _level(self) -> None:
        """From here on changes() and last_insert_rowid() are alike again."""
        self._both("INSERT INTO temp.first VALUES (1)")

    def _committed(self) -> int:
        """Notes where a commit ended. Returns the head."""
        head = head_of(self._captured)
        if head > (self._hub.ends[-1] if self._hub.ends else 0):
            self._hub.ends.append(head)
        return head

    def _look(self) -> None:
        if self._program.migrates and self._captured.in_transaction:
            # Mending capture takes the write lock, and a writer in memory can't give it.
            return
        self._hub.look()
        if not self._captured.in_transaction:
            self._committed()
            if self._program.migrates:
                self._twin()
        self._level()

    def _end(self) -> None:
        for sql in ("COMMIT", "ROLLBACK"):
            if self._captured.in_transaction:
                self._statement(sql)

    def _join(self) -> None:
        self._end()
        self._look()
        draw = self._rng.random()
        selection = self._filter() if draw < 0.4 else Selection(None)
        if draw > 0.7 and self._program.room:
            selection = self._room()
        subscriber = self._subscribe("one that came later", selection)
        if self._rng.random() < 0.5:
            subscriber.begin_with_snapshot()
        else:
            subscriber.begin_with_base()
        self._level()

    # Judging.

    def _check(self) -> None:
        self._end()
        self._look()
        present = self._present(self._captured)
        for shape in self._shapes():
            rows = [
                read_exact(db, shape.name, shape.captured, rowid_name(shape))
                for db in (self._captured, self._plain)
            ]
            assert rows[0] == rows[1], f"capture changed {shape.name}: {rows[0]} and not {rows[1]}"
        for subscriber in self._subscribers:
            subscriber.go_on()
            compare(subscriber.name, subscriber.held(), self._expected(subscriber, present))
        self._level()

    def _present(self, db: Any) -> Rows:
        return {shape.name: rows for shape in self._shapes() if (rows := read_table(db, shape))}

    def _expected(self, subscriber: Subscriber, present: Rows) -> Rows:
        """SQLite decides what is in a room or a filter."""
        selection = subscriber.selection
        found: Rows = {}
        for shape in self._shapes():
            if selection.tables is not None and shape.name not in selection.tables:
                continue
            present_rows = present.get(shape.name, {})
            rows = expected_rows(self._captured, selection, shape, present_rows)
            if rows:
                found[shape.name] = rows
        return found

    def finish(self) -> Tally:
        """What holds at the end of the whole program."""
        everything = self._everything
        for subscriber in self._subscribers:
            check_updates(subscriber)
        check_transactions(everything, self._hub.ends)
        self._check_replica(everything.held())
        tally = self._tally
        tally.changes = len(everything.changes)
        tally.breaks = sum(entry.type.name == "BREAK" for entry in everything.entries)
        tally.subscribers = len(self._subscribers)
        if self._hook is not None and not self._hook.blind:
            tally.hooked = 1
            self._check_hook(self._hook)
        if not self._program.migrates:
            tally.rivalled = 1
            tally.missed = self._rivals_miss()
        return tally

    def _check_replica(self, held: Rows) -> None:
        """The log's own replay, and the way through an empty database."""
        reader = LogReader(self._hub.log_path)
        try:
            head = reader.state().by_number(self._hub.epoch)
            assert head is not None
            replica = reader.replica(Cursor(self._hub.epoch, head.head_lsn))
        finally:
            reader.close()
        assert replica is not None
        try:
            for table, schema in replica.schemas.items():
                rows: Table = {}
                for key, row in replica.rows(table):
                    values = {name: from_wire(value) for name, value in json.loads(row).items()}
                    rows[key_from_wire(json.loads(key))] = values
                compare("the log's replay", {table: rows}, {table: held.get(table, {})})
                with closing(self._connect(":memory:")) as empty:
                    empty.execute(f"PRAGMA encoding = '{self._program.encoding}'")
                    again = rebuilt(empty, schema, self._indexes(table), rows)
                compare("an empty database", {table: again}, {table: rows})
        finally:
            replica.close()

    def _indexes(self, table: str) -> list[str]:
        found = self._captured.execute(
            "SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql NOT NULL AND tbl_name = ?",
            (table,),
        )
        return [sql for (sql,) in found]

    def _check_hook(self, hook: HookOracle) -> None:
        changes = []
        for change in self._everything.changes:
            if change["table"] == self._table:
                new = change["newValue"]
                row = None if new is None else {name: from_wire(value) for name, value in new.items()}
                changes.append((change["lsn"], key_from_wire(change["key"]), row))
        found = disagreements(self._start.get(self._table, {}), hook.commits, changes)
        assert not found, "the preupdate hook saw otherwise:\n" + "\n".join(found)

    def _rivals_miss(self) -> int:
        present = self._present(self._plain)
        for table, rival in self._rivals.items():
            if rival.replayed(self._start.get(table, {})) != present.get(table, {}):
                return 1
        return 0
