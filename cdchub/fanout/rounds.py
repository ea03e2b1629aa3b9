"""What capture delivers, as rounds of writes to those who are live.

A delivery that comes while nothing is being written goes out at once. While a round is written,
deliveries pile up, and the next round takes them all in one frame a feed: the busier the hub, the
fewer writes a change costs. When that happens the loop is nearly full, and a pause as long as the
round was, of some milliseconds at the most, halves the number of writes once more.

A round goes to those who were live when it began, a slice an iteration of the loop, so that ten
thousand writes don't hold up new connections and other streams. Inside a round some of the live ones
stand behind the head: whatever asks where a subscriber stands, or changes who is live, waits for
the round's end (`when_between`). Only who closes is passed over at once.

A transaction's last change may be one that a feed does not see. Its readers are told where it ended:
by a position behind it, in the round that brought the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from cdchub.change import ChangeType, Entry, ends_transaction, is_commit
from cdchub.config import StreamConfig
from cdchub.fanout.feed import Feed
from cdchub.fanout.feeds import Feeds
from cdchub.fanout.present import Present
from cdchub.fanout.subscriber import SubscriberState
from cdchub.log.protocol import Appended, Cursor, Delivery, HistoryChanged, SchemaChanged
from cdchub.position import Lsn, Position

logger = logging.getLogger("cdchub.fanout")


class _Job:
    """The same bytes to each live subscriber of a feed."""

    __slots__ = ("data", "members", "writes")

    def __init__(self, data: bytes, feed: Feed) -> None:
        self.data = data
        self.members = list(feed.live)
        self.writes = list(feed.live.values())


class Round:
    """What goes out to those who are live at its beginning."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        # Whether somebody has closed since, so that each must be looked at.
        self.somebody_closed = False
        self._jobs: list[_Job] = []
        self._job = 0
        self._place = 0

    def add(self, data: bytes, feed: Feed) -> None:
        self._jobs.append(_Job(data, feed))

    def write(self, writes_max: int) -> bool:
        """Writes the next slice. False when all is written."""
        left = writes_max
        while self._job < len(self._jobs) and left > 0:
            job, start = self._jobs[self._job], self._place
            part = job.writes[start : start + left]
            if self.somebody_closed:
                members = job.members[start : start + left]
                part = [m.sink.write for m in members if m.state is SubscriberState.LIVE]
            data = job.data
            for write in part:
                write(data)
            self._place = min(start + left, len(job.writes))
            left -= self._place - start
            if self._place == len(job.writes):
                self._job, self._place = self._job + 1, 0
        return self._job < len(self._jobs)


class Rounds:
    """`taken` is called once for each `Appended` delivery that has been taken in; `met_break` when
    the history of a feed's tables is interrupted behind the cursor; `became_whole` after a round that
    brought the head to the end of a transaction; `failed` when a round could not be made or written, so
    that some live ones may have missed it."""

    def __init__(
        self,
        present: Present,
        feeds: Feeds,
        config: StreamConfig,
        *,
        taken: Callable[[], None],
        met_break: Callable[[Feed, Cursor], None],
        became_whole: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self._present = present
        self._feeds = feeds
        self._config = config
        self._taken = taken
        self._met_break = met_break
        self._became_whole = became_whole
        self._failed = failed
        self._deliveries: deque[Delivery] = deque()
        self._round: Round | None = None
        self._between: list[Callable[[], None]] = []
        # Feeds whose live readers have a part of a transaction, and not its last change.
        self._open: dict[Feed, None] = {}
        self._pause: asyncio.TimerHandle | None = None
        self.fault: str | None = None

    def accept(self, delivery: Delivery) -> None:
        """Takes in what capture delivers, in order. Called on the loop."""
        self._deliveries.append(delivery)
        if self._round is None and self._pause is None:
            self._go_on()

    def when_between(self, action: Callable[[], None]) -> None:
        """Does it now, or at the end of the round that is being written."""
        if self._round is None:
            action()
        else:
            self._between.append(action)

    def somebody_closed(self) -> None:
        """One that was live is passed over from here on."""
        if self._round is not None:
            self._round.somebody_closed = True

    def stop(self) -> None:
        self._round = None
        self._deliveries.clear()
        if self._pause is not None:
            self._pause.cancel()

    def _go_on(self) -> None:
        """Works deliveries off, until a round is under way or none is left."""
        self._pause = None
        if self._round is not None:
            return
        with self._noting_faults():
            while self._deliveries and self._round is None:
                self._take_next()

    @contextlib.contextmanager
    def _noting_faults(self) -> Iterator[None]:
        """What capture delivers must fit, and go out; if it doesn't, somebody has to know."""
        try:
            yield
        except Exception as fault:
            self._round = None
            self.fault = f"a delivery could not be taken: {fault}"
            logger.exception("fan-out has a fault, restart the hub: %s", fault)
            self._failed()
            self._run_between()
            # What was delivered since must not wait, and capture not for its tokens.
            asyncio.get_running_loop().call_soon(self._go_on)

    def _run_between(self) -> None:
        waiting, self._between = self._between, []
        for action in waiting:
            with self._noting_faults():
                action()

    def _take_next(self) -> None:
        present = self._present
        match self._deliveries[0]:
            case Appended():
                self._begin_round()
            case HistoryChanged() as history:
                self._deliveries.popleft()
                before = present.cursor
                if present.take_history(history):
                    self._open.clear()
                    self._feeds.framed.clear()
                    for feed in self._feeds:
                        self._met_break(feed, before)
            case SchemaChanged(catalog):
                self._deliveries.popleft()
                present.catalog = catalog
                self._feeds.recatalog(catalog)
        present.tell()

    def _begin_round(self) -> None:
        before, entries = self._present.cursor, self._append()
        broken = {entry.table for entry in entries if entry.type is ChangeType.BREAK}
        for feed in self._feeds if broken else ():
            if any(map(feed.matcher.covers, broken)):
                self._met_break(feed, before)
        round_ = Round(asyncio.get_running_loop().time())
        for feed, frames in self._frames(entries).items():
            if feed.live:
                round_.add(b"".join(frames), feed)
        self._round = round_
        self._write_slice()

    def _frames(self, entries: Sequence[Entry]) -> dict[Feed, list[bytes]]:
        """What each feed's live readers get of these entries."""
        epoch = self._present.head.epoch
        found = self._feeds.index.concerned(entries)
        frames = {feed: feed.frames(epoch, items) for feed, items in found.items() if feed.live}
        for feed in frames:
            if is_commit(found[feed][-1][1]):
                self._open.pop(feed, None)
            else:
                self._open[feed] = None
        ends = (entry.lsn for entry in reversed(entries) if ends_transaction(entry))
        if self._open and (end := next(ends, 0)):
            for feed in [*self._open]:
                # What it got last may belong to the next transaction, whose end is to come.
                if feed not in found or found[feed][-1][0] < end:
                    del self._open[feed]
                    position = Position(epoch, Lsn(end))
                    frames.setdefault(feed, []).append(feed.framer.transaction_end(position))
        return frames

    def _append(self) -> list[Entry]:
        """Takes in what has piled up, as far as one round may carry it."""
        found: list[Entry] = []
        room = self._config.round_bytes_max
        while self._deliveries and room > 0:
            delivery = self._deliveries[0]
            if not isinstance(delivery, Appended):
                break
            count = 0
            while count < len(delivery.entries) and room > 0:
                room -= len(delivery.entries[count].data)
                count += 1
            part, rest = delivery.entries[:count], delivery.entries[count:]
            source_head_lsn = delivery.source_head_lsn
            # The nonce is the last row's.
            nonce = None if rest else delivery.nonce
            if rest:
                self._deliveries[0] = Appended(rest, source_head_lsn, delivery.nonce)
            else:
                self._deliveries.popleft()
                self._taken()
            self._present.append(part, source_head_lsn=source_head_lsn, nonce=nonce)
            found += part
        return found

    def _write_slice(self) -> None:
        if self._round is None:
            return
        with self._noting_faults():
            more = self._round.write(self._config.slice_writes)
            # The transports send at the end of this iteration of the loop; their time counts.
            then = self._write_slice if more else self._end_round
            asyncio.get_running_loop().call_soon(then)

    def _end_round(self) -> None:
        round_, self._round = self._round, None
        if round_ is None:
            return
        self._run_between()
        if self._present.is_whole:
            self._became_whole()
        if self._deliveries and self._pause is None:
            loop = asyncio.get_running_loop()
            took_s = loop.time() - round_.began_s
            self._pause = loop.call_later(min(took_s, self._config.tick_s), self._go_on)
