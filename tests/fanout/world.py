"""A simulated world around the real fan-out core: a source, its log, slow readers and cut lines.

The core, its feeds, the ring, the SQLite log and the SSE framing are the real ones. Simulated is
what lies outside: who commits what and when, how fast a reader's line is, and where it is cut. All
randomness comes from one seed, and the loop's own scheduling is the only clock, so that a run can be
repeated.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cdchub.catalog import Affinity, Catalog, ColumnInfo, Selection, TableInfo
from cdchub.change import ChangeType, Entry, WireNote, encode_change, encode_note, ends_transaction
from cdchub.config import StreamConfig
from cdchub.fanout import Core, Gone, Present, Subscriber, resolve
from cdchub.log import LogReader, LogWriter, Ring
from cdchub.log.protocol import (
    Appended,
    Cursor,
    HistoryChanged,
    Narrowing,
    Page,
    Retention,
    SourceMark,
)
from cdchub.position import Now, Since, parse_position
from cdchub.sse import Event, EventParser, SseFramer
from tests.fanout.line import SimSink

TABLES = ("a", "b", "c")
ROOMS = (None, "x", "y")

Rows = dict[str, dict[int, str | None]]


def _table(name: str) -> TableInfo:
    columns = (
        ColumnInfo("id", "INTEGER", Affinity.NUMERIC),
        ColumnInfo("room", "TEXT", Affinity.TEXT),
    )
    return TableInfo(name, ("id",), columns, "room" if name == "c" else None)


CATALOG = Catalog([_table(name) for name in TABLES])


class SimSource:
    """Tables of `id → room`, the log of their changes, and backups to restore."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        path.with_name("source.db").touch()
        self._log = LogWriter(path, database=path.with_name("source.db"))
        self._rng = rng
        self._mark = SourceMark("sim", 1, "boot")
        self.rows: Rows = {name: {} for name in TABLES}
        self._backup = self._copy()
        self.head = 0
        # Of a transaction that goes on: its txid, and how many changes are to come.
        self.rest = (0, 0)
        self._log.start_epoch(base_lsn=0, base_nonce=None, now_ms=0, reason="new")
        self._log.adopt(self._mark)
        self.history = HistoryChanged(self._log.state(), None)
        # By epoch number: everything that was ever committed in it, for the judge.
        self.committed: dict[int, list[Entry]] = {1: []}

    @property
    def epoch_name(self) -> str:
        return self.history.state.present.epoch

    @property
    def epoch_number(self) -> int:
        return self.history.state.present.number

    def close(self) -> None:
        self._log.close()

    def commit(self, count: int, *, upto: int | None = None) -> Appended:
        """One transaction of random changes, in the log when this returns; or the first `upto` of them,
        and `go_on` brings the rest."""
        first = self.head + 1
        upto = count if upto is None else upto
        self.rest = (first, count - upto)
        return self._append([self._change(first, last=place == count - 1) for place in range(upto)])

    def go_on(self, upto: int) -> Appended:
        """More of a transaction that has not ended."""
        first, left = self.rest
        upto = min(upto, left)
        self.rest = (first, left - upto)
        return self._append([self._change(first, last=place == left - 1) for place in range(upto)])

    def end_of(self, txid: int) -> int | None:
        """The LSN at which a transaction of the present epoch ends, or None if it is not there yet."""
        for entry in self.committed[self.epoch_number]:
            if entry.lsn >= txid and ends_transaction(entry):
                return entry.lsn
        return None

    def schema_break(self, table: str) -> Appended:
        """Capture of `table` was interrupted: rows changed unseen, then the break was logged."""
        self.rows[table] = {self._rng.randrange(8): "z" for _ in range(3)}
        self.head += 1
        note = WireNote(self.head, ChangeType.BREAK.name, table, 0, self.head, commit=True)
        data = encode_note(note)
        return self._append([Entry(self.head, ChangeType.BREAK, table, None, None, data)])

    def back_up(self) -> None:
        self._backup = self._copy()

    def restore(self) -> HistoryChanged:
        """An older copy comes back: another history begins."""
        lsn, rows = self._backup
        self.rows = {name: dict(content) for name, content in rows.items()}
        self.head = lsn
        self.rest = (0, 0)
        self._log.start_epoch(base_lsn=lsn, base_nonce=None, now_ms=0, reason="restored")
        self.history = HistoryChanged(self._log.state(), None)
        self.committed[self.epoch_number] = []
        return self.history

    def retain(self, changes_max: int) -> HistoryChanged:
        retention = Retention(age_s=1e12, changes_max=changes_max, bytes_max=2**40, to_bases=False)
        while self._log.retain(retention, now_ms=0):
            pass
        self.history = HistoryChanged(self._log.state(), None)
        return self.history

    def _copy(self) -> tuple[int, Rows]:
        return getattr(self, "head", 0), {name: dict(rows) for name, rows in self.rows.items()}

    def _append(self, entries: Sequence[Entry]) -> Appended:
        nonce = self._rng.getrandbits(62)
        self._log.append(self.epoch_number, entries, nonce=nonce, timestamp_ms=0)
        self.committed[self.epoch_number].extend(entries)
        return Appended(entries, self.head, nonce)

    def _change(self, txid: int, *, last: bool) -> Entry:
        self.head += 1
        table = self._rng.choice(TABLES)
        key, room = self._rng.randrange(8), self._rng.choice(ROOMS)
        rows = self.rows[table]
        old = {"id": key, "room": rows[key]} if key in rows else None
        new: dict[str, object] | None = {"id": key, "room": room}
        kind = ChangeType.UPDATE if old else ChangeType.INSERT
        if old and self._rng.random() < 0.3:
            kind, new = ChangeType.DELETE, None
        if new is None:
            del rows[key]
        else:
            rows[key] = room
        data = encode_change(
            lsn=self.head,
            type=kind,
            table=table,
            key={"id": key},
            old=old,  # type: ignore[arg-type]
            new=new,  # type: ignore[arg-type]
            timestamp_ms=0,
            txid=txid,
            commit=last,
        )
        in_room = table == "c"
        return Entry(
            self.head,
            kind,
            table,
            old["room"] if in_room and old else None,
            room if in_room and new else None,
            data,
        )


class SimLog:
    """The real log's pages, after a while."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.reader = LogReader(path)
        self._rng = rng

    async def read(
        self, after: Cursor, *, upto: int, narrowing: Narrowing, rows_max: int, bytes_max: int
    ) -> Page:
        await _ticks(self._rng.randrange(4))
        page = self.reader.read(
            after, upto=upto, narrowing=narrowing, rows_max=rows_max, bytes_max=bytes_max
        )
        await _ticks(self._rng.randrange(4))
        return page


@dataclass
class SimSnapshot:
    cursor: Cursor
    tables: Sequence[str]
    content: list[bytes]
    rng: random.Random

    async def lines(self) -> AsyncIterator[bytes]:
        for line in self.content:
            await _ticks(self.rng.randrange(2))
            yield line


class SimSnapshots:
    def __init__(self, source: SimSource, rng: random.Random) -> None:
        self._source = source
        self._rng = rng

    @asynccontextmanager
    async def open(self, selection: Selection, *, at_least_lsn: int = 0) -> AsyncIterator[SimSnapshot]:
        await _ticks(self._rng.randrange(4))
        source = self._source
        rooms = CATALOG.rooms(selection)
        content = []
        tables = [info.name for info in CATALOG.chosen(selection)]
        for table in tables:
            tests = CATALOG.tests(selection, table)
            for key, room in sorted(source.rows[table].items()):
                if table in rooms and room != rooms[table]:
                    continue
                if not all(test({"id": key, "room": room}[name]) for name, test in tests):
                    continue
                data = encode_change(
                    lsn=source.head,
                    type=ChangeType.SNAPSHOT,
                    table=table,
                    key={"id": key},
                    old=None,
                    new={"id": key, "room": room},
                    timestamp_ms=0,
                    txid=source.head,
                    commit=True,
                )
                content.append(data + b"\n")
        cursor = Cursor(source.epoch_number, source.head)
        await _ticks(self._rng.randrange(4))
        yield SimSnapshot(cursor, tables, content, self._rng)


class SimClient:
    """A browser: follows a selection, resumes by its last event id, applies changes by key."""

    def __init__(
        self,
        source: SimSource,
        core: Core,
        framer: SseFramer,
        selection: Selection,
        *,
        snapshot: bool,
        conflate: bool = False,
        buffer_bytes_max: int,
    ) -> None:
        self._source = source
        self._core = core
        self._conflate = conflate
        self._buffer_bytes_max = buffer_bytes_max
        self._framer = framer
        self.selection = selection
        self.snapshot = snapshot
        self.parser = EventParser()
        self.sink: SimSink | None = None
        self.subscriber: Subscriber | None = None
        self.rows: Rows = {name: {} for name in TABLES}
        # Since the last start or reset: what was received, and from which position on.
        self.received: list[int] = []
        self.begun_at: tuple[str, int] | None = None
        self.resets: list[str] = []
        # The transaction of the last change, as long as nothing has told that it is whole.
        self.open_txid: int | None = None
        # The most that any of its lines ever held.
        self.most_bytes = 0

    @property
    def connected(self) -> bool:
        return self.sink is not None

    def connect(self) -> None:
        last_id = self.parser.last_id
        self.parser = EventParser(last_id)
        since: Since | None = parse_position(last_id) if last_id else None
        start: Cursor | Gone | None
        if since is None:
            start = None if self.snapshot else resolve(Now(), self._core.present.view)
            self.received = []
            self.begun_at = None
            if isinstance(start, Cursor):
                position = self._core.present.position(start)
                assert position is not None
                self.begun_at = (position.epoch, position.lsn)
        else:
            start = resolve(since, self._core.present.view)
        self.sink = SimSink(self._buffer_bytes_max)
        position = self._core.present.position(start) if isinstance(start, Cursor) else None
        self.sink.write(self._framer.opening(position, retry_ms=1))
        self.subscriber = self._core.subscribe(
            self.selection,
            self._framer,
            self.sink,
            start,
            snapshot=self.snapshot,
            conflate=self._conflate,
            transport="sim",
        )

    def cut(self) -> None:
        """The line breaks: what was not taken yet is lost."""
        if self.subscriber is not None:
            self._core.unsubscribe(self.subscriber)
        self._hang_up()

    def take(self, count: int) -> None:
        if self.sink is None:
            return
        # Block by block, because one without data moves only the last id.
        for piece in self.sink.take(count).splitlines(keepends=True):
            before = self.parser.last_id
            events = self.parser.feed(piece)
            for event in events:
                self._on(event)
            if self.parser.last_id != before and not events:
                self._whole_at(self.parser.last_id)
        if self.sink.closed and not self.sink.buffered_bytes:
            self._hang_up()

    def _hang_up(self) -> None:
        if self.sink is not None:
            self.most_bytes = max(self.most_bytes, self.sink.most_bytes)
        self.sink = self.subscriber = None

    def _on(self, event: Event) -> None:
        match event.name:
            case "message":
                self._change(json.loads(event.data))
            case "caught-up" | "transaction-end":
                self._whole_at(json.loads(event.data)["position"])
            case "snapshot":
                self.open_txid = None
                document = json.loads(event.data)
                for table in document["tables"]:
                    self.rows[table].clear()
                epoch, _, lsn = document["position"].rpartition(":")
                if len(document["tables"]) == len(CATALOG.chosen(self.selection)):
                    self.received = []
                    self.begun_at = (epoch, int(lsn))
            case "reset":
                document = json.loads(event.data)
                self.resets.append(document["reason"])
                self.open_txid = None
                for table in document["tables"]:
                    self.rows[table].clear()
                if document["reason"] != "schema":
                    epoch, _, lsn = document["position"].rpartition(":")
                    self.received = []
                    self.begun_at = (epoch, int(lsn))

    def _change(self, change: dict[str, object]) -> None:
        table, key = str(change["table"]), change["key"]["id"]  # type: ignore[index]
        new = change["newValue"]
        if new is None:
            self.rows[table].pop(key, None)
        else:
            self.rows[table][key] = new["room"]  # type: ignore[index]
        if change["type"] != "SNAPSHOT":
            self.received.append(int(change["lsn"]))  # type: ignore[call-overload]
            self.open_txid = None if change["commit"] else int(change["txid"])  # type: ignore[call-overload]

    def _whole_at(self, position: str) -> None:
        """A position without a change tells that all transactions before it are whole."""
        epoch, _, lsn = position.rpartition(":")
        if self.open_txid is None or epoch != self._source.epoch_name:
            return
        end = self._source.end_of(self.open_txid)
        assert end is not None, f"half of transaction {self.open_txid} was told to be whole"
        assert end <= int(lsn), f"half of transaction {self.open_txid} was told to be whole"
        self.open_txid = None


async def _ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def make_core(source: SimSource, log: SimLog, rng: random.Random, config: StreamConfig) -> Core:
    present = Present(
        history=source.history,
        catalog=CATALOG,
        ring=Ring(bytes_max=rng.choice((6_000, 60_000)), head_lsn=source.head),
        log=log,
    )
    return Core(config, present, snapshots=SimSnapshots(source, rng), taken=lambda: None)
