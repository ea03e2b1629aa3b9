"""Taking a base snapshot for the log: all captured rows at one LSN.

A thread reads the source in one transaction, at disk speed, into a file without a name; the tailer
then copies that into the log, a slice a turn. So the source's WAL is held back no longer than the
reading takes, and the log has one writer.
"""

from __future__ import annotations

import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from cdchub.capture import install
from cdchub.capture.connection import SourcePaths, open_source
from cdchub.capture.driver import Connection
from cdchub.capture.outbox import outbox_head
from cdchub.capture.snapshot import Pace, Rows, snapshot_changes
from cdchub.capture.table import Shape
from cdchub.capture.telling import schema_of
from cdchub.catalog import TableSchema
from cdchub.change import encode_lines
from cdchub.log.protocol import BaseChunk

# JSON lines compressed together: what one read of a base holds in memory.
_CHUNK_BYTES = 256 * 2**10
# Fast, and rows of one table have much in common.
_ZLIB_LEVEL = 1
# What the tailer copies into the log in one turn: some 10 ms.
_SLICE_BYTES = 1 * 2**20


class Pinned:
    """A read transaction on the source that sees it as it is now, whatever is committed later."""

    def __init__(self, paths: SourcePaths) -> None:
        self.connection = open_source(paths, read_only=True)
        try:
            self.connection.execute("BEGIN")
            # Only a read takes the snapshot (sqlite.org/isolation.html).
            self.connection.execute("SELECT count(*) FROM sqlite_schema")
        except BaseException:
            self.connection.close()
            raise

    def head_lsn(self) -> int:
        """The outbox's head in this snapshot; 0 where nothing is captured yet."""
        return outbox_head(self.connection).lsn if install.is_installed(self.connection) else 0

    def close(self) -> None:
        self.connection.close()


@dataclass(frozen=True, slots=True)
class _Place:
    table: str
    offset: int
    size: int


class BaseSpool:
    """A base that has been read: its rows in a file, as compressed chunks."""

    def __init__(self, lsn: int, tables: Sequence[TableSchema], file: IO[bytes]) -> None:
        self.lsn = lsn
        self.tables = tables
        self.rows = 0
        self.bytes = 0
        self._file = file
        self._places: list[_Place] = []

    def write(self, table: str, lines: Sequence[bytes]) -> None:
        data = b"\n".join(lines)
        packed = zlib.compress(data, _ZLIB_LEVEL)
        self._places.append(_Place(table, self._file.tell(), len(packed)))
        self._file.write(packed)
        self.rows += len(lines)
        self.bytes += len(data)

    def slices(self) -> Iterator[list[BaseChunk]]:
        """The chunks, some at a time."""
        part: list[BaseChunk] = []
        size = 0
        for place in self._places:
            self._file.seek(place.offset)
            part.append(BaseChunk(place.table, self._file.read(place.size)))
            size += place.size
            if size >= _SLICE_BYTES:
                yield part
                part, size = [], 0
        yield part

    def close(self) -> None:
        self._file.close()


def read_base(
    paths: SourcePaths,
    connection: Connection,
    lsn: int,
    shapes: Sequence[Shape],
    *,
    timeout_s: float,
    stop: threading.Event,
) -> BaseSpool:
    """Reads a base in the transaction that is open on `connection`.

    Raises `SnapshotTooSlow`, `SqliteFault` or OSError (a full disk).
    """
    file = tempfile.TemporaryFile(dir=paths.database.parent)  # noqa: SIM115 - the spool owns it
    try:
        spool = BaseSpool(lsn, [schema_of(connection, shape) for shape in shapes], file)
        pace = Pace(timeout_s, stop)
        for shape in shapes:
            lines: list[bytes] = []
            size = 0
            for changes in snapshot_changes(connection, Rows(shape), lsn, pace):
                part = encode_lines(changes)
                lines += part
                size += sum(map(len, part))
                if size >= _CHUNK_BYTES:
                    spool.write(shape.name, lines)
                    lines, size = [], 0
            if lines:
                spool.write(shape.name, lines)
        file.flush()
        return spool
    except BaseException:
        file.close()
        raise


class BaseReading:
    """One reading of a base in a thread of its own. `done` calls back when it has ended."""

    def __init__(
        self,
        paths: SourcePaths,
        pinned: Pinned | None,
        shapes: Sequence[Shape] | None,
        *,
        timeout_s: float,
        done: Callable[[], None],
    ) -> None:
        """`pinned` and `shapes`: what is to be read, or None for the present."""
        self._paths = paths
        self._pinned = pinned
        self._shapes = shapes
        self._timeout_s = timeout_s
        self._done = done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cdchub-base")
        self._result: BaseSpool | Exception | None = None
        self._thread.start()

    @property
    def ended(self) -> bool:
        # Not whether the thread lives: it does while it calls `done`, and nobody would look again.
        return self._result is not None

    def result(self) -> BaseSpool:
        """What was read. Raises what went wrong."""
        self._thread.join()
        assert self._result is not None
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def cancel(self) -> None:
        """Ends the reading, and lets go of what it has."""
        self._stop.set()
        self._thread.join()
        if isinstance(self._result, BaseSpool):
            self._result.close()

    def _run(self) -> None:
        try:
            self._result = self._read()
        except Exception as error:
            # The tailer takes it from `result`.
            self._result = error
        self._done()

    def _read(self) -> BaseSpool:
        pinned = self._pinned or Pinned(self._paths)
        try:
            shapes = self._shapes
            if shapes is None:
                captured = install.load(pinned.connection)
                shapes = [captured.shapes[table_id] for table_id in sorted(captured.active)]
            return read_base(
                self._paths,
                pinned.connection,
                pinned.head_lsn(),
                shapes,
                timeout_s=self._timeout_s,
                stop=self._stop,
            )
        finally:
            pinned.close()
