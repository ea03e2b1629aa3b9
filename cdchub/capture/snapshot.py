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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from cdchub.capture import install
from cdchub.capture.connection import SourcePaths, open_source, read_transaction
from cdchub.capture.driver import BadStatement, Connection
from cdchub.capture.encode import RowEncoder
from cdchub.capture.outbox import (
    Anchor,
    outbox_head,
)
from cdchub.capture.scan import ScannedRow, scan
from cdchub.capture.table import Shape, quote
from cdchub.capture.triggers import OUTBOX
from cdchub.catalog import Catalog, Selection, SnapshotFormat
from cdchub.change import ChangeType, SqliteValue, WireChange, encode_lines, wire_value
from cdchub.errors import CdchubError
from cdchub.filter import EVERYTHING, Narrow, Test, literals, make_test, narrow

_BUFFER_BYTES = 256 * 2**10


class SnapshotStale(CdchubError):
    """The source's history is not the one that the caller follows (any more); try again."""

    retryable = True


class SnapshotOfAnother(SnapshotStale):
    """The source is another database than the one that is followed."""


class SnapshotTooSlow(CdchubError):
    """Reading took longer than its bound; holding the snapshot on would make the WAL grow."""

    retryable = True


@dataclass(slots=True)
class Spool:
    """The rows as they were at `lsn`, as a file that has no name. `close` frees it.

    A reader of a small one may leave it in `held`, in pieces that end with a line, for the next.
    """

    lsn: int
    tables: tuple[str, ...]
    file: IO[bytes]
    size_bytes: int
    held: list[bytes] | None = None

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
            wanted = [rows_of(selection, catalog, shapes[name]) for name in chosen]
            for lines in _lines(connection, wanted, lsn, format, Pace(timeout_s, stop)):
                file.write(lines)
        file.flush()
        return Spool(lsn, tuple(chosen), file, file.tell())
    except BadStatement as error:
        file.close()
        # The tables are others than the captured ones; that is mended in a moment.
        raise SnapshotStale(f"the schema is not the captured one ({error})") from error
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
        raise SnapshotOfAnother(f"LSN {anchor.lsn} is another row than in the log")


class Pace:
    """How long reading may take, and whether anybody still wants it."""

    def __init__(self, timeout_s: float, stop: threading.Event | None) -> None:
        self._deadline_s = time.monotonic() + timeout_s
        self._stop = stop

    def check(self) -> None:
        """Raises `SnapshotTooSlow`."""
        if time.monotonic() > self._deadline_s:
            raise SnapshotTooSlow("the snapshot took too long")
        if self._stop is not None and self._stop.is_set():
            raise SnapshotTooSlow("the hub is ending")


# The place of a column that a table doesn't have (any more).
_NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a table are shown, and which of their columns. `tests` are by place in a scanned
    row, and decide; `where` only spares SQLite's reading."""

    shape: Shape
    where: Narrow = EVERYTHING
    tests: tuple[tuple[int, Test], ...] = ()
    columns: frozenset[str] | None = None

    def shown(self, name: str) -> bool:
        return self.columns is None or name in self.columns

    def batches(self, connection: Connection, pace: Pace) -> Iterator[list[ScannedRow]]:
        for batch in scan(connection, self.shape, self.where):
            pace.check()
            kept = batch
            for place, test in self.tests:
                if place == _NOWHERE:
                    kept = kept if test(None) else []
                else:
                    kept = [row for row in kept if test(row[place])]
            if kept:
                yield kept


def rows_of(selection: Selection, catalog: Catalog, shape: Shape) -> Rows:
    """What a selection shows of one table."""
    bound = catalog.bound(selection, shape.name)
    tests = [(c.column, make_test(c, convert)) for c, convert in bound]
    if shape.name in (rooms := catalog.room_columns(selection)):
        column, room = rooms[shape.name]
        tests.append((column, lambda value: value == room))
    there = [(c, literals(c, convert)) for c, convert in bound if c.column in shape.captured]
    places = {name: place for place, name in enumerate(shape.captured, 1)}
    wanted = catalog.columns_of(selection, shape.name)
    return Rows(
        shape,
        narrow(there, quote),
        # A column that is gone holds nothing.
        tuple((places.get(name, _NOWHERE), test) for name, test in tests),
        # The key's columns may have other names than when they were asked for.
        None if wanted is None else frozenset({*wanted, *shape.key}),
    )


def snapshot_changes(
    connection: Connection, rows: Rows, lsn: int, pace: Pace
) -> Iterator[list[WireChange]]:
    """The rows of one table as SNAPSHOT changes, in batches.

    They are parts of one transaction: whoever has the last one marks it as the commit.
    """
    shape = rows.shape
    encoder = RowEncoder(shape, rows.columns)
    now_ms = time.time_ns() // 1_000_000
    for batch in rows.batches(connection, pace):
        rowids, *columns = zip(*batch, strict=True)
        yield [
            WireChange(lsn, _SNAPSHOT, shape.name, key, None, row, now_ms, lsn, commit=False)
            for key, row in zip(encoder.keys(columns, rowids), encoder.rows(columns), strict=True)
        ]


_SNAPSHOT = ChangeType.SNAPSHOT.name


def _lines(
    connection: Connection, wanted: Sequence[Rows], lsn: int, format: SnapshotFormat, pace: Pace
) -> Iterator[bytes]:
    """The spool's content, some lines at a time."""
    if format is SnapshotFormat.CHANGES:
        yield from _change_lines(connection, wanted, lsn, pace)
        return
    for rows in wanted:
        captured = rows.shape.captured
        encoder = RowEncoder(rows.shape, rows.columns)
        places = [place for place, name in enumerate(captured, 1) if rows.shown(name)]
        if format is SnapshotFormat.CSV:
            yield _csv_line([name for name in captured if rows.shown(name)])
        for batch in rows.batches(connection, pace):
            if format is SnapshotFormat.CSV:
                yield b"".join(_csv_line([csv_value(row[p]) for p in places]) for row in batch)
            else:
                _, *columns = zip(*batch, strict=True)
                yield b"\n".join([*encode_lines(list(encoder.rows(columns))), b""])


def _change_lines(
    connection: Connection, wanted: Sequence[Rows], lsn: int, pace: Pace
) -> Iterator[bytes]:
    held: list[WireChange] = []
    for rows in wanted:
        for changes in snapshot_changes(connection, rows, lsn, pace):
            yield b"\n".join([*encode_lines(held + changes[:-1]), b""])
            held = changes[-1:]
    for last in held:
        last.commit = True
        yield b"\n".join([*encode_lines([last]), b""])


def _csv_line(values: Sequence[str]) -> bytes:
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
    wire = wire_value(value)
    return next(iter(wire.values())) if isinstance(wire, dict) else msgspec.json.encode(wire).decode()
