"""A feed: the subscribers that receive the same bytes, and which entries concern them.

One evaluator decides for the live path, the ring and the log alike whether an entry matches; the
log's SQL only narrows. A row that an UPDATE moves into the room arrives as INSERT, one that it moves
out as DELETE, and a DELETE is judged by the old row, so a room's view is always complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cdchub.catalog import Catalog, Selection
from cdchub.change import NOTES, ChangeType, Entry, SqliteValue, moved_in, moved_out
from cdchub.log.protocol import Narrowing
from cdchub.position import Position


class Framer(Protocol):
    """What a transport makes of changes and notices: bytes that any of its subscribers can share.

    Framers are compared by identity: one object a wire format.
    """

    def change(self, position: Position, data: bytes) -> bytes: ...

    def change_without_position(self, data: bytes) -> bytes:
        """A change inside a stretch in which the reader has no position yet."""
        ...

    def opening(self, position: Position | None, *, retry_ms: int) -> bytes: ...

    def heartbeat(self, position: Position | None) -> bytes: ...

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


class Matcher:
    """Which entries a selection covers, and in which form. Rebuilt when the catalog changes."""

    def __init__(self, selection: Selection, catalog: Catalog) -> None:
        self.selection = selection
        self._tables = None if selection.tables is None else frozenset(selection.tables)
        self._rooms: dict[str, SqliteValue] = catalog.rooms(selection)

    def covers(self, table: str) -> bool:
        return self._tables is None or table in self._tables

    def data(self, entry: Entry) -> bytes | None:
        """The change as this selection sees it, or None where it doesn't see it, and for notes."""
        if entry.type in NOTES or not self.covers(entry.table):
            return None
        room: SqliteValue
        if entry.table in self._rooms:
            room = self._rooms[entry.table]
        elif self.selection.room is None or entry.room_old is entry.room_new is None:
            return entry.data
        else:
            # A table that has a room column no longer; its older rows were in rooms.
            room = self.selection.room
            if room not in (str(entry.room_old), str(entry.room_new)):
                return None
            room = entry.room_old if str(entry.room_old) == room else entry.room_new
        # NULL is in no room: it equals nothing (INTERFACE §3, "Filters").
        was = entry.room_old is not None and entry.room_old == room
        now = entry.room_new is not None and entry.room_new == room
        if entry.type is not ChangeType.UPDATE:
            return entry.data if was or now else None
        if was and now:
            return entry.data
        if now:
            return moved_in(entry.data)
        return moved_out(entry.data) if was else None

    def narrowing(self) -> Narrowing:
        """What a page from the log may leave out for this selection."""
        tables = self.selection.tables
        room = None if tables is None or len(tables) != 1 else self._rooms.get(tables[0])
        return Narrowing(tables, room)


class Feed:
    """One matcher and one framer: everything that its subscribers have in common."""

    def __init__(self, selection: Selection, catalog: Catalog, framer: Framer) -> None:
        self.selection = selection
        self.framer = framer
        self.matcher = Matcher(selection, catalog)
        self.members = 0

    def recatalog(self, catalog: Catalog) -> None:
        self.matcher = Matcher(self.selection, catalog)

    def frames(self, entries: Iterable[Entry], frame: EntryFramer) -> bytes:
        """The matching entries as one run of bytes, which may be empty."""
        parts = []
        for entry in entries:
            data = self.matcher.data(entry)
            if data is not None:
                parts.append(frame(self.framer, entry, data))
        return b"".join(parts)


class EntryFramer(Protocol):
    """Frames one entry's data; the core's keeps what it has framed for the next feed."""

    def __call__(self, framer: Framer, entry: Entry, data: bytes, /) -> bytes: ...


class FrameOnce:
    """Frames each entry once for all feeds of a framer, as long as one round of writes lasts."""

    def __init__(self, position_of: PositionOf) -> None:
        self._position_of = position_of
        self._made: dict[tuple[int, int], bytes] = {}

    def __call__(self, framer: Framer, entry: Entry, data: bytes) -> bytes:
        if data is not entry.data:
            return framer.change(self._position_of(entry.lsn), data)
        key = (id(framer), entry.lsn)
        frame = self._made.get(key)
        if frame is None:
            frame = self._made[key] = framer.change(self._position_of(entry.lsn), data)
        return frame


class PositionOf(Protocol):
    def __call__(self, lsn: int, /) -> Position: ...
