"""The change log: append-only, keyed by (epoch number, LSN), and its recent tail in memory."""

from cdchub.log.file import mark_of
from cdchub.log.reader import LogReader
from cdchub.log.replica import Replica
from cdchub.log.ring import Ring
from cdchub.log.writer import LogWriter

__all__ = ["LogReader", "LogWriter", "Replica", "Ring", "mark_of"]
