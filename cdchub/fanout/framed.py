"""The ring's recent changes, framed once for all who catch up on the same feed.

After a restart or a cut, thousands resume a little behind the head. Each is served slices of the same
blocks of bytes. Bounded in bytes; the block that was used longest ago is let go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from cdchub.change import ChangeType, Entry, is_commit
from cdchub.fanout.feed import Feed
from cdchub.fanout.present import Present

# LSNs a block: at some 300 bytes a change that is a page of 75 KiB.
_BLOCK_LSNS = 256
_OVERHEAD_BYTES = 500


class Part(NamedTuple):
    """Some frames, and the LSN up to which they go. `is_open`: the last of their changes does not end
    its transaction; None where there is no change."""

    data: bytes
    upto: int
    is_open: bool | None


class _Block(NamedTuple):
    """The frames of a feed's changes after `start` up to `end`; `offsets` say where each begins."""

    start: int
    end: int
    lsns: Sequence[int]
    commits: Sequence[bool]
    offsets: Sequence[int]
    data: bytes

    @property
    def weight(self) -> int:
        """Bytes, with what the objects around them take: a block without a match has some too."""
        return len(self.data) + 24 * len(self.lsns) + _OVERHEAD_BYTES


class FramedRing:
    def __init__(self, present: Present, *, bytes_max: int, page_bytes: int) -> None:
        """Holds `bytes_max`, and serves about `page_bytes` at a time."""
        self._present = present
        self._bytes_max = bytes_max
        self._page_bytes = page_bytes
        self._bytes = 0
        self._blocks: OrderedDict[tuple[Feed, int], _Block] = OrderedDict()
        # By feed, which of its blocks are held.
        self._numbers: dict[Feed, set[int]] = {}

    def clear(self) -> None:
        """Another history, or other matchers."""
        self._blocks.clear()
        self._numbers.clear()
        self._bytes = 0

    def forget(self, feed: Feed) -> None:
        for number in self._numbers.pop(feed, ()):
            self._drop((feed, number))

    def _drop(self, key: tuple[Feed, int]) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self._bytes -= block.weight

    def after(self, feed: Feed, lsn: int) -> Part | None:
        """Some of what follows `lsn`, which must be in the ring.

        None where a break of one of the feed's tables is among it.
        """
        key = (feed, lsn // _BLOCK_LSNS)
        block = self._blocks.get(key)
        if block is None or not block.start <= lsn < block.end:
            made = self._make(feed, lsn)
            if made is None:
                return None
            self._drop(key)
            block = self._blocks[key] = made
            self._numbers.setdefault(feed, set()).add(key[1])
            self._bytes += block.weight
        self._blocks.move_to_end(key)
        while self._bytes > self._bytes_max and len(self._blocks) > 1:
            oldest = next(iter(self._blocks))
            self._drop(oldest)
            self._numbers[oldest[0]].discard(oldest[1])
        return _part(block, lsn, bytes_max=self._page_bytes)

    def _make(self, feed: Feed, lsn: int) -> _Block | None:
        first = lsn - lsn % _BLOCK_LSNS
        view = self._present.view
        start = max(first, view.ring_floor_lsn)
        entries = self._present.recent(start, first + _BLOCK_LSNS)
        if any(_breaks(entry, feed) for entry in entries):
            return None
        items = feed.matcher.items(entries)
        frames = feed.frames(view.log.present.epoch, items)
        offsets = [0, *accumulate(map(len, frames))]
        lsns, commits = [lsn for lsn, _ in items], [is_commit(data) for _, data in items]
        return _Block(start, entries[-1].lsn, lsns, commits, offsets, b"".join(frames))


def _part(block: _Block, lsn: int, *, bytes_max: int) -> Part:
    """What a block has after `lsn`, or the first `bytes_max` of that, one change at the least."""
    first = bisect_right(block.lsns, lsn)
    begin = block.offsets[first]
    last = max(first + 1, bisect_right(block.offsets, begin + bytes_max) - 1)
    if last < len(block.lsns):
        data = block.data[begin : block.offsets[last]]
        return Part(data, block.lsns[last - 1], not block.commits[last - 1])
    is_open = None if first == len(block.lsns) else not block.commits[-1]
    return Part(block.data[begin:], block.end, is_open)


def _breaks(entry: Entry, feed: Feed) -> bool:
    return entry.type is ChangeType.BREAK and feed.matcher.covers(entry.table)
