"""The two readers of a crowd: one counts any server's events, one follows cdchub's positions.

A `Counter` finds a marker with bytes.count and never parses. A `Follower` checks each LSN against the
one before. A thousand followers of one feed receive the same bytes, so what a piece says is parsed
once and looked up, or compared, by its bytes after that: so one Python process can check a crowd.

Latency is sampled from stamps in a piece as it arrives: the last one and, where it has several, the
first one too, which has waited longest. Taking the last one alone would flatter servers that batch.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from array import array
from typing import Any, ClassVar, cast

from loadtest.progress import Piece, Progress, parse
from loadtest.row_writer import MARKER, STAMP_DIGITS
from loadtest.scroll import LARGE_BYTES, Scroll, parts

# Percentiles are taken from so many samples at most, evenly chosen.
_SAMPLES_MAX = 1_000_000
# Small pieces that are remembered with what they say; of large ones, see `loadtest.scroll`.
_KNOWN_MAX = 512
_HEAD_BYTES_MAX = 16 * 2**10
# l_onoff, l_linger: closing sends RST, so that no port waits for a minute in TIME_WAIT.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Tally:
    """What all readers of a process have received since the last `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.delivered = self.bytes = self.reads = 0
        self.latencies_ns = array("q")
        self.first_read_ns = self.last_read_ns = 0

    def figures(self) -> dict[str, Any]:
        latencies = self.latencies_ns[:: 1 + len(self.latencies_ns) // _SAMPLES_MAX]
        ordered = sorted(latencies)

        def ms(percent: float) -> float | None:
            if not ordered:
                return None
            return round(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] / 1e6, 3)

        return {
            "delivered": self.delivered,
            "bytes": self.bytes,
            "reads": self.reads,
            "firstReadNs": self.first_read_ns,
            "lastReadNs": self.last_read_ns,
            "p50Ms": ms(50),
            "p99Ms": ms(99),
            "maxMs": ms(100),
        }


class Reader(asyncio.Protocol):
    """Asks for a stream, checks the answer's head, and passes on what follows."""

    def __init__(self, tally: Tally, request: bytes, on_open: asyncio.Future[None]) -> None:
        self.tally = tally
        self.request = request
        self.on_open = on_open
        self.transport: asyncio.Transport | None = None
        self.error: str | None = None
        self._head: bytes | None = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self._head is None:
            self.take(data)
            return
        head, found, rest = (self._head + data).partition(b"\r\n\r\n")
        if not found and len(head) < _HEAD_BYTES_MAX:
            self._head = head
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.error = f"the stream was refused: {head[:300]!r}"
            self.cut()
            return
        self._head = None
        if not self.on_open.done():
            self.on_open.set_result(None)
        if rest:
            self.take(rest)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.on_open.done():
            reason = self.error or f"closed before its head: {error}"
            self.on_open.set_exception(ConnectionError(reason))
        self.lost()

    def take(self, data: bytes) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        """The connection has ended, by whomever."""

    def cut(self) -> None:
        """Ends the connection as a broken network does: at once, with no goodbye."""
        if self.transport is None:
            return
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


class Counter(Reader):
    """Counts the marker. One that is cut in two by the network is counted too."""

    _tail = b""

    def take(self, data: bytes) -> None:
        tally, now_ns = self.tally, time.monotonic_ns()
        edge = len(MARKER) - 1
        count = data.count(MARKER) + (self._tail + data[:edge]).count(MARKER)
        self._tail = (self._tail + data[-edge:])[-edge:]
        tally.bytes += len(data)
        tally.reads += 1
        tally.last_read_ns = now_ns
        if count:
            tally.first_read_ns = tally.first_read_ns or now_ns
            tally.delivered += count
            _sample(tally, data, data.rfind(MARKER), now_ns)
            if count > 1:
                _sample(tally, data, data.find(MARKER), now_ns)


def _sample(tally: Tally, data: bytes, at: int, now_ns: int) -> None:
    digits = data[at + len(MARKER) : at + len(MARKER) + STAMP_DIGITS]
    # A stamp at the very end of a piece may lack digits; its sample is left out, not guessed.
    if at >= 0 and len(digits) == STAMP_DIGITS:
        tally.latencies_ns.append(now_ns - int(digits))


class Follower(Reader):
    """One connection of a `Progress`."""

    # Shared by all on purpose: they receive the same bytes.
    known: ClassVar[dict[bytes, Piece]] = {}
    scroll: ClassVar[Scroll] = Scroll()
    # Whether there is more than one; keeping a scroll for oneself would only take time.
    shared: ClassVar[bool] = True

    def __init__(
        self, tally: Tally, request: bytes, on_open: asyncio.Future[None], progress: Progress
    ) -> None:
        super().__init__(tally, request, on_open)
        self.progress = progress
        self.wanted = True
        self.on_lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""

    def take(self, data: bytes) -> None:
        tally, now_ns = self.tally, time.monotonic_ns()
        tally.bytes += len(data)
        tally.reads += 1
        tally.last_read_ns = now_ns
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        if end == 1:
            self._rest = data
            return
        whole, self._rest = (data, b"") if end == len(data) else (data[:end], data[end:])
        if len(whole) < LARGE_BYTES:
            self._follow(whole, now_ns)
            return
        for part in parts(whole):
            if not self._compare(part, now_ns):
                self._follow(part, now_ns)

    def _compare(self, part: bytes, now_ns: int) -> bool:
        """Follows changes that another follower has parsed. Returns whether they are such."""
        tally, progress = self.tally, self.progress
        lsn = self.scroll.reached(progress.lsn, part)
        if lsn is None:
            return False
        at = max(0, part.rfind(b"\n\nid: ") + 2)
        progress.last_id = part[at + 4 : part.index(b"\n", at)]
        progress.changes += lsn - progress.lsn
        tally.delivered += lsn - progress.lsn
        progress.lsn = lsn
        _sample(tally, part, part.find(MARKER), now_ns)
        _sample(tally, part, part.rfind(MARKER), now_ns)
        return True

    def _follow(self, part: bytes, now_ns: int) -> None:
        """Follows whatever it is."""
        tally, progress = self.tally, self.progress
        piece = self.known.get(part)
        if piece is None:
            piece = parse(part)
            if len(part) >= LARGE_BYTES:
                if self.shared and len(piece.steps) == 1 and piece.steps[0].first == progress.lsn + 1:
                    self.scroll.extend(progress.lsn, part)
            else:
                if len(self.known) >= _KNOWN_MAX:
                    self.known.clear()
                self.known[part] = piece
        tally.delivered += piece.changes
        if piece.changes:
            tally.first_read_ns = tally.first_read_ns or now_ns
        for moment_ns in piece.stamps_ns:
            tally.latencies_ns.append(now_ns - moment_ns)
        progress.follow(piece)

    def lost(self) -> None:
        if self.wanted:
            self.progress.cuts += 1
        if not self.on_lost.done():
            self.on_lost.set_result(None)

    def cut(self) -> None:
        self.wanted = False
        super().cut()
