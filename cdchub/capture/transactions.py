"""Which transaction each row belongs to: from where commits end to `txid` and `commit`. Pure.

Rows come in batches, and a transaction may be larger than a batch: it goes on in the next one. Where
the ends are not known, the rows of one read snapshot count as one transaction: it may span several
commits, but never splits one (INTERFACE §2).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Transactions:
    """`known_lsn`: the ends up to there are known; more are to be told before rows beyond it."""

    def __init__(self, *, head_lsn: int, open_txid: int | None = None) -> None:
        """`open_txid`: the log's last transaction, if it had not ended there."""
        self.known_lsn = head_lsn
        self._open_txid = open_txid
        self._ends: list[int] = []

    def learn(self, ends: Sequence[int] | None, *, head_lsn: int) -> None:
        """Takes in the commit ends after `known_lsn` up to `head_lsn`, the last of them; or None
        where they can't be told."""
        if head_lsn > self.known_lsn:
            self._ends += [head_lsn] if ends is None else ends
            self.known_lsn = head_lsn

    def marks(self, first_lsn: int, last_lsn: int) -> tuple[list[int], list[bool]]:
        """`txid` and `commit` of the rows from `first_lsn` to `last_lsn`, in order."""
        txids: list[int] = []
        commits: list[bool] = []
        lsn = first_lsn
        while lsn <= last_lsn:
            txid = lsn if self._open_txid is None else self._open_txid
            end = self._ends[bisect_left(self._ends, lsn)]
            upto = min(end, last_lsn)
            txids += [txid] * (upto - lsn + 1)
            commits += [False] * (upto - lsn) + [upto == end]
            self._open_txid = None if upto == end else txid
            lsn = upto + 1
        del self._ends[: bisect_left(self._ends, lsn)]
        return txids, commits
