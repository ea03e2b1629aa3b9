"""`conflate=1`: of a backlog, only the last state of each key, in the order of their last LSNs.

What a reader sees of each change is decided first, so that a row which left its view and changed on
outside is told as gone. Bounded in bytes: when that many are held, they are sent, and a key that
changes again later is sent again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cdchub.change import as_conflated, key_of
from cdchub.fanout.feed import Item


class Conflation:
    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._last: dict[tuple[str, bytes], Item] = {}
        self._bytes = 0

    def add(self, items: Iterable[Item]) -> None:
        for item in items:
            key = key_of(item[1])
            # Popped first, so that the dict stays in the order of the last LSNs.
            before = self._last.pop(key, None)
            if before is not None:
                self._bytes -= len(before[1])
            self._last[key] = item
            self._bytes += len(item[1])

    @property
    def is_full(self) -> bool:
        return self._bytes > self._bytes_max

    def take(self) -> list[Item]:
        """What is held, as conflated changes; then nothing is held."""
        items = [(lsn, as_conflated(data)) for lsn, data in self._last.values()]
        self._last.clear()
        self._bytes = 0
        return items


def batched(items: Sequence[Item], *, rows_max: int, bytes_max: int) -> Iterator[Sequence[Item]]:
    """As many at a time as the bounds allow, and one at least."""
    start, size = 0, 0
    for place, (_, data) in enumerate(items):
        if place > start and (place - start == rows_max or size + len(data) > bytes_max):
            yield items[start:place]
            start, size = place, 0
        size += len(data)
    if items:
        yield items[start:]
