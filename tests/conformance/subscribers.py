"""Subscribers: they read pages of any size, stop anywhere, go on from there, and apply by key."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

from cdchub.catalog import Selection
from cdchub.change import ChangeType, Entry
from cdchub.fanout import EntryRows, Matcher
from cdchub.log import LogReader
from cdchub.log.protocol import Cursor
from loadtest.rows import Rows, apply
from tests.conformance.hubs import Hub, base_lines

_ROWS_MAX = [1, 2, 3, 8, 500, 500]
_BYTES_MAX = [1, 200, 2**18, 2**18]


def parsed(line: bytes) -> Any:
    """A change as a reader of JSON has it who knows numbers only as far as all of them agree on
    them: an integer that a double can't hold must not be one here, nor what is no JSON."""
    return json.loads(line, parse_int=_parse_int, parse_constant=_refuse)


def _parse_int(text: str) -> int:
    value = int(text)
    return value if abs(value) < 2**53 else _refuse(text)


def _refuse(text: str) -> int:
    raise AssertionError(f"{text} is no number that JSON can carry exactly")


class Subscriber:
    """Holds what one selection has sent it. A break of a table is answered with a snapshot of it."""

    def __init__(self, name: str, hub: Hub, selection: Selection, rng: random.Random) -> None:
        self.name = name
        self.selection = selection
        self.rows: Rows = {}
        self.entries: list[Entry] = []
        self.changes: list[dict[str, Any]] = []
        self._hub = hub
        self._rng = rng
        self._reader = LogReader(hub.log_path)
        self._cursor = Cursor(hub.epoch, 0)
        # Tables that broke and have no snapshot yet, and the LSN of the snapshots of the others.
        self._lost: set[str] = set()
        self._snapshots: dict[str, int] = {}

    def close(self) -> None:
        self._reader.close()

    def begin_with_base(self) -> None:
        lsn, lines = base_lines(self._reader, self._hub.epoch, self.selection, self._hub.catalog())
        self._take(lines)
        self._cursor = Cursor(self._hub.epoch, lsn)

    def begin_with_snapshot(self) -> None:
        lsn, lines = self._hub.snapshot(self.selection)
        self._take(lines)
        self._cursor = Cursor(self._hub.epoch, lsn)

    def _take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            change = parsed(line)
            assert change["type"] == "SNAPSHOT"
            assert change["oldValue"] is None
            apply(self.rows, change)

    def go_on(self, pages: int | None = None) -> None:
        """Reads so many pages, or (None) all there are, and then whatever breaks have left to do."""
        if self._rng.random() < 0.2:
            # As after a restart: nothing but the position is left.
            self._reader.close()
            self._reader = LogReader(self._hub.log_path)
        info = self._reader.state().by_number(self._cursor.epoch)
        assert info is not None
        matcher = Matcher(self.selection, self._hub.catalog())
        while self._cursor.lsn < info.head_lsn and pages != 0:
            page = self._reader.read(
                self._cursor,
                upto=info.head_lsn,
                narrowing=matcher.narrowing(),
                rows_max=self._rng.choice(_ROWS_MAX),
                bytes_max=self._rng.choice(_BYTES_MAX),
            )
            assert page.scanned_to > self._cursor.lsn, "a page did not move"
            for entry in page.entries:
                self._receive(entry, matcher)
            self._cursor = Cursor(self._cursor.epoch, page.scanned_to)
            pages = None if pages is None else pages - 1
        if self._lost and self._hub.settled():
            self._replace_lost()

    def _receive(self, entry: Entry, matcher: Matcher) -> None:
        self.entries.append(entry)
        if entry.type is ChangeType.BREAK and matcher.covers(entry.table):
            if entry.lsn > self._snapshots.get(entry.table, 0):
                self._lost.add(entry.table)
                self.rows.pop(entry.table, None)
            return
        data = matcher.data(EntryRows(entry))
        if data is None:
            return
        change = parsed(data)
        self.changes.append(change)
        if entry.table not in self._lost and entry.lsn > self._snapshots.get(entry.table, 0):
            apply(self.rows, change)

    def _replace_lost(self) -> None:
        known = {table.name for table in self._hub.catalog().tables}
        lsn, lines = self._hub.snapshot(self.selection.only([*(self._lost & known)]))
        self._take(lines)
        self._snapshots |= dict.fromkeys(self._lost, lsn)
        self._lost.clear()

    def held(self) -> Rows:
        assert not self._lost, f"{self.name} still waits for a snapshot of {self._lost}"
        return {table: rows for table, rows in self.rows.items() if rows}
