"""`cdchub tail --check`: state rebuilt from the stream, compared with the hub's at marked positions.

A mark is a snapshot of one table that the hub gives beside the stream. When the stream has got to its
position, and before anything beyond it is applied, both must hold the same rows: compared by their
number and by a digest that doesn't depend on their order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from cdchub.change import keyed_row
from cdchub.client import Client
from cdchub.errors import CheckFailed
from cdchub.position import Position, parse_position
from cdchub.sse import Event

# Between two checks: reading all rows again is the dearest thing that a client can ask for.
_EVERY_S = 5.0

_DIGEST_BYTES = 16
_MODULUS = 1 << 8 * _DIGEST_BYTES


@dataclass(slots=True)
class Digest:
    """How many rows, and the sum of their hashes: equal rows count as often as they are there."""

    rows: int = 0
    sum: int = 0

    def add(self, row: int, times: int = 1) -> None:
        self.rows += times
        self.sum = (self.sum + times * row) % _MODULUS


def digest_of(rows: Iterable[bytes]) -> Digest:
    digest = Digest()
    for row in rows:
        digest.add(_hash(row))
    return digest


def _hash(row: bytes) -> int:
    return int.from_bytes(blake2b(row, digest_size=_DIGEST_BYTES).digest(), "big")


@dataclass(slots=True)
class StreamState:
    """What a subscriber holds who applies each change by key: hashes are enough to compare."""

    _rows: dict[str, dict[bytes, int]] = field(default_factory=lambda: defaultdict(dict))
    _digests: dict[str, Digest] = field(default_factory=lambda: defaultdict(Digest))

    def forget(self, tables: Iterable[str]) -> None:
        for table in tables:
            self._rows.pop(table, None)
            self._digests.pop(table, None)

    def apply(self, data: bytes) -> None:
        change = keyed_row(data)
        rows, digest = self._rows[change.table], self._digests[change.table]
        before = rows.pop(change.key, None)
        if before is not None:
            digest.add(before, -1)
        if change.row is not None:
            rows[change.key] = _hash(change.row)
            digest.add(rows[change.key])

    def digest(self, table: str) -> Digest:
        return self._digests[table]


@dataclass(slots=True)
class Mark:
    """The hub's own rows of one table, at a position."""

    table: str
    position: Position
    digest: Digest


class Checker:
    """Follows the events of one stream, and takes marks whenever enough time has passed."""

    def __init__(
        self, client: Client, tables: Sequence[str], room: str | None, *, follow: bool
    ) -> None:
        self._client = client
        self._tables = tables
        self._room = room
        self._follow = follow
        self._state = StreamState()
        self._marks: list[Mark] = []
        self._agreed: list[Mark] = []
        self._caught_up = False
        self._next_s = 0.0
        self.done = False

    async def take(self, event: Event) -> str | None:
        """Takes in one event. Returns a line when a check has passed. Raises `CheckFailed`."""
        match event.name:
            case "message":
                data = event.data.encode()
                if self._marks:
                    # What is marked is the state before this change.
                    self._compare(upto=keyed_row(data).lsn - 1)
                self._state.apply(data)
            case "snapshot" | "reset":
                self._state.forget(msgspec.json.decode(event.data)["tables"])
                self._marks.clear()
                self._agreed.clear()
                self._caught_up = False
            case "caught-up":
                self._caught_up = True
        position = parse_position(event.last_id)
        if position is None or not self._caught_up:
            return None
        if not self._marks and not self._agreed and time.monotonic() >= self._next_s:
            self._marks = [await self._take_mark(table) for table in self._tables]
        self._compare(upto=position.lsn)
        return self._summary() if self._agreed and not self._marks else None

    async def _take_mark(self, table: str) -> Mark:
        text, rows = await self._client.snapshot(table, room=self._room)
        position = parse_position(text)
        if position is None:
            raise CheckFailed(f"the hub gave {text!r} as a snapshot's position")
        return Mark(table, position, digest_of(rows))

    def _compare(self, upto: int) -> None:
        """Compares what is marked up to an LSN at which the state stands."""
        for mark in [mark for mark in self._marks if mark.position.lsn <= upto]:
            self._marks.remove(mark)
            self._agreed.append(mark)
            stream, hub = self._state.digest(mark.table), mark.digest
            if stream != hub:
                other = "other values" if stream.rows == hub.rows else f"{stream.rows} rows"
                raise CheckFailed(
                    f"{mark.table} differs at {mark.position}: "
                    f"the stream has told {other}, the hub holds {hub.rows} rows"
                )

    def _summary(self) -> str:
        agreed, self._agreed = self._agreed, []
        self._next_s = time.monotonic() + _EVERY_S
        self.done = not self._follow
        rows = sum(mark.digest.rows for mark in agreed)
        last = max(agreed, key=lambda mark: mark.position.lsn)
        return f"checked at {last.position}: {rows} rows of {len(agreed)} tables agree with the hub"
