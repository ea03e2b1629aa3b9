"""Where the tailer is: the anchor and what the outbox holds below it; and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from cdchub.capture.outbox import Anchor
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
    retained: int = 0
    commits_exact: int = 0
    commits_merged: int = 0
    changes_too_large: int = 0
    bases_taken: int = 0
    bases_failed: int = 0
    differences: int = 0
    audits_suspicious: int = 0
    audits_failed: int = 0
    last_commit_ms: int = 0
    failing: str | None = None
    warnings: list[str] = field(default_factory=list)


class Progress:
    """Where the tailer is: the anchor, and how much the outbox holds below it."""

    def __init__(self, anchor: Anchor, *, pruned_lsn: int, now_s: float) -> None:
        self.anchor = anchor
        self.moved_s = now_s
        self.outbox_bytes = 0
        self.pruning = False
        self.prune_below = 0
        self._pruned_lsn = pruned_lsn
        self._pruned_s = now_s

    def moved_to(self, anchor: Anchor, *, now_s: float) -> None:
        self.anchor = anchor
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

    def patience_s(self, config: CaptureConfig, now_s: float) -> float:
        """How long to wait for a hint before looking without one."""
        since_s = now_s - self.moved_s
        # A commit's hint may have come together with that of the one before, and was not visible then.
        for settled_s in config.settle_s:
            if since_s < settled_s:
                return settled_s - since_s
        if not self.prune_wanted(config, now_s):
            return config.safety_look_s
        # A prune waits for a pause, and so does its next slice.
        return max(0.0, config.prune_quiet_s - since_s)
