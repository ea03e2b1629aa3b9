"""The tables as the log and the outbox know them, rebuilt from a file without a hub's help.

It only reads. A hub may serve the file meanwhile: rows then move from the outbox into the log and are
pruned, so where the outbox doesn't continue what was applied, the log is read again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cdchub.capture import install
from cdchub.capture.connection import (
    SourcePaths,
    open_source,
    read_transaction,
    translated,
)
from cdchub.capture.decode import Decoder
from cdchub.capture.driver import Connection
from cdchub.capture.outbox import LSN, NONCE, Anchor, HistoryBroken, outbox_head, read_rows
from cdchub.errors import NoBase, NotCaptured, NotVerifiable
from cdchub.log import LogReader, Replica
from cdchub.log.protocol import Cursor, EpochInfo, Expired

_BATCH_ROWS = 1_000
# How often what is neither in the log nor in the outbox is looked for again: a hub carries rows from
# one to the other in milliseconds, and then prunes them half a second later at the earliest.
_LOOKS_MAX = 1_000


@dataclass(slots=True)
class Files:
    """A source and its log, open for reading. Raises `StartError` where either is not there."""

    paths: SourcePaths
    connection: Connection
    reader: LogReader

    def __init__(self, paths: SourcePaths) -> None:
        self.paths = paths
        self.connection = open_source(paths, read_only=True)
        try:
            with translated(paths):
                if not install.is_installed(self.connection):
                    raise NotCaptured(os.fspath(paths.database))
            if not paths.log.exists():
                raise NoBase(os.fspath(paths.log), "there is no change log")
            self.reader = LogReader(paths.log)
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        self.reader.close()
        self.connection.close()

    def present(self) -> EpochInfo:
        """The log's present epoch. Raises `NoBase` where no hub has begun one."""
        state = self.reader.state()
        if not state.epochs:
            raise NoBase(os.fspath(self.paths.log), "the change log is empty")
        return state.present

    def head_lsn(self) -> int:
        """How far the source itself has got."""
        return outbox_head(self.connection).lsn

    def replica(self, epoch: EpochInfo, lsn: int, *, tables: Sequence[str] | None = None) -> Replica:
        """The tables (all, or some) at an LSN of an epoch. Raises `NoBase` or `NotVerifiable`."""
        start = Cursor(epoch.number, min(lsn, epoch.head_lsn))
        replica = self.reader.replica(start, tables=tables)
        if replica is None:
            oldest = "none" if epoch.base_lsn is None else f"LSN {epoch.base_lsn}"
            raise NoBase(
                os.fspath(self.paths.log),
                f"the log has no base snapshot at or before LSN {lsn} (the oldest is at: {oldest})",
            )
        try:
            self.catch_up(replica, epoch.number, lsn)
        except BaseException:
            replica.close()
            raise
        return replica

    def catch_up(self, replica: Replica, epoch_number: int, lsn: int) -> None:
        """Applies what the log, and above it the outbox, have up to `lsn`.

        Raises `NotVerifiable` where they don't fit together.
        """
        broken: HistoryBroken | None = None
        for _ in range(_LOOKS_MAX):
            if replica.lsn >= lsn:
                return
            info = self.reader.state().by_number(epoch_number)
            if info is None:
                break
            try:
                self.reader.advance(replica, Cursor(epoch_number, min(lsn, info.head_lsn)))
            except Expired:
                break
            # The row that the log ends with must be the outbox's too.
            nonce = self.reader.nonce_at(Cursor(epoch_number, replica.lsn))
            anchor: Anchor | None = Anchor(replica.lsn, nonce)
            try:
                while anchor is not None:
                    with read_transaction(self.connection):
                        anchor = apply_outbox(self.connection, replica, anchor, upto=lsn)
            except HistoryBroken as error:
                # A hub has taken these rows into the log and pruned them, or the source is another one.
                broken = error
        else:
            why = broken or f"LSN {lsn} is neither in the log nor in the outbox"
            raise NotVerifiable(
                f"the outbox does not continue the log ({why}): if the database was restored or"
                " replaced, start the hub, which begins a new epoch, and try again"
            )
        raise NotVerifiable("the log has moved on meanwhile: try again")


def apply_outbox(
    connection: Connection, replica: Replica, after: Anchor, *, upto: int | None = None
) -> Anchor | None:
    """Applies the next rows of the outbox after the replica's last one, and returns what is now its
    last; None where there are none. Raises `HistoryBroken`.

    To be called in a transaction, whose own rows are among them.
    """
    captured = install.load(connection)
    rows = read_rows(connection, after=after, captured=captured, limit=_BATCH_ROWS)
    rows = [row for row in rows if upto is None or row[LSN] <= upto]
    if not rows:
        return None
    nobody = [0] * len(rows)
    replica.apply(Decoder(captured).entries(rows, nobody, [False] * len(rows)))
    return Anchor(rows[-1][LSN], rows[-1][NONCE])
