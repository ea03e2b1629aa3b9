"""A feed: the subscribers that receive the same bytes, and which entries concern them.

One evaluator decides for the live path, the ring and the log alike whether an entry matches; the
log's SQL only narrows. A row that an UPDATE moves into the room or the filter arrives as INSERT, one
that it moves out as DELETE, and a DELETE is judged by the old row, so a view is always complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdchub.catalog import Catalog, Selection, Tests
from cdchub.change import (
    NOTES,
    ChangeType,
    Entry,
    SqliteValue,
    WireRow,
    both_rows,
    from_wire,
    new_value,
    rewritten,
)
from cdchub.fanout.encoding import Format, encode
from cdchub.fanout.subscriber import Subscriber
from cdchub.filter import Operator, literals
from cdchub.log.protocol import Narrowing
from cdchub.position import Epoch, Position

# An LSN and the change as JSON.
Item = tuple[int, bytes]


class Framer(Protocol):
    """What a transport makes of changes and notices: bytes that any of its subscribers can share.

    Framers are compared by identity: one object a wire format.
    """

    def changes(self, epoch: Epoch, items: Iterable[Item]) -> list[bytes]:
        """One frame a change."""
        ...

    def changes_without_position(self, changes: Iterable[bytes]) -> bytes:
        """Changes inside a stretch in which the reader has no position yet."""
        ...

    def opening(self, position: Position | None, *, retry_ms: int) -> bytes: ...

    def heartbeat(self, position: Position | None) -> bytes: ...

    def transaction_end(self, position: Position) -> bytes:
        """To a reader that doesn't see the transaction's last change."""
        ...

    def caught_up(self, position: Position) -> bytes: ...

    def reset(
        self,
        *,
        reason: str,
        tables: Iterable[str],
        position: Position,
        oldest: Position,
        resumable: bool,
    ) -> bytes:
        """`resumable`: the reader goes on from `position`; otherwise a snapshot follows."""
        ...

    def snapshot_begin(self, position: Position, tables: Iterable[str]) -> bytes: ...

    def snapshot_rows(self, lines: bytes) -> bytes:
        """Frames whole lines, each a SNAPSHOT change and a line feed."""
        ...

    def snapshot_end(self, position: Position) -> bytes: ...

    def closing(self, position: Position | None, *, retry_ms: int) -> bytes: ...

    def fault(self, *, code: str, message: str, retry_ms: int) -> bytes: ...


class EntryRows:
    """An entry and its rows, decoded once for all feeds that ask for them."""

    __slots__ = ("_rows", "entry")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._rows: tuple[WireRow | None, WireRow | None] | None = None

    def rows(self) -> tuple[WireRow | None, WireRow | None]:
        """The row before and after, as on the wire."""
        if self._rows is None:
            self._rows = both_rows(self.entry.data)
        return self._rows


@dataclass(frozen=True, slots=True)
class Whole:
    """Every change of the table, as it is."""


@dataclass(frozen=True, slots=True)
class Every:
    """Any change of the table may match."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Only a change whose row holds one of these in `column` before or after it can match; None is
    the room column, whatever its name."""

    column: str | None
    values: tuple[SqliteValue, ...]


# What an index can know of a feed without evaluating it.
IndexKey = Whole | Every | Holding


class _TableView:
    """One table as a selection sees it."""

    def __init__(
        self,
        room: SqliteValue,
        tests: Tests,
        former: Sequence[tuple[tuple[str, ...], Tests]],
        columns: frozenset[str] | None,
        key: IndexKey,
    ) -> None:
        """`room` is None where the table is sent whole as far as rooms go. `former` are the tests of
        the table's older shapes, by the names of their columns."""
        self._room = room
        self._tests = tests
        self._former = former
        self._columns = columns
        self.key = key

    def data(self, change: EntryRows) -> bytes | None:
        entry = change.entry
        was, now = self._matches(change)
        seen = _seen_as(entry.type, was=was, now=now)
        if seen is None:
            return None
        if seen is entry.type and self._columns is None:
            return entry.data
        return rewritten(entry.data, seen, self._columns)

    def _matches(self, change: EntryRows) -> tuple[bool, bool]:
        was = now = True
        room = self._room
        if room is not None:
            # NULL is in no room: it equals nothing (INTERFACE §3, "Filters").
            entry = change.entry
            was = entry.room_old is not None and entry.room_old == room
            now = entry.room_new is not None and entry.room_new == room
        if self._tests and (was or now):
            old, new = change.rows()
            # Where nobody knows the old row, it may have matched: a DELETE too many does no harm.
            was = was and (old is None or self._held(old))
            now = now and new is not None and _hold(self._tests, new)
        return was, now

    def _held(self, row: WireRow) -> bool:
        """Whether a row was in the view that is none of the present shape, maybe: the change that
        brings it into that shape tells it as the older one had it."""
        if _hold(self._tests, row):
            return True
        if not self._former:
            return False
        names = tuple(row)
        return any(_hold(tests, row) for columns, tests in self._former if columns == names)


def _hold(tests: Tests, row: WireRow) -> bool:
    return all(test(from_wire(row.get(name))) for name, test in tests)


def _seen_as(type: ChangeType, *, was: bool, now: bool) -> ChangeType | None:
    """What a change is to a view that its row was in before, and is in now."""
    if type is ChangeType.UPDATE:
        if was and now:
            return type
        if now:
            return ChangeType.INSERT
        return ChangeType.DELETE if was else None
    return type if (was if type is ChangeType.DELETE else now) else None


class Matcher:
    """Which entries a selection covers, and in which form. Rebuilt when the catalog changes."""

    def __init__(self, selection: Selection, catalog: Catalog) -> None:
        self.selection = selection
        self._catalog = catalog
        self._tables = None if selection.tables is None else frozenset(selection.tables)
        self._rooms: dict[str, SqliteValue] = catalog.rooms(selection)
        self._room_columns = catalog.room_columns(selection)
        self._views: dict[str, _TableView] = {}

    def covers(self, table: str) -> bool:
        return self._tables is None or table in self._tables

    def key(self, table: str) -> IndexKey | None:
        """What an index can know of this selection's changes of a table; None where it has none."""
        return self._view(table).key if self.covers(table) else None

    def data(self, change: EntryRows) -> bytes | None:
        """The change as this selection sees it, or None where it doesn't see it, and for notes."""
        entry = change.entry
        if entry.type in NOTES or not self.covers(entry.table):
            return None
        room = self.selection.room
        if room is None or entry.table in self._rooms or entry.room_old is entry.room_new is None:
            return self._view(entry.table).data(change)
        # A table that has a room column no longer; its older rows were in rooms.
        if room not in (str(entry.room_old), str(entry.room_new)):
            return None
        value = entry.room_old if str(entry.room_old) == room else entry.room_new
        return self._make_view(entry.table, value).data(change)

    def snapshot_row(self, table: str, line: bytes) -> bytes | None:
        """A row of a table, as a SNAPSHOT change, as this selection sees it."""
        room = None
        if table in self._room_columns:
            column, _ = self._room_columns[table]
            room = new_value(line, column)
        return self._view(table).data(EntryRows(Entry(0, ChangeType.SNAPSHOT, table, None, room, line)))

    def items(self, entries: Iterable[Entry]) -> list[Item]:
        """The matching ones, by LSN."""
        return [
            (entry.lsn, data) for entry in entries if (data := self.data(EntryRows(entry))) is not None
        ]

    def narrowing(self) -> Narrowing:
        """What a page from the log may leave out for this selection."""
        tables = self.selection.tables
        room = None if tables is None or len(tables) != 1 else self._rooms.get(tables[0])
        return Narrowing(tables, room)

    def _view(self, table: str) -> _TableView:
        view = self._views.get(table)
        if view is None:
            view = self._views[table] = self._make_view(table, self._rooms.get(table))
        return view

    def _make_view(self, table: str, room: SqliteValue) -> _TableView:
        tests = self._catalog.tests(self.selection, table)
        held: Holding | None = None if room is None else Holding(None, (room,))
        for condition, convert in self._catalog.bound(self.selection, table):
            if held is None and condition.operator in (Operator.EQ, Operator.IN):
                former = self._catalog.former_literals(condition)
                held = Holding(condition.column, (*literals(condition, convert), *former))
        columns = self._catalog.columns_of(self.selection, table)
        sees_rooms = self.selection.room is not None and room is None
        key: IndexKey = held or (Every() if tests or columns is not None or sees_rooms else Whole())
        return _TableView(room, tests, self._catalog.former_tests(self.selection, table), columns, key)


class Feed:
    """A selection in one format on one wire, and its live subscribers."""

    def __init__(
        self,
        selection: Selection,
        catalog: Catalog,
        framer: Framer,
        format: Format = Format.CDCHUB,
    ) -> None:
        self.selection = selection
        self.framer = framer
        self.format = format
        self.matcher = Matcher(selection, catalog)
        self.members = 0
        # By subscriber, in the order in which they came, what writes to its transport.
        self.live: dict[Subscriber, Callable[[bytes], None]] = {}

    def recatalog(self, catalog: Catalog) -> None:
        self.matcher = Matcher(self.selection, catalog)

    def frames(self, epoch: Epoch, items: Iterable[Item]) -> list[bytes]:
        """What its subscribers receive of changes that match, a frame each."""
        if self.format is not Format.CDCHUB:
            items = [(lsn, encode(self.format, epoch, data)) for lsn, data in items]
        return self.framer.changes(epoch, items)

    def snapshot_rows(self, epoch: Epoch, lines: bytes) -> bytes:
        """Whole lines of a snapshot, framed."""
        if self.format is not Format.CDCHUB:
            lines = b"".join(
                encode(self.format, epoch, line) + b"\n" for line in lines[:-1].split(b"\n")
            )
        return self.framer.snapshot_rows(lines)

    def changes_without_position(self, epoch: Epoch, changes: Sequence[bytes]) -> bytes:
        if self.format is not Format.CDCHUB:
            changes = [encode(self.format, epoch, data) for data in changes]
        return self.framer.changes_without_position(changes)
