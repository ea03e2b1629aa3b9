"""Bringing capture in line with the schema while writers write, and telling followers by difference.

What the log knows of a table is compared with what the table holds, so the log must have everything
that was committed, and nobody may commit meanwhile: the source's write lock is held for that moment,
and given back as long as somebody was quicker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import count

from cdchub.capture import install
from cdchub.capture.choice import Choice
from cdchub.capture.connection import read_transaction, write_transaction
from cdchub.capture.difference import differs
from cdchub.capture.outbox import outbox_head
from cdchub.capture.source import Batch, Source
from cdchub.capture.telling import TOLD_ROWS_MAX
from cdchub.config import CaptureConfig
from cdchub.log.protocol import AppendLog, KnownRows

# How often the lock is given back to read what somebody else has written; then writers wait.
_QUIET_TRIES_MAX = 20
# For how long what has changed is looked for anew because more has by then: each look takes as long
# as reading what the log knows of it.
_LOOKS_S_MAX = 3.0


class Finding(Enum):
    """What comparing a table with the log has shown."""

    AS_TOLD = auto()
    OTHERWISE = auto()
    UNDER_WAY = auto()  # somebody is writing; later it can be told
    UNKNOWN = auto()  # the log has no base snapshot of it, or it is too large to compare here


class Mender:
    """`append` carries a batch into the log, and on to its followers."""

    def __init__(
        self,
        log: AppendLog,
        choice: Choice | None,
        *,
        append: Callable[[Batch], None],
        config: CaptureConfig,
        stopping: Callable[[], bool],
    ) -> None:
        """`stopping`: whether the hub is about to end, so that what can wait does."""
        self._log = log
        self._stopping = stopping
        self._compare_s_max = config.compare_s_max
        self._choice = choice
        self._append = append
        self._batch_rows = config.batch_rows

    def reconcile(
        self, source: Source, *, strict: bool, escaped: Sequence[str]
    ) -> install.Outcome | None:
        """Brings capture in line; None where somebody else has done that already.

        `escaped`: tables that were changed without capture. Raises `TableRefused`, if `strict`.
        """
        until_s = time.monotonic() + _LOOKS_S_MAX
        while True:
            with read_transaction(source.connection):
                suspects = install.suspects(source.connection, self._choice)
                version = source.connection.pragma("schema_version")
            if suspects is None and not escaped:
                source.schema_version = version
                return None
            names = sorted({*(suspects or ()), *escaped})
            known = None
            if names:
                known = self._log.known_rows(names, rows_max=2 * TOLD_ROWS_MAX, as_told=bool(escaped))
            # A script alters one table after the other, each in a transaction of its own. Whoever never
            # stops has the tables reset that came too late.
            names_max = None if time.monotonic() > until_s else frozenset(names)
            try:
                outcome = self._reconcile_with(source, known, names_max, strict=strict, escaped=escaped)
            finally:
                if known is not None:
                    known.close()
            if outcome is not None:
                return outcome

    def _reconcile_with(
        self,
        source: Source,
        known: KnownRows | None,
        names_max: frozenset[str] | None,
        *,
        strict: bool,
        escaped: Sequence[str],
    ) -> install.Outcome | None:
        """None where more tables than `names_max` have changed by now: nothing was done then."""
        self._read_up(source)
        for attempt in count(1):
            with write_transaction(source.connection):
                batch = source.read_batch(self._batch_rows)
                if not batch.rows or attempt > _QUIET_TRIES_MAX:
                    # Nobody can write now. What the log has then is all that has happened.
                    while batch.rows:
                        self._append(batch)
                        batch = source.read_batch(self._batch_rows)
                    suspects = install.suspects(source.connection, self._choice)
                    if names_max is not None and not names_max.issuperset(suspects or ()):
                        return None
                    if known is not None:
                        self._log.catch_up(known)
                    outcome = install.reconcile(
                        source.connection,
                        self._choice,
                        strict=strict,
                        known=known,
                        escaped=escaped,
                    )
                    source.schema_version = source.connection.pragma("schema_version")
                    return outcome
            # Somebody was quicker: what they wrote goes to the log without the lock in our hands.
            self._append(batch)
        raise AssertionError("count() has no end")

    def _read_up(self, source: Source) -> None:
        """Brings the log to where the source is now, so that little is left to do under the lock."""
        head_lsn = outbox_head(source.connection).lsn
        while source.progress.anchor.lsn < head_lsn:
            with read_transaction(source.connection):
                batch = source.read_batch(self._batch_rows)
            if not batch.rows:
                return
            self._append(batch)

    def compare(self, source: Source, table: str) -> Finding:
        """Whether a table holds exactly what the log has told."""
        until_s = time.monotonic() + self._compare_s_max
        known = self._log.known_rows(
            [table],
            rows_max=TOLD_ROWS_MAX,
            as_told=True,
            give_up=lambda: self._stopping() or time.monotonic() > until_s,
        )
        if known is None:
            return Finding.UNDER_WAY if self._stopping() else Finding.UNKNOWN
        try:
            with read_transaction(source.connection):
                shapes = [source.captured.shapes[i] for i in source.captured.active]
                shape = next((shape for shape in shapes if shape.name == table), None)
                if shape is None or not known.knows(table) or known.count(table) > TOLD_ROWS_MAX:
                    return Finding.UNKNOWN
                if outbox_head(source.connection).lsn != source.progress.anchor.lsn:
                    return Finding.UNDER_WAY
                other = differs(source.connection, known, shape)
                return Finding.OTHERWISE if other else Finding.AS_TOLD
        finally:
            known.close()
