"""Whether a log's history can go on with this source, and how a new one begins.

A restored older copy must never look like "nothing new". The log remembers the row that it copied
last, by LSN and nonce, and the source keeps that row: if it is another one or gone, the history is
broken. A new epoch begins too when the machine went down under an unclean hub, because commits that
were streamed may be lost with it.

A new epoch begins at what the source holds just then, and a base snapshot of exactly that comes
with it: so every history that the log tells has a beginning.
"""

from __future__ import annotations

import logging
import time

from cdchub.capture import install
from cdchub.capture.base_keeper import BaseKeeper
from cdchub.capture.base_reader import Pinned
from cdchub.capture.choice import Choice, wanted_shapes
from cdchub.capture.connection import read_transaction, write_transaction
from cdchub.capture.outbox import Anchor, HistoryBroken, check_anchor, outbox_head
from cdchub.capture.schema import Schema
from cdchub.capture.source import Source
from cdchub.log.protocol import AppendLog

logger = logging.getLogger("cdchub.capture")


def break_in_history(source: Source, log: AppendLog) -> str | None:
    """Why the log can't go on with this source, in a word, or None where it can.

    Raises `ForeignLog` where the log is another database's.
    """
    reason = log.belongs_to(source.mark(), just_installed=False)
    if reason is not None:
        return reason
    tail = log.tail()
    try:
        with read_transaction(source.connection):
            check_anchor(source.connection, Anchor(tail.lsn, tail.nonce))
    except HistoryBroken as broken:
        logger.warning("the source is not the one that was read before (%s)", broken)
        return "restored"
    return None


def begin_history(
    source: Source,
    log: AppendLog,
    bases: BaseKeeper,
    choice: Choice | None,
    reason: str | None,
    *,
    strict: bool,
) -> install.Outcome:
    """Begins a new epoch from what the source holds now, installing capture or mending it.

    Raises `TableRefused`, if `strict`, for what the choice names and can't be captured.
    """
    pinned: Pinned | None = None
    connection = source.connection
    try:
        with write_transaction(connection):
            # It sees the source without this transaction, and nothing else can come between.
            pinned = Pinned(source.paths)
            outcome = install.reconcile(connection, choice, strict=strict, silent=True)
            base = outbox_head(connection)
            source.schema_version = connection.pragma("schema_version")
            if outcome.fresh:
                # Before the source has it: a crash in between must not make the log a foreign one.
                log.expect(outcome.captured.install_id)
        source.take(outcome.captured)
        mark = source.mark()
        if outcome.fresh:
            reason = log.belongs_to(mark, just_installed=True) or reason
        now_ms = time.time_ns() // 1_000_000
        epoch = log.start_epoch(
            base_lsn=base.lsn, base_nonce=base.nonce, now_ms=now_ms, reason=reason or "new"
        )
        if reason != "new":
            logger.warning("a new epoch begins: %s (%s)", epoch, reason)
        captured = outcome.captured
        shapes = [captured.shapes[table_id] for table_id in sorted(captured.active)]
        bases.begin(log.state().present.number, pinned, shapes)
        pinned = None
    finally:
        if pinned is not None:
            pinned.close()
    log.adopt(mark)
    source.begin(log.tail())
    return outcome


def continue_history(
    source: Source, log: AppendLog, bases: BaseKeeper, choice: Choice | None, *, strict: bool
) -> bool:
    """Takes up the log's present epoch. Returns whether capture has to be brought in line.

    Raises `TableRefused`, if `strict`, for what the choice names and can't be captured.
    """
    connection = source.connection
    log.adopt(source.mark())
    bases.begin(log.state().present.number, None, ())
    source.begin(log.tail())
    with read_transaction(connection):
        if strict and choice is not None:
            wanted_shapes(Schema(connection), choice, [], strict=True)
        source.schema_version = connection.pragma("schema_version")
        return install.suspects(connection, choice) is not None
