"""Which feeds a change may concern, without asking each: by table, then by what its row holds.

Ten thousand feeds, each with another equality filter, cost one lookup a change. A feed is filed under
one condition; its matcher decides. What can't be looked up (`gt`, `like`, …) is asked every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from cdchub.change import NOTES, ChangeType, Entry, SqliteValue, from_wire
from cdchub.fanout.feed import EntryRows, Every, Feed, Holding, Item, Whole

_Feeds = dict[Feed, None]
_HAVE_OLD = frozenset({ChangeType.UPDATE, ChangeType.DELETE})


class _TableIndex:
    """The feeds of one table."""

    def __init__(self) -> None:
        self.whole: _Feeds = {}
        self.every: _Feeds = {}
        self.rooms: dict[SqliteValue, _Feeds] = {}
        self.columns: dict[str, dict[SqliteValue, _Feeds]] = {}

    def add(self, feed: Feed, key: Whole | Every | Holding) -> None:
        match key:
            case Whole():
                self.whole[feed] = None
            case Every():
                self.every[feed] = None
            case Holding(column, values):
                filed = self.rooms if column is None else self.columns.setdefault(column, {})
                for value in values:
                    filed.setdefault(value, {})[feed] = None

    def discard(self, feed: Feed, key: Whole | Every | Holding) -> None:
        match key:
            case Whole():
                del self.whole[feed]
            case Every():
                del self.every[feed]
            case Holding(column, values):
                filed = self.rooms if column is None else self.columns[column]
                # A list may name a value twice.
                for value in set(values):
                    del filed[value][feed]
                    if not filed[value]:
                        del filed[value]
                if column is not None and not filed:
                    del self.columns[column]

    def asked(self, change: EntryRows) -> Iterator[Feed]:
        """The feeds whose matcher must decide; one may come twice."""
        yield from self.every
        if self.rooms:
            entry = change.entry
            yield from self.rooms.get(entry.room_old, ())
            if entry.room_new != entry.room_old:
                yield from self.rooms.get(entry.room_new, ())
        if self.columns:
            old, new = change.rows()
            for column, filed in self.columns.items():
                if (old is None and change.entry.type in _HAVE_OLD) or (
                    old is not None and column not in old
                ):
                    # Nobody knows the old row; or it has an older shape, where the column may have had
                    # another name.
                    yield from chain.from_iterable(filed.values())
                    continue
                before = None if old is None else from_wire(old.get(column))
                after = None if new is None else from_wire(new.get(column))
                yield from filed.get(before, ())
                if after != before:
                    yield from filed.get(after, ())


class FeedIndex:
    def __init__(self) -> None:
        self._feeds: _Feeds = {}
        # Made at a table's first change: a feed of all tables is also one of tables to come.
        self._tables: dict[str, _TableIndex] = {}

    def add(self, feed: Feed) -> None:
        self._feeds[feed] = None
        for table, index in self._tables.items():
            key = feed.matcher.key(table)
            if key is not None:
                index.add(feed, key)

    def discard(self, feed: Feed) -> None:
        del self._feeds[feed]
        for table, index in self._tables.items():
            key = feed.matcher.key(table)
            if key is not None:
                index.discard(feed, key)

    def rebuild(self) -> None:
        """The feeds' matchers are others now."""
        self._tables.clear()

    def concerned(self, entries: Iterable[Entry]) -> dict[Feed, list[Item]]:
        """What each feed sees of these entries."""
        found: dict[Feed, list[Item]] = {}
        for entry in entries:
            if entry.type in NOTES:
                continue
            index = self._tables.get(entry.table) or self._make(entry.table)
            for feed in index.whole:
                found.setdefault(feed, []).append((entry.lsn, entry.data))
            if index.every or index.rooms or index.columns:
                self._ask(index, EntryRows(entry), found)
        return found

    def _ask(self, index: _TableIndex, change: EntryRows, found: dict[Feed, list[Item]]) -> None:
        lsn = change.entry.lsn
        for feed in index.asked(change):
            items = found.get(feed)
            if items and items[-1][0] == lsn:
                continue
            data = feed.matcher.data(change)
            if data is not None:
                found.setdefault(feed, []).append((lsn, data))

    def _make(self, table: str) -> _TableIndex:
        index = self._tables[table] = _TableIndex()
        for feed in self._feeds:
            key = feed.matcher.key(table)
            if key is not None:
                index.add(feed, key)
        return index
