"""Recent changes, framed once for all who catch up: always what framing them one by one would give."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cdchub.catalog import Selection
from cdchub.fanout import Feed, Present
from cdchub.fanout.framed import FramedRing
from cdchub.log import Ring
from cdchub.sse import SseFramer
from tests.fanout.world import CATALOG, SimLog, SimSource

FEEDS = (Selection(None), Selection(("a",)), Selection(("c",), "x"), Selection(("b", "c"), "y"))


class World:
    """A ring that forgets, and what was committed."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.source = SimSource(folder / "sim-cdchub", rng)
        self.log = SimLog(folder / "sim-cdchub", rng)
        self.present = Present(
            history=self.source.history,
            catalog=CATALOG,
            ring=Ring(bytes_max=400_000, head_lsn=0),
            log=self.log,
        )

    def close(self) -> None:
        self.source.close()
        self.log.reader.close()

    def commit(self, count: int) -> None:
        delivery = self.source.commit(count)
        self.present.append(
            delivery.entries, source_head_lsn=delivery.source_head_lsn, nonce=delivery.nonce
        )

    def expected(self, feed: Feed, after: int, upto: int) -> bytes:
        entries = [e for e in self.source.committed[1] if after < e.lsn <= upto]
        return b"".join(feed.frames(self.present.head.epoch, feed.matcher.items(entries)))


@pytest.mark.parametrize("seed", range(4))
def test_slices_of_shared_blocks_are_what_each_reader_would_get(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    world = World(tmp_path, rng)
    page_bytes = rng.choice([1, 700, 100_000])
    framed = FramedRing(world.present, bytes_max=rng.choice([1, 10**6]), page_bytes=page_bytes)
    framer = SseFramer()
    feeds = [Feed(selection, CATALOG, framer) for selection in FEEDS]
    try:
        for _ in range(25):
            world.commit(rng.choice((1, 5, 300)))
            view = world.present.view
            for _ in range(5):
                feed, lsn = rng.choice(feeds), rng.randint(view.ring_floor_lsn, view.head_lsn)
                while lsn < view.head_lsn:
                    found = framed.after(feed, lsn)
                    assert found is not None
                    data, upto = found.data, found.upto
                    assert upto > lsn
                    assert data == world.expected(feed, lsn, upto)
                    assert len(data) <= page_bytes or data.count(b"data: ") == 1
                    ended = data.endswith(b'"commit":true}\n\n')
                    assert found.is_open == (not ended if data else None)
                    lsn = upto
    finally:
        world.close()


def test_a_block_with_a_break_is_left_to_be_read_entry_by_entry(tmp_path: Path) -> None:
    world = World(tmp_path, random.Random(1))
    framed = FramedRing(world.present, bytes_max=10**6, page_bytes=10**6)
    try:
        world.commit(3)
        broken = world.source.schema_break("a")
        world.present.append(broken.entries, source_head_lsn=4, nonce=None)
        framer = SseFramer()
        assert framed.after(Feed(Selection(("a",)), CATALOG, framer), 0) is None
        assert framed.after(Feed(Selection(("b",)), CATALOG, framer), 0) is not None
    finally:
        world.close()
