"""A consistent picture of tables at one LSN, spooled to a temporary file at disk speed.

A read transaction that lasts holds the source's WAL back, so the rows go to a file first and are
served from there at each client's pace. The snapshot is taken in the history that the caller
follows: its anchor row is looked up in the same read transaction.
"""

from __future__ import annotations

import csv
import io
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import msgspec

from cdchub.capture import install
from cdchub.capture.connection import SourcePaths, open_source, read_transaction
from cdchub.capture.driver import Connection
from cdchub.capture.outbox import (
    Anchor,
    Row,
    decode_exact,
    exact_columns,
    outbox_head,
    row_key,
)
from cdchub.capture.table import Shape, quote
from cdchub.capture.triggers import OUTBOX
from cdchub.catalog import Catalog, Selection, SnapshotFormat
from cdchub.change import ChangeType, SqliteValue, encode_change, encode_row, wire_row
from cdchub.errors import CdchubError

_BUFFER_BYTES = 256 * 2**10


class SnapshotStale(CdchubError):
    """The source's history is not the one that the caller follows (any more); try again."""

    retryable = True


class SnapshotTooSlow(CdchubError):
    """Reading took longer than its bound; holding the snapshot on would make the WAL grow."""

    retryable = True


@dataclass(slots=True)
class Spool:
    """The rows as they were at `lsn`, as a file that has no name. `close` frees it."""

    lsn: int
    tables: tuple[str, ...]
    file: IO[bytes]
    size_bytes: int

    def close(self) -> None:
        self.file.close()


def take_snapshot(
    paths: SourcePaths,
    selection: Selection,
    *,
    format: SnapshotFormat,
    anchor: Anchor,
    timeout_s: float,
    stop: threading.Event | None = None,
    folder: Path | None = None,
) -> Spool:
    """Reads the selection's rows, in one transaction, grouped by table and ordered by key.

    The spool lies in `folder`, by default beside the source: there is as much room as for a copy.
    Blocks; to be called in a thread. Raises `SnapshotStale`, `SnapshotTooSlow`, SQLite's errors
    and OSError (a full disk).
    """
    connection = open_source(paths, read_only=True)
    file = tempfile.TemporaryFile(dir=folder or paths.database.parent, buffering=_BUFFER_BYTES)  # noqa: SIM115
    try:
        with read_transaction(connection):
            _check_history(connection, anchor)
            lsn = outbox_head(connection).lsn
            captured = install.load(connection)
            catalog = captured.catalog()
            chosen = [table.name for table in catalog.chosen(selection)]
            shapes = {captured.shapes[i].name: captured.shapes[i] for i in captured.active}
            reader = _Reader(connection, lsn, time.monotonic() + timeout_s, stop)
            for line in reader.lines([shapes[name] for name in chosen], catalog, selection, format):
                file.write(line)
        file.flush()
        return Spool(lsn, tuple(chosen), file, file.tell())
    except BaseException:
        file.close()
        raise
    finally:
        connection.close()


def _check_history(connection: Connection, anchor: Anchor) -> None:
    if not install.is_installed(connection):
        raise SnapshotStale("capture is not installed")
    if anchor.nonce is None:
        return
    found = connection.value(f"SELECT nonce FROM {OUTBOX} WHERE lsn = ?", (anchor.lsn,))
    # A row that was pruned since the anchor was read is fine; then a later one stands.
    if found != anchor.nonce and not (found is None and outbox_head(connection).lsn > anchor.lsn):
        raise SnapshotStale(f"LSN {anchor.lsn} is another row than in the log")


class _EncodeChange(Protocol):
    def __call__(self, *, commit: bool) -> bytes: ...


class _Reader:
    def __init__(
        self,
        connection: Connection,
        lsn: int,
        deadline_s: float,
        stop: threading.Event | None,
    ) -> None:
        self._stop = stop
        self._connection = connection
        self._lsn = lsn
        self._deadline_s = deadline_s
        self._now_ms = time.time_ns() // 1_000_000

    def lines(
        self, shapes: list[Shape], catalog: Catalog, selection: Selection, format: SnapshotFormat
    ) -> Iterator[bytes]:
        rooms = catalog.rooms(selection)
        if format is SnapshotFormat.CHANGES:
            yield from self._changes(shapes, rooms)
        for shape in shapes:
            if format is SnapshotFormat.ROWS:
                for _, row in self._rows(shape, rooms):
                    yield encode_row(wire_row(shape.captured, row)) + b"\n"
            elif format is SnapshotFormat.CSV:
                yield _csv_line(shape.captured)
                for _, row in self._rows(shape, rooms):
                    yield _csv_line([csv_value(value) for value in row])

    def _changes(self, shapes: list[Shape], rooms: dict[str, SqliteValue]) -> Iterator[bytes]:
        """SNAPSHOT changes. They are one transaction, so only the last one is its commit."""
        held: _EncodeChange | None = None
        for shape in shapes:
            for rowid, row in self._rows(shape, rooms):
                if held is not None:
                    yield held(commit=False)
                held = self._change(shape, rowid, row)
        if held is not None:
            yield held(commit=True)

    def _change(self, shape: Shape, rowid: int | None, row: Row) -> _EncodeChange:
        def encode(*, commit: bool) -> bytes:
            return (
                encode_change(
                    lsn=self._lsn,
                    type=ChangeType.SNAPSHOT,
                    table=shape.name,
                    key=row_key(shape, dict(zip(shape.captured, row, strict=True)), rowid),
                    old=None,
                    new=wire_row(shape.captured, row),
                    timestamp_ms=self._now_ms,
                    txid=self._lsn,
                    commit=commit,
                )
                + b"\n"
            )

        return encode

    def _rows(self, shape: Shape, rooms: dict[str, SqliteValue]) -> Iterator[tuple[int | None, Row]]:
        """The rows of one table, those of the wanted room, in key order."""
        room_place = None
        if shape.name in rooms and shape.room is not None:
            room_place = shape.captured.index(shape.room)
        wanted = rooms.get(shape.name)
        for place, (rowid, row) in enumerate(self._all_rows(shape)):
            if place % 1_000 == 0:
                self._check_time()
            if room_place is None or (row[room_place] == wanted and wanted is not None):
                yield rowid, row

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise SnapshotTooSlow("the snapshot took too long")
        if self._stop is not None and self._stop.is_set():
            raise SnapshotTooSlow("the hub is ending")

    def _all_rows(self, shape: Shape) -> Iterator[tuple[int | None, Row]]:
        rowid = "NULL" if shape.rowid is None else f"_cdchub_t.{_rowid(shape)}"
        columns = [f"_cdchub_t.{quote(name)}" for name in shape.captured]
        order = [f"_cdchub_t.{quote(name)}" for name in shape.key] or [rowid]
        tail = f"FROM {quote(shape.name)} _cdchub_t ORDER BY {', '.join(order)}"
        done = 0
        try:
            for row in self._connection.iterate(f"SELECT {rowid}, {', '.join(columns)} {tail}"):
                yield row[0], row[1:]
                done += 1
        except UnicodeDecodeError:
            # One row holds TEXT that is no UTF-8: go on from it, reading bytes.
            sql = f"SELECT {rowid}, {exact_columns(columns)} {tail} LIMIT -1 OFFSET ?"
            for row in self._connection.iterate(sql, (done,)):
                yield row[0], decode_exact(row[1:])


def _rowid(shape: Shape) -> str:
    assert shape.rowid is not None
    return quote(shape.rowid) if shape.rowid_key else shape.rowid


def _csv_line(values: tuple[str, ...] | list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().encode()


def csv_value(value: SqliteValue) -> str:
    """A value as CSV text: NULL is empty, numbers as in JSON, blobs and broken text in base64."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    wire = wire_row(("v",), (value,))["v"]
    return next(iter(wire.values())) if isinstance(wire, dict) else msgspec.json.encode(wire).decode()
