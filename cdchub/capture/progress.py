"""Where the tailer is: the anchor, the open transaction, what the outbox holds; and its counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cdchub.capture.outbox import Anchor, Decoder, RawRow
from cdchub.change import Entry
from cdchub.config import CaptureConfig


@dataclass(slots=True)
class CaptureCounters:
    """What happened since the start; one writer, the tailer's thread, read by anyone."""

    changes: int = 0
    batches: int = 0
    busy: int = 0
    faults: int = 0
    epochs_started: int = 0
    breaks: int = 0
    prunes_quiet: int = 0
    prunes_forced: int = 0
    rows_pruned: int = 0
    entries_expired: int = 0
    last_commit_ms: int = 0
    failing: str | None = None
    warnings: list[str] = field(default_factory=list)


class Progress:
    """Where the tailer is: the anchor, the open transaction, and how much the outbox holds."""

    def __init__(self, anchor: Anchor, *, pruned_lsn: int, now_s: float) -> None:
        self.anchor = anchor
        self.moved_s = now_s
        self.outbox_bytes = 0
        self.pruning = False
        self.prune_below = 0
        self._pruned_lsn = pruned_lsn
        self._pruned_s = now_s
        self._txid: int | None = None
        self._commit_lsn = 0

    def resume(self, txid: int, *, commit: bool) -> None:
        """Takes up the transaction of the log's last entry, if it had not ended there."""
        if not commit:
            self._txid = txid

    def entries(self, rows: Sequence[RawRow], head_lsn: int, decoder: Decoder) -> list[Entry]:
        """The rows as entries with their transactions: a snapshot's rows are one transaction.

        A transaction that is larger than a batch goes on in the next one, up to the head that was
        seen when it began.
        """
        entries: list[Entry] = []
        rest = rows
        while rest:
            if self._txid is None or self._commit_lsn == 0:
                self._txid = self._txid or rest[0].lsn
                self._commit_lsn = head_lsn
            inside = self._commit_lsn - rest[0].lsn + 1
            part, rest = rest[:inside], rest[inside:]
            entries += decoder.entries(part, txid=self._txid, commit_lsn=self._commit_lsn)
            if part[-1].lsn == self._commit_lsn:
                self._txid, self._commit_lsn = None, 0
        return entries

    def moved_to(self, row: RawRow, *, now_s: float) -> None:
        self.anchor = Anchor(row.lsn, row.nonce)
        self.moved_s = now_s

    @property
    def _prunable(self) -> int:
        return self.anchor.lsn - 1 - self._pruned_lsn

    def prune_wanted(self, config: CaptureConfig, now_s: float) -> bool:
        old = now_s - self._pruned_s > config.prune_soft_age_s
        return self.pruning or self._prunable >= (1 if old else config.prune_soft_rows)

    def prune_due(self, config: CaptureConfig, now_s: float) -> bool:
        """Whether to prune now, in a pause."""
        pause_s = now_s - self.moved_s
        return pause_s >= config.prune_quiet_s and self.prune_wanted(config, now_s)

    def prune_forced(self, config: CaptureConfig, now_s: float) -> bool:
        return self._prunable > 0 and (
            self._prunable >= config.prune_hard_rows
            or self.outbox_bytes >= config.prune_hard_bytes
            or now_s - self._pruned_s > config.prune_hard_age_s
        )

    def begin_prune(self) -> None:
        self.pruning = True
        # The anchor itself stays: it is how a restored source is recognised.
        self.prune_below = self.anchor.lsn

    def end_prune(self, *, now_s: float) -> None:
        self.pruning = False
        self._pruned_lsn = self.prune_below - 1
        self._pruned_s = now_s
        self.outbox_bytes = 0
