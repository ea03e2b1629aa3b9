"""One seeded run of the fan-out in a simulated world, and its judge: no gap, no repeat, order, whole
transactions, and never more bytes held for a reader than the bounds allow, whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path

from cdchub.catalog import Selection
from cdchub.change import ChangeType
from cdchub.config import StreamConfig
from cdchub.fanout import EntryRows, Matcher
from cdchub.sse import SseFramer
from tests.fanout.world import CATALOG, TABLES, SimClient, SimLog, SimSource, make_core

CONFIG = StreamConfig(
    buffer_bytes_max=1_500,
    page_rows=7,
    page_bytes=2_000,
    heartbeat_s=3600,
    conflate_bytes_max=3_000,
    # Rounds of a few changes, written a few subscribers at a time.
    round_bytes_max=700,
    slice_writes=2,
    tick_s=1e-6,
    turns_per_iteration=3,
)
# A line that is full gets nothing new. What filled it was a round or a page; a page's frames are
# somewhat longer than its changes; and notices (a reset, a heartbeat) may come along.
_FRAME_BYTES = 40
_NOTICES_BYTES = 1_000
HELD_BYTES_MAX = (
    CONFIG.buffer_bytes_max + CONFIG.page_bytes + CONFIG.page_rows * _FRAME_BYTES + _NOTICES_BYTES
)

FILTERED = {
    CATALOG.select(["a"], None, filters=["room=eq.x"]): lambda table, key, room: room == "x",
    CATALOG.select(["*"], "y", filters=["a.id=in.(1,3,4)", "b.room=is.null", "c.id=lt.4"]): (
        lambda table, key, room: {"a": key in (1, 3, 4), "b": room is None, "c": key < 4}[table]
    ),
}


class Simulation:
    def __init__(self, seed: int, folder: Path, *, steps: int, breaks_max: int = 3) -> None:
        """`breaks_max`: how often an older copy of the source comes back."""
        self._steps = steps
        self._breaks_max = breaks_max
        self.rng = random.Random(seed)
        self.source = SimSource(folder / "sim-cdchub", self.rng)
        self.log = SimLog(folder / "sim-cdchub", self.rng)
        self.core = make_core(self.source, self.log, self.rng, CONFIG)
        framer = SseFramer()
        selections = [
            Selection(("a",)),
            Selection(("b", "c")),
            Selection(None),
            Selection(("c",), "x"),
            Selection(("a", "c"), "y"),
            *FILTERED,
        ]
        self.clients = [
            SimClient(
                self.source,
                self.core,
                framer,
                selection,
                snapshot=snapshot,
                conflate=conflate,
                buffer_bytes_max=CONFIG.buffer_bytes_max,
            )
            for selection in selections
            # Whoever conflates does not get every change, but all rows in the end.
            for snapshot, conflate in ((False, False), (True, False), (True, True))
        ]
        self.breaks = 0

    async def run(self) -> None:
        running = asyncio.create_task(self.core.run())
        await asyncio.sleep(0)
        try:
            for client in self.clients:
                client.connect()
            for _ in range(self._steps):
                self._step()
                for _ in range(self.rng.randrange(6)):
                    await asyncio.sleep(0)
            await self._settle()
            for client in self.clients:
                self._judge(client)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            self.source.close()
            self.log.reader.close()

    def _step(self) -> None:
        draw, client = self.rng.random(), self.rng.choice(self.clients)
        if draw < 0.30:
            self._commit()
        elif draw < 0.75:
            client.take(self.rng.choice((10, 200, 5_000)))
        elif draw < 0.85:
            client.cut()
            client.connect()
        elif draw < 0.90:
            self.core.heartbeat()
        elif draw < 0.93:
            self._end_transaction()
            self.core.accept(self.source.schema_break(self.rng.choice(TABLES)))
        elif draw < 0.96:
            self.core.accept(self.source.retain(self.rng.choice((5, 100, 400))))
        elif draw < 0.98:
            self._end_transaction()
            self.source.back_up()
        elif self.breaks < self._breaks_max:
            self.breaks += 1
            self.core.accept(self.source.restore())

    def _commit(self) -> None:
        """A transaction, or a part of a large one; the next steps bring the rest."""
        if self.source.rest[1]:
            self.core.accept(self.source.go_on(self.rng.choice((1, 5, 30))))
        else:
            count = self.rng.choice((1, 1, 2, 5, 30))
            upto = self.rng.randint(1, count) if self.rng.random() < 0.3 else count
            self.core.accept(self.source.commit(count, upto=upto))

    def _end_transaction(self) -> None:
        if self.source.rest[1]:
            self.core.accept(self.source.go_on(self.source.rest[1]))

    async def _settle(self) -> None:
        """Lets every reader take everything there is."""
        self._end_transaction()
        quiet = 0
        while quiet < 300:
            moved = False
            for client in self.clients:
                if not client.connected:
                    client.connect()
                    moved = True
                assert client.sink is not None
                moved = moved or client.sink.buffered_bytes > 0
                client.take(2**20)
            await asyncio.sleep(0)
            quiet = 0 if moved else quiet + 1

    def _judge(self, client: SimClient) -> None:
        client.cut()
        assert 0 < client.most_bytes <= HELD_BYTES_MAX, "more was held than the bounds allow"
        assert client.open_txid is None, "nothing told that the last transaction is whole"
        matcher = Matcher(client.selection, CATALOG)
        assert client.begun_at is not None
        epoch, begun_lsn = client.begun_at
        present = self.source.history.state.present
        assert epoch == present.epoch, "a reader was left behind in an older history"
        expected = [
            json.loads(data)["lsn"]
            for entry in self.source.committed[present.number]
            if entry.lsn > begun_lsn and entry.type is not ChangeType.BREAK
            if (data := matcher.data(EntryRows(entry))) is not None
        ]
        if not client.snapshot:
            assert client.received == expected
        else:
            # A schema break inside brings the rows of one table again, at a later LSN.
            assert client.received == sorted(set(client.received)), "a repeat or disorder"
            rooms = CATALOG.rooms(client.selection)
            for info in CATALOG.chosen(client.selection):
                rows = self.source.rows[info.name]
                inside = FILTERED.get(client.selection, lambda table, key, room: True)
                wanted = {
                    k: r
                    for k, r in rows.items()
                    if (info.name not in rooms or r == rooms[info.name]) and inside(info.name, k, r)
                }
                assert client.rows[info.name] == wanted
