"""Chat messages: rows of the table `messages`, written in one commit each.

They come back through capture like every other change. The log knows their order and their LSNs; what
they say now, and those that are older than the log, the table knows.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from cdchub.catalog import Catalog, Selection, TableInfo
from cdchub.change import ChangeType, Entry
from cdchub.errors import Conflict, RoomsUnavailable, Timeout, UnknownTable
from cdchub.fanout import Gone, Present
from cdchub.log.protocol import Cursor, Narrowing
from cdchub.writing import SourceWriter
from cdchub.ws.frames import ChatMessage, decode_change, message_of

TABLE = "messages"
COLUMNS = ("id", "room", "user_id", "content", "created_at")
_ROW = ("rowid", *COLUMNS)
_OF_ROOM = f"FROM {TABLE} WHERE room = ?"
_LISTED = "(SELECT value FROM json_each(?))"
# Rooms of which it is known which messages moved into them; the others are looked through again.
_MOVES_KNOWN_MAX = 1_000
_SHAPE = f"{TABLE}(id TEXT PRIMARY KEY, room TEXT, user_id TEXT, content TEXT, created_at INTEGER)"
SCHEMA = f"CREATE TABLE IF NOT EXISTS {_SHAPE}"
# LSNs that are looked through at first, backwards; each further look goes back four times as far.
_LOOK_LSNS = 1_000
# Entries that one look may find; with more of them it is cut to an eighth.
_LOOK_ENTRIES_MAX = 4_000
_PAGE_BYTES = 2**20
# A history is written at once, and whoever asked may not read it.
_HISTORY_BYTES_MAX = 256 * 2**10


@dataclass(frozen=True, slots=True)
class Stored:
    message_id: str
    lsn: int
    duplicate: bool


@dataclass(slots=True)
class _Moves:
    """By message, the LSN at which it came into a room from another one, as far as `upto`."""

    upto: Cursor
    lsns: dict[str, int]


class Messages:
    def __init__(self, writer: SourceWriter, present: Present, *, work_s_max: float) -> None:
        self._writer = writer
        self._present = present
        self._work_s_max = work_s_max
        # The catalog for which the table was found to be fit.
        self._checked: Catalog | None = None
        self._moves: dict[str, _Moves] = {}

    async def check(self) -> None:
        """Raises `RoomsUnavailable` where there is no table `messages` of the right shape."""
        catalog = self._present.catalog
        if catalog is self._checked:
            return
        try:
            table = catalog.find(TABLE)
        except UnknownTable:
            raise RoomsUnavailable(
                "this database has no captured table called messages; `cdchub serve --rooms` creates it"
            ) from None
        if not _fits(table) or await self._writer.query(
            f"SELECT 1 FROM pragma_table_list('{TABLE}') WHERE schema = 'main' AND wr"
        ):
            raise RoomsUnavailable(f"rooms need another shape of the table messages: {_SHAPE}")
        self._checked = catalog

    def selection(self, room: str) -> Selection:
        return self._present.catalog.select((TABLE,), room)

    async def add(self, user_id: str, room: str, content: str, message_id: str | None) -> Stored:
        """Stores a message once. Raises `Conflict` where the id is another message's."""
        await self.check()
        message_id = message_id or str(uuid.uuid4())
        async with self._writer.transaction() as tx:
            added = await tx.execute(
                f"INSERT INTO {TABLE}({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT(id) DO NOTHING RETURNING id",
                (message_id, room, user_id, content, time.time_ns() // 1_000_000),
            )
            if added:
                return Stored(message_id, await tx.lsn_of(TABLE) or 0, duplicate=False)
            newest = await tx.lsn_of(TABLE) or 0
            known = await tx.execute(f"SELECT user_id, room FROM {TABLE} WHERE id = ?", (message_id,))
        if known != [(user_id, room)]:
            raise Conflict(f"the messageId {message_id!r} is another message's")
        async with self._bounded():
            # Sent again at once, it may not be in the log yet.
            while self._present.cursor.lsn < newest:
                await self._present.moved()
            lsn = await self._lsn_of(room, message_id)
        return Stored(message_id, lsn, duplicate=True)

    async def history(
        self, room: str, *, upto: int, limit: int, before_id: str | None = None
    ) -> tuple[list[ChatMessage], bool]:
        """The last `limit` messages up to LSN `upto`, newest last; and whether there are older ones.
        There are fewer than `limit` where they would have more than 256 KiB.

        `before_id`: the message whose LSN follows `upto`; it is needed where that is 0.
        """
        await self.check()
        async with self._bounded():
            found, oldest_row = await self._logged(room, upto, limit + 1)
            if oldest_row is None and before_id is not None:
                rows = await self._writer.query(
                    f"SELECT rowid {_OF_ROOM} AND id = ?", (room, before_id)
                )
                oldest_row = rows[0][0] if rows else None
            if oldest_row is None:
                oldest_row = await self._first_row_after(room, upto)
            if len(found) <= limit:
                # Rows are numbered in the order in which they came: these were there before the log.
                moved = json.dumps(await self._moved_in(room))
                rows = await self._writer.query_exact(
                    _ROW,
                    f"{_OF_ROOM} AND rowid < ? AND id NOT IN {_LISTED} ORDER BY rowid DESC LIMIT ?",
                    (room, oldest_row, moved, limit + 1 - len(found)),
                )
                found += [message_of(row[1:], 0) for row in rows]
        told = _first_bytes(found[:limit])
        return told[::-1], len(found) > len(told)

    async def _logged(self, room: str, upto: int, limit: int) -> tuple[list[ChatMessage], int | None]:
        """Messages whose insertion the log has, newest first; and the rowid of the oldest."""
        found: list[ChatMessage] = []
        seen: set[str] = set()
        oldest_row: int | None = None
        async for part in self._backwards(room, upto):
            lsns = {i: lsn for i, lsn, _ in reversed(part) if i not in seen}
            # A message that came from another room has a number from long ago.
            moved = {i for i, _, is_new in part if not is_new}
            seen.update(lsns)
            rows = await self._writer.query_exact(
                _ROW, f"{_OF_ROOM} AND id IN {_LISTED}", (room, json.dumps([*lsns]))
            )
            told = [(lsns[row[1]], row) for row in rows]
            told.sort(key=lambda each: -each[0])
            for lsn, row in told[: limit - len(found)]:
                found.append(message_of(row[1:], lsn))
                if row[1] not in moved:
                    oldest_row = row[0] if oldest_row is None else min(oldest_row, row[0])
            if len(found) >= limit:
                break
        return found, oldest_row

    async def _moved_in(self, room: str) -> list[str]:
        """The messages that came from other rooms, as far as the log has that."""
        present = self._present
        epoch, upto = present.cursor.epoch, present.cursor.lsn
        known = self._moves.pop(room, None)
        if known is None or known.upto.epoch != epoch:
            known = _Moves(Cursor(epoch, 0), {})
        async for part in self._backwards(room, upto, known.upto.lsn):
            for message_id, lsn, is_new in part:
                if not is_new:
                    known.lsns[message_id] = max(lsn, known.lsns.get(message_id, 0))
        known.upto = Cursor(epoch, upto)
        self._moves[room] = known
        if len(self._moves) > _MOVES_KNOWN_MAX:
            del self._moves[next(iter(self._moves))]
        return [i for i, lsn in known.lsns.items() if lsn > present.oldest.lsn]

    async def _first_row_after(self, room: str, upto: int) -> int:
        """The rowid of the first message that came after an LSN; one beyond all, where none did."""
        while True:
            scanned = self._present.cursor
            parts = self._backwards(room, scanned.lsn, upto)
            newer = [i async for part in parts for i, _, is_new in part if is_new]
            rows, head = await self._writer.query_at(
                f"SELECT min(rowid) FROM {TABLE} WHERE id IN {_LISTED}"
                f" UNION ALL SELECT coalesce(max(rowid), 0) + 1 FROM {TABLE}",
                (json.dumps(newer),),
            )
            if head <= scanned.lsn:
                return int(rows[0][0] or rows[1][0])
            # The table was a moment ahead of the log: some of its rows may come as changes yet.
            while self._present.cursor.lsn < head and self._present.cursor.epoch == scanned.epoch:
                await self._present.moved()

    async def _lsn_of(self, room: str, message_id: str) -> int:
        async for part in self._backwards(room, self._present.cursor.lsn):
            for found, lsn, _ in part:
                if found == message_id:
                    return lsn
        return 0

    async def _backwards(
        self, room: str, upto: int, down_to: int = 0
    ) -> AsyncIterator[list[tuple[str, int, bool]]]:
        """What came into a room up to an LSN of the present epoch, as `_entered` has it, some at
        a time, the newest first."""
        narrowing = Narrowing((TABLE,), room)
        size, high = _LOOK_LSNS, upto
        while high > (floor := max(self._present.oldest.lsn, down_to)):
            low = max(floor, high - size)
            entries = await self._between(low, high, narrowing)
            if entries is None:
                size = max(_LOOK_LSNS, size // 8)
                continue
            yield _entered(entries, room)
            high, size = low, size * 4

    async def _between(self, low: int, high: int, narrowing: Narrowing) -> list[Entry] | None:
        """The entries after `low` up to `high`; None where they are too many for one look."""
        epoch, found = self._present.cursor.epoch, list[Entry]()
        is_long = high - low > _LOOK_LSNS
        while low < high:
            page = await self._present.page(
                Cursor(epoch, low), narrowing, rows_max=_LOOK_LSNS, bytes_max=_PAGE_BYTES
            )
            if isinstance(page, Gone) or page.scanned_to <= low:
                break
            found += [e for e in page.entries if e.lsn <= high and e.table == TABLE]
            low = page.scanned_to
            if is_long and len(found) > _LOOK_ENTRIES_MAX:
                return None
        return found

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._work_s_max):
                yield
        except TimeoutError as error:
            raise Timeout("the messages could not be found in time; try again") from error


def _first_bytes(messages: list[ChatMessage]) -> list[ChatMessage]:
    """The first ones that have no more bytes than a history may have, but one at the least."""
    size = 0
    for place, message in enumerate(messages):
        size += len(msgspec.json.encode(message))
        if place and size > _HISTORY_BYTES_MAX:
            return messages[:place]
    return messages


def _entered(entries: list[Entry], room: str) -> list[tuple[str, int, bool]]:
    """The messages that came into a room, the newest first: id, LSN, and whether it is a new one."""
    found = []
    for entry in reversed(entries):
        is_new = entry.type is ChangeType.INSERT
        moved = entry.type is ChangeType.UPDATE and entry.room_old != room
        if entry.room_new == room and (is_new or moved):
            row = decode_change(entry.data).newValue
            if row is not None and isinstance(row.id, str):
                found.append((row.id, entry.lsn, is_new))
    return found


def _fits(table: TableInfo) -> bool:
    names = {column.name for column in table.columns}
    return names == set(COLUMNS) and table.key == ("id",) and table.room == "room"
