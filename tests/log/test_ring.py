"""The ring: contiguous, bounded, and found by subtraction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdchub.change import ChangeType, Entry
from cdchub.log import Ring
from cdchub.log.ring import ENTRY_OVERHEAD_BYTES


def entry(lsn: int, size: int = 10) -> Entry:
    return Entry(lsn, ChangeType.INSERT, "t", None, None, b"x" * size)


@given(st.lists(st.integers(0, 3_000), max_size=60), st.integers(0, 5), st.integers(1, 5))
def test_a_ring_holds_the_newest_entries_within_its_bound(
    sizes: list[int], base: int, batch: int
) -> None:
    bound = 5_000
    ring = Ring(bytes_max=bound, head_lsn=base)
    entries = [entry(base + 1 + place, size) for place, size in enumerate(sizes)]
    for first in range(0, len(entries), batch):
        ring.extend(entries[first : first + batch])
    assert ring.head_lsn == base + len(sizes)
    kept = list(ring.after(ring.floor_lsn, rows_max=1_000))
    assert kept == entries[len(entries) - len(kept) :]
    assert ring.bytes == sum(len(e.data) + ENTRY_OVERHEAD_BYTES for e in kept)
    assert ring.bytes <= bound or len(kept) == 1
    for lsn in range(ring.floor_lsn, ring.head_lsn + 1):
        assert [e.lsn for e in ring.after(lsn, rows_max=3)] == list(
            range(lsn + 1, min(lsn + 4, ring.head_lsn + 1))
        )


@pytest.mark.parametrize("lsn", [5, 6, 8])
def test_a_ring_takes_only_the_next_entry(lsn: int) -> None:
    ring = Ring(bytes_max=1_000, head_lsn=6)
    with pytest.raises(ValueError, match="do not follow"):
        ring.extend([entry(lsn)])


def test_a_ring_has_nothing_below_its_floor() -> None:
    ring = Ring(bytes_max=1, head_lsn=0)
    ring.extend([entry(1), entry(2)])
    assert ring.floor_lsn == 1
    with pytest.raises(ValueError, match="left the ring"):
        ring.after(0, rows_max=1)


def test_a_ring_starts_anew_for_another_epoch() -> None:
    ring = Ring(bytes_max=10_000, head_lsn=0)
    ring.extend([entry(1), entry(2)])
    ring.restart(head_lsn=40)
    assert (len(ring), ring.bytes, ring.floor_lsn) == (0, 0, 40)
    ring.extend([entry(41)])
    assert [e.lsn for e in ring.after(40, rows_max=9)] == [41]
