"""The words of the log: epochs, cursors, pages, and what its writer, its readers and the deliveries
from one to the others promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdchub.catalog import Catalog, TableSchema
from cdchub.change import Entry, SqliteValue
from cdchub.errors import CdchubError
from cdchub.position import Epoch, Lsn, Position


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the log. Epoch *numbers* compare, in the order in which the epochs were lived."""

    epoch: int
    lsn: int


@dataclass(frozen=True, slots=True)
class EpochInfo:
    """One epoch as the log holds it: positions from `floor_lsn` to `head_lsn` can be served.

    `floor_lsn` is the LSN before the oldest retained entry. It starts as the LSN that the source
    had when the epoch began, which need not be 0, and grows with retention. `base_lsn` is that of
    the oldest complete base snapshot, if there is one.
    """

    number: int
    epoch: Epoch
    floor_lsn: int
    head_lsn: int
    base_lsn: int | None = None

    def position(self, lsn: int) -> Position:
        return Position(self.epoch, Lsn(lsn))


@dataclass(frozen=True, slots=True)
class LogState:
    """All epochs that the log still holds, oldest first. The last one is the present one."""

    epochs: tuple[EpochInfo, ...]

    @property
    def present(self) -> EpochInfo:
        return self.epochs[-1]

    def by_name(self, epoch: Epoch) -> EpochInfo | None:
        return next((info for info in self.epochs if info.epoch == epoch), None)

    def by_number(self, number: int) -> EpochInfo | None:
        return next((info for info in self.epochs if info.number == number), None)


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in LSN order. Everything that matches up to `scanned_to` is in it or came before."""

    entries: Sequence[Entry]
    scanned_to: int


class Expired(CdchubError):
    """The log no longer holds what follows the cursor: retention was faster than the reader."""


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What the log may leave out of a page: it may send more, never less.

    `tables` is None for all. `room` narrows further, and only where one table is read.
    """

    tables: tuple[str, ...] | None = None
    room: SqliteValue = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How much history the log keeps; whichever bound is met first. The newest entry always stays.

    `to_bases`: changes go only up to a newer complete base snapshot, so that what is kept always
    begins with one.
    """

    age_s: float
    changes_max: int
    bytes_max: int
    to_bases: bool = True


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """A base snapshot: every captured row as it was at `lsn`. `bytes` count its JSON lines."""

    id: int
    epoch: int
    lsn: int
    rows: int
    bytes: int
    taken_ms: int
    tables: tuple[TableSchema, ...]


@dataclass(frozen=True, slots=True)
class BaseChunk:
    """Some rows of one table in a base: SNAPSHOT changes as lines, compressed with zlib."""

    table: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SourceMark:
    """What the log remembers of its source, to notice that it is another one, or was put back.

    `boot_id` names the run of the operating system: under synchronous NORMAL, commits that were
    streamed may be lost when the machine, not only the process, goes down.
    """

    install_id: str
    inode: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of the present epoch: its last LSN, that row's nonce, and its data if it has one."""

    lsn: int
    nonce: int | None
    data: bytes | None


class LogConflict(Exception):
    """An entry stands under this key already, and it is another one."""


class KnownRows(Protocol):
    """What some tables hold by the log: rows by key, both as JSON. See `log.replica`."""

    def knows(self, table: str) -> bool: ...

    def overwritten(self, table: str) -> bool: ...

    def count(self, table: str) -> int: ...

    def find(self, table: str, keys: Sequence[bytes]) -> dict[bytes, bytes]: ...

    def rows(self, table: str) -> Iterator[tuple[bytes, bytes]]: ...

    def close(self) -> None: ...


class AppendLog(Protocol):
    """The log as its one writer sees it. Every method is called on the writer's thread."""

    def belongs_to(self, mark: SourceMark, *, just_installed: bool) -> str | None: ...

    def expect(self, install_id: str) -> None: ...

    def adopt(self, mark: SourceMark) -> None: ...

    def start_epoch(
        self, *, base_lsn: int, base_nonce: int | None, now_ms: int, reason: str
    ) -> Epoch: ...

    def state(self) -> LogState: ...

    def tail(self) -> Tail: ...

    def append(
        self, epoch_number: int, entries: Sequence[Entry], *, nonce: int, timestamp_ms: int
    ) -> None: ...

    def bytes_since(self, epoch_number: int, lsn: int) -> int: ...

    def bases(self) -> list[BaseInfo]: ...

    def begin_base(
        self, epoch_number: int, lsn: int, tables: Sequence[TableSchema], *, now_ms: int
    ) -> int: ...

    def add_to_base(self, base_id: int, chunks: Sequence[BaseChunk]) -> None: ...

    def finish_base(self, base_id: int, *, rows: int, bytes: int) -> None: ...

    def drop_unfinished_base(self) -> None:
        """Lets go of what was half-written."""
        ...

    def known_rows(
        self,
        tables: Sequence[str],
        *,
        rows_max: int,
        as_told: bool = False,
        give_up: Callable[[], bool] = ...,
    ) -> KnownRows | None: ...

    def catch_up(self, known: KnownRows) -> None: ...

    def sync(self) -> None: ...

    def checkpoint(self) -> None: ...

    def retain(self, bounds: Retention, *, now_ms: int) -> int: ...

    def overdue(self, bounds: Retention, *, now_ms: int) -> bool: ...

    def close_cleanly(self) -> None: ...

    def is_gone(self) -> bool: ...

    def begin_anew(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Appended:
    """Entries that are in the log now. `source_head_lsn`: how far the source itself had got;
    `nonce`: that of the last entry's row, if it is known."""

    entries: Sequence[Entry]
    source_head_lsn: int
    nonce: int | None


@dataclass(frozen=True, slots=True)
class HistoryChanged:
    """The log's epochs or their floors are others now; a new last epoch is a break.

    `head_nonce` is that of the row at the present epoch's head, if there is one. `skipped`:
    deliveries go on at that head, and not where the last one ended.
    """

    state: LogState
    head_nonce: int | None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class SchemaChanged:
    catalog: Catalog


Delivery = Appended | HistoryChanged | SchemaChanged
