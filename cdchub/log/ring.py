"""The recent tail of the present epoch in memory: what lagging readers are served from first.

Invariant: its entries are contiguous in LSN, so an entry is found by subtraction. Bounded in bytes;
what falls out is still in the log. It holds one entry at least, however large.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from cdchub.change import Entry

# What one entry costs beside its JSON: the object, its fields and its place in the list, measured
# with sys.getsizeof and rounded up.
ENTRY_OVERHEAD_BYTES = 400


class Ring:
    def __init__(self, *, bytes_max: int, head_lsn: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: list[Entry] = []
        self._start = 0
        self.head_lsn = head_lsn

    @property
    def floor_lsn(self) -> int:
        """The lowest LSN after which this ring has everything."""
        return self.head_lsn - len(self)

    @property
    def bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries) - self._start

    def extend(self, entries: Sequence[Entry]) -> None:
        """Appends the next entries and lets the oldest go. Raises ValueError on a gap or repeat."""
        expected = range(self.head_lsn + 1, self.head_lsn + 1 + len(entries))
        if [entry.lsn for entry in entries] != list(expected):
            raise ValueError(f"these LSNs do not follow {self.head_lsn}, one by one")
        held = self._entries
        held.extend(entries)
        self.head_lsn += len(entries)
        size = self._bytes + len(entries) * ENTRY_OVERHEAD_BYTES
        size += sum([len(entry.data) for entry in entries])
        start, newest = self._start, len(held) - 1
        while size > self._bytes_max and start < newest:
            size -= len(held[start].data) + ENTRY_OVERHEAD_BYTES
            start += 1
        self._bytes, self._start = size, start
        if self._start > len(self._entries) // 4:
            # Moving the rest down once per quarter keeps the cost of letting go constant per entry.
            del self._entries[: self._start]
            self._start = 0

    def after(self, lsn: int, *, rows_max: int, bytes_max: int | None = None) -> Sequence[Entry]:
        """The entries that follow `lsn`, at most `rows_max`, and no further ones when their data has
        `bytes_max`. `lsn` must not be below the floor."""
        if lsn < self.floor_lsn:
            raise ValueError(f"LSN {lsn} has left the ring, which begins after {self.floor_lsn}")
        first = self._start + lsn - self.floor_lsn
        found = self._entries[first : first + rows_max]
        if bytes_max is not None:
            sizes = accumulate(len(entry.data) for entry in found)
            found = found[: 1 + sum(size < bytes_max for size in sizes)]
        return found

    def restart(self, *, head_lsn: int) -> None:
        """Empties the ring for a new epoch, whose next LSN is `head_lsn` + 1."""
        self._entries.clear()
        self._start = 0
        self._bytes = 0
        self.head_lsn = head_lsn
