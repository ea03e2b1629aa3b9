"""`cdchub verify`: replays the log from its base snapshot and compares with the live tables.

It may run while writers write and a hub serves: the live rows are read in one transaction, and the
log is replayed up to exactly the change which that transaction saw last.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

from cdchub.capture.connection import source_paths
from cdchub.capture.outbox import Anchor
from cdchub.capture.snapshot import SnapshotStale, Spool, take_snapshot
from cdchub.catalog import Selection, SnapshotFormat
from cdchub.change import keyed_row
from cdchub.cli.rebuild import Files
from cdchub.errors import NotVerifiable
from cdchub.log import Replica
from cdchub.log.protocol import Cursor, EpochInfo

_SNAPSHOT_S = 3_600.0
_BATCH_ROWS = 500
# Differences of one table that are shown; the rest is counted.
_SHOWN_MAX = 20
_SHOWN_CHARS_MAX = 200


@dataclass(slots=True)
class Report:
    """What was found: rows that agree and that differ, by table, and a line for each difference."""

    agree: Counter[str] = field(default_factory=Counter)
    differ: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def difference(self, table: str, key: bytes, *, log: bytes | None, live: bytes | None) -> None:
        self.differ[table] += 1
        if self.differ[table] <= _SHOWN_MAX:
            self.lines.append(f"{table} {_shown(key)}: log {_shown(log)}, table {_shown(live)}")


def run(options: argparse.Namespace) -> int:
    files = Files(source_paths(options.database))
    try:
        epoch = files.present()
        spool = _live_rows(files, epoch)
        try:
            replica = files.replica(epoch, spool.lsn)
            try:
                report = compare(replica, spool)
            finally:
                replica.close()
        finally:
            spool.close()
    finally:
        files.close()
    for line in report.lines:
        print(line)
    for table in report.unknown:
        print(
            f"cdchub: {table}: not known since a break; compared after the next base", file=sys.stderr
        )
    position = epoch.position(spool.lsn)
    checked = [table for table in spool.tables if table not in report.unknown]
    if report.differ:
        counts = ", ".join(f"{table}: {count}" for table, count in report.differ.items())
        print(f"different at {position}: rows by table: {counts}")
        return 1
    print(f"verified at {position}: {sum(report.agree.values())} rows of {len(checked)} tables agree")
    return 0


def _live_rows(files: Files, epoch: EpochInfo) -> Spool:
    """The present rows, in the history that the log tells. Raises `NotVerifiable`."""
    head = Cursor(epoch.number, epoch.head_lsn)
    try:
        return take_snapshot(
            files.paths,
            Selection(None),
            format=SnapshotFormat.CHANGES,
            anchor=Anchor(head.lsn, files.reader.nonce_at(head)),
            timeout_s=_SNAPSHOT_S,
            folder=Path(tempfile.gettempdir()),
        )
    except SnapshotStale as error:
        raise NotVerifiable(f"{error}: start the hub, or run `cdchub init`, and try again") from error


def compare(replica: Replica, spool: Spool) -> Report:
    """Compares the live rows with a replica of the same LSN, which is used up by it."""
    report = Report(unknown=[table for table in spool.tables if not replica.knows(table)])
    unknown = set(report.unknown)
    spool.file.seek(0)
    rows = (keyed_row(line) for line in spool.file)
    for table, of_table in groupby(rows, key=lambda row: row.table):
        while table not in unknown and (batch := list(islice(of_table, _BATCH_ROWS))):
            held = replica.take(table, [row.key for row in batch])
            for row in batch:
                log = held.get(row.key)
                if log == row.row:
                    report.agree[table] += 1
                else:
                    report.difference(table, row.key, log=log, live=row.row)
    for table in replica.schemas:
        for key, log in replica.rows(table):
            report.difference(table, key, log=log, live=None)
    return report


def _shown(text: bytes | None) -> str:
    if text is None:
        return "has no row"
    shown = text.decode()
    return shown if len(shown) <= _SHOWN_CHARS_MAX else shown[: _SHOWN_CHARS_MAX - 1] + "…"
