"""A bound on how often: so many a second, and so many at once (a token bucket). Pure."""

from __future__ import annotations


class Rate:
    __slots__ = ("_burst", "_left", "_per_s", "_seen_s")

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = float(burst)
        self._seen_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Whether one more may pass now. `now_s` is of any clock that does not go back."""
        if self._seen_s is not None:
            self._left = min(self._burst, self._left + (now_s - self._seen_s) * self._per_s)
        self._seen_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
