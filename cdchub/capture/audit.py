"""A look now and then whether capture still sees everything.

Writers can escape it: by switching triggers off on their connection, or by editing sqlite_schema. So
each table's triggers are looked at, and its rows counted: since the last audit their number must have
changed by what was captured. Counting is cheap and finds most escapes, not all: an UPDATE changes no
count (`cdchub verify` compares every row).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cdchub.capture.connection import read_transaction
from cdchub.capture.outbox import OP, TABLE, OutboxRow, outbox_head
from cdchub.capture.schema import Schema
from cdchub.capture.source import Source
from cdchub.capture.standing import stands
from cdchub.capture.table import Shape, quote
from cdchub.config import CaptureConfig

CANNOT_COMPARE = (
    "audit: table {!r} has another number of rows than its captured changes add up to; REPLACE and "
    "triggers can do that too, and it can't be compared here: `cdchub verify` tells"
)
_NET = {"c": 1, "d": -1}


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something about one table that should not be. `certain`: no comparison is needed to know."""

    table: str
    why: str
    certain: bool
    table_id: int
    # How many rows capture's changes are too few by.
    surplus: int = 0


class Auditor:
    """Used by the tailer's thread between its reads; one table a turn."""

    def __init__(self, config: CaptureConfig) -> None:
        self._config = config
        # The first one counts what there is, to compare the next one with.
        self._due_s = 0.0
        self._queue: list[int] = []
        self._rows: dict[int, int] = {}
        self._net: Counter[int] = Counter()

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def begin(self, kept: Collection[int] = ()) -> None:
        """The history, or what is captured, is another: what was counted before says nothing, but of
        the tables that are captured as before. Those are audited soon: under a unique index that came
        and went unseen, REPLACE removes rows that no trigger tells of."""
        self._queue.clear()
        self._rows = {table_id: rows for table_id, rows in self._rows.items() if table_id in kept}
        self._net = Counter({table_id: net for table_id, net in self._net.items() if table_id in kept})
        self._due_s = 0.0

    def captured(self, rows: Sequence[OutboxRow]) -> None:
        """Takes note of rows that were carried into the log."""
        kinds = Counter([(row[TABLE], row[OP]) for row in rows])
        for (table_id, op), count in kinds.items():
            if op in _NET:
                self._net[table_id] += _NET[op] * count

    def turn(self, source: Source) -> Suspicion | None:
        """Audits one table if it is time. To be called when there is nothing to read."""
        now_s = time.monotonic()
        if not self._queue:
            if now_s < self._due_s:
                return None
            self._due_s = now_s + self._config.audit_every_s
            self._queue = sorted(source.captured.active)
            if not self._queue:
                return None
        table_id = self._queue[-1]
        shape = source.captured.shapes[table_id]
        with read_transaction(source.connection):
            version = source.connection.pragma("schema_version")
            head_lsn = outbox_head(source.connection).lsn
            if head_lsn != source.progress.anchor.lsn or version != source.schema_version:
                # Somebody was quicker: first the log gets what they wrote.
                return None
            standing = stands(Schema(source.connection), shape, table_id)
            rows = self._count(source, shape)
        self._queue.pop()
        if not standing:
            why = "its triggers are not the ones that were made"
            return Suspicion(shape.name, why, certain=True, table_id=table_id)
        return self._compare(table_id, shape, rows)

    def _count(self, source: Source, shape: Shape) -> int | None:
        """The table's rows; None where counting them would take too long."""
        most = self._config.audit_rows_max
        limited = f"SELECT count(*) FROM (SELECT 1 FROM {quote(shape.name)} LIMIT {most + 1})"
        rows = int(source.connection.value(limited))
        return rows if rows <= most else None

    def _compare(self, table_id: int, shape: Shape, rows: int | None) -> Suspicion | None:
        before, net = self._rows.pop(table_id, None), self._net.pop(table_id, 0)
        if rows is None:
            return None
        # Not the rows that are there: what escaped is missing until it is mended or explained.
        expected = rows if before is None else before + net
        self._rows[table_id] = expected
        if expected == rows:
            return None
        why = f"it holds {rows} rows, {expected} by what was captured"
        return Suspicion(shape.name, why, certain=False, table_id=table_id, surplus=rows - expected)

    def settle(self, suspicion: Suspicion) -> None:
        """The rows are all as they were told, though their number is another."""
        self._rows[suspicion.table_id] += suspicion.surplus
