"""Rounds: what piles up goes out together, in slices; and a round that fails leaves nobody behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cdchub.catalog import Selection
from cdchub.config import StreamConfig
from cdchub.fanout import Core
from cdchub.sse import SseFramer
from tests.fanout.world import SimClient, SimLog, SimSource, make_core

CONFIG = StreamConfig(slice_writes=2, tick_s=1e-6)


class World:
    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.source = SimSource(folder / "sim-cdchub", rng)
        self.log = SimLog(folder / "sim-cdchub", rng)
        self.core: Core = make_core(self.source, self.log, rng, CONFIG)
        self._framer = SseFramer()

    def client(self) -> SimClient:
        client = SimClient(
            self.source,
            self.core,
            self._framer,
            Selection(None),
            snapshot=False,
            buffer_bytes_max=2**20,
        )
        client.connect()
        assert client.sink is not None
        client.sink.take(2**20)
        return client

    def commit(self, count: int = 1) -> None:
        self.core.accept(self.source.commit(count))


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    made = World(folder, random.Random(1))
    running = asyncio.create_task(made.core.run())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        made.source.close()
        made.log.reader.close()


async def turns(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("ten thousand turns of the loop were not enough")


def events(client: SimClient) -> int:
    assert client.sink is not None
    return bytes(client.sink._buffer).count(b"data: ")


async def test_the_first_slice_of_a_round_goes_out_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        clients = [made.client() for _ in range(5)]
        made.commit()
        assert [events(client) for client in clients] == [1, 1, 0, 0, 0]
        await turns(lambda: all(events(client) for client in clients))


async def test_what_comes_during_a_round_is_one_write_of_the_next(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        clients = [made.client() for _ in range(5)]
        writes: list[bytes] = []
        made.commit()
        last = clients[-1].subscriber
        assert last is not None
        write = last.sink.write
        last.feed.live[last] = lambda data: (writes.append(data), write(data))[1]
        for _ in range(3):
            made.commit()
        await turns(lambda: all(events(client) == 4 for client in clients))
        assert [data.count(b"data: ") for data in writes] == [3]


async def test_who_joins_during_a_round_gets_only_what_follows_it(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        clients = [made.client() for _ in range(5)]
        made.commit()
        late = made.client()
        made.commit()
        await turns(lambda: all(events(client) == 2 for client in clients))
        assert events(late) == 1


async def test_who_leaves_during_a_round_is_passed_over(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        clients = [made.client() for _ in range(5)]
        made.commit()
        # A write after close would fail the sink's own assertion, and the round with it.
        clients[-1].cut()
        await turns(lambda: events(clients[3]) == 1)
        made.commit()
        await turns(lambda: events(clients[3]) == 2)
        assert made.core.fault is None


async def test_a_round_that_fails_cuts_off_who_may_have_missed_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as made:
        clients = [made.client() for _ in range(5)]
        victim = clients[3].subscriber
        assert victim is not None

        def broken(data: bytes) -> None:
            raise RuntimeError("no such transport")

        victim.feed.live[victim] = broken
        made.commit()
        await turns(lambda: made.core.fault is not None)
        assert made.core.subscriber_count == 0
        assert all(client.sink is not None and client.sink.closed for client in clients)
        assert "no such transport" in caplog.text
        # The hub itself goes on for those who come back.
        back = made.client()
        made.commit()
        assert events(back) == 1


async def test_after_a_fault_what_has_piled_up_goes_on(tmp_path: Path) -> None:
    """Capture waits for its deliveries to be taken: none may be left behind a round that failed."""
    async with world(tmp_path) as made:
        clients = [made.client() for _ in range(5)]
        victim = clients[3].subscriber
        assert victim is not None

        def broken(data: bytes) -> None:
            raise RuntimeError("no such transport")

        victim.feed.live[victim] = broken
        for _ in range(8):
            made.commit()
        await turns(lambda: made.core.present.head.lsn == 8)


async def test_an_action_that_fails_is_not_the_others_affair(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        for _ in range(5):
            made.client()
        done: list[str] = []

        def fails() -> None:
            raise RuntimeError("not mine")

        made.commit()
        made.core._rounds.when_between(fails)
        made.core._rounds.when_between(lambda: done.append("mine"))
        made.commit()
        await turns(lambda: made.core.present.head.lsn == 2)
        assert done == ["mine"]
