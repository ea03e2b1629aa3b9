"""Whether a log's history can go on with this source, and where a new one begins.

A restored older copy must never look like "nothing new". The log remembers the row that it copied
last, by LSN and nonce, and the source keeps that row: if it is another one or gone, the history is
broken. A new epoch begins too when the machine went down under an unclean hub, because commits that
were streamed may be lost with it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cdchub.capture.connection import SourcePaths, read_transaction
from cdchub.capture.driver import Connection
from cdchub.capture.outbox import Anchor, HistoryBroken, check_anchor
from cdchub.log.protocol import AppendLog, SourceMark

logger = logging.getLogger("cdchub.capture")


def source_mark(paths: SourcePaths, install_id: str) -> SourceMark:
    """What the log shall remember of the source as it is now."""
    return SourceMark(install_id, paths.database.stat().st_ino, _boot_id())


def break_in_history(connection: Connection, log: AppendLog, mark: SourceMark) -> str | None:
    """Why the log can't go on with this source, in a word, or None where it can.

    Raises `ForeignLog` where the log is another database's.
    """
    reason = log.belongs_to(mark, just_installed=False)
    if reason is not None:
        return reason
    tail = log.tail()
    try:
        with read_transaction(connection):
            check_anchor(connection, Anchor(tail.lsn, tail.nonce))
    except HistoryBroken as broken:
        logger.warning("the source is not the one that was read before (%s)", broken)
        return "restored"
    return None


def _boot_id() -> str:
    """Names the present run of the operating system; empty where it can't be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
