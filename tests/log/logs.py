"""A log on a real file, with its writer and a reader, and entries to put into it."""

from __future__ import annotations

from pathlib import Path

from cdchub.change import ChangeType, Entry, SqliteValue
from cdchub.log import LogReader, LogWriter
from cdchub.log.protocol import (
    Cursor,
    Narrowing,
    Retention,
    SourceMark,
)

ALL = Narrowing()
MARK = SourceMark("install", 7, "boot")
FOREVER = Retention(age_s=1e12, changes_max=10**9, bytes_max=2**40)


def entry(
    lsn: int,
    table: str = "t",
    old: SqliteValue = None,
    new: SqliteValue = None,
    *,
    kind: ChangeType = ChangeType.INSERT,
) -> Entry:
    return Entry(lsn, kind, table, old, new, b'{"txid":%d,"commit":true}' % lsn)


class Log:
    def __init__(self, folder: Path) -> None:
        (folder / "app.db").touch()
        self.path = folder / "app.db-cdchub"
        self.writer = LogWriter(self.path, database=folder / "app.db")
        self.reader = LogReader(self.path)

    def begin(self, base: int = 0) -> int:
        self.writer.start_epoch(base_lsn=base, base_nonce=None, now_ms=0, reason="new")
        return self.writer.state().present.number

    def append(self, epoch: int, entries: list[Entry], ts: int = 0) -> None:
        self.writer.append(epoch, entries, nonce=entries[-1].lsn * 11, timestamp_ms=ts)

    def lsns(
        self, after: int, upto: int, narrowing: Narrowing = ALL, *, epoch: int = 1, rows: int = 99
    ) -> list[int]:
        page = self.reader.read(
            Cursor(epoch, after), upto=upto, narrowing=narrowing, rows_max=rows, bytes_max=10**6
        )
        return [e.lsn for e in page.entries]

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
