"""The ring's recent changes, framed once for all who catch up on the same feed.

After a restart or a cut, thousands resume a little behind the head. Each is served slices of the same
blocks of bytes. Bounded in bytes; the block that was used longest ago is let go. A slice is bounded
too, because changes may be large, and what a reader holds of it is its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from cdchub.change import ChangeType, Entry
from cdchub.fanout.feed import Feed
from cdchub.fanout.present import Present

# LSNs a block: at some 300 bytes a change that is a page of 75 KiB.
_BLOCK_LSNS = 256


class _Block(NamedTuple):
    """The frames of a feed's changes after `start` up to `end`; `offsets` say where each begins."""

    start: int
    end: int
    lsns: Sequence[int]
    offsets: Sequence[int]
    data: bytes


class FramedRing:
    def __init__(self, present: Present, *, bytes_max: int, slice_bytes_max: int) -> None:
        """A slice has `slice_bytes_max` bytes, or else one frame."""
        self._present = present
        self._bytes_max = bytes_max
        self._slice_bytes_max = slice_bytes_max
        self._bytes = 0
        self._blocks: OrderedDict[tuple[Feed, int], _Block] = OrderedDict()

    def clear(self) -> None:
        """Another history, or other matchers."""
        self._blocks.clear()
        self._bytes = 0

    def forget(self, feed: Feed) -> None:
        for key in [key for key in self._blocks if key[0] is feed]:
            self._bytes -= len(self._blocks.pop(key).data)

    def after(self, feed: Feed, lsn: int) -> tuple[bytes, int] | None:
        """Some of what follows `lsn`, which must be in the ring, and the LSN up to which that goes.

        None where a break of one of the feed's tables is among it.
        """
        key = (feed, lsn // _BLOCK_LSNS)
        block = self._blocks.get(key)
        if block is None or not block.start <= lsn < block.end:
            made = self._make(feed, lsn)
            if made is None:
                return None
            if block is not None:
                self._bytes -= len(block.data)
            block = self._blocks[key] = made
            self._bytes += len(block.data)
        self._blocks.move_to_end(key)
        while self._bytes > self._bytes_max and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._bytes -= len(oldest.data)
        place = bisect_right(block.lsns, lsn)
        start = block.offsets[place]
        if len(block.data) - start <= self._slice_bytes_max:
            return block.data[start:], block.end
        stop = max(place + 1, bisect_right(block.offsets, start + self._slice_bytes_max) - 1)
        return block.data[start : block.offsets[stop]], block.lsns[stop - 1]

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
        return _Block(start, entries[-1].lsn, [lsn for lsn, _ in items], offsets, b"".join(frames))


def _breaks(entry: Entry, feed: Feed) -> bool:
    return entry.type is ChangeType.BREAK and feed.matcher.covers(entry.table)
