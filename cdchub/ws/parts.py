"""The parts of a session: its subscriptions and joined rooms, which share one connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cdchub.fanout import SinkListener, Subscriber


class Wire(Protocol):
    """The connection of one client, which frames messages or leaves that to a server."""

    @property
    def write(self) -> Callable[[bytes], None]: ...

    @property
    def is_full(self) -> bool: ...

    @property
    def buffered_bytes(self) -> int: ...

    def close(self, code: int, reason: str) -> None:
        """Says goodbye (RFC 6455 §7.1.2) and ends; nothing is written afterwards."""
        ...

    def abort(self) -> None: ...

    def ping(self) -> None:
        """Asks the peer for a sign of life, and gives up one that gives none."""
        ...


class PartOwner(Protocol):
    @property
    def wire(self) -> Wire: ...

    async def drained(self) -> None: ...

    def part_has_ended(self, part: Part) -> None:
        """The hub has ended it, and its framer has said so."""
        ...


class Part:
    """One subscription or joined room of a session: the sink of its subscriber."""

    __slots__ = ("_listener", "_owner", "among", "ended", "name", "subscriber", "write")

    def __init__(self, owner: PartOwner, name: str, among: dict[str, Part]) -> None:
        """`among` are the owner's subscriptions, or its rooms."""
        self._owner = owner
        self.name = name
        self.among = among
        self.write = owner.wire.write
        self.ended = False
        self.subscriber: Subscriber | None = None
        self._listener: SinkListener | None = None

    def listen(self, listener: SinkListener) -> None:
        self._listener = listener

    @property
    def is_full(self) -> bool:
        return self._owner.wire.is_full

    @property
    def buffered_bytes(self) -> int:
        return 0 if self.ended else self._owner.wire.buffered_bytes

    async def drained(self) -> None:
        await self._owner.drained()

    def close(self) -> None:
        """The hub ends this part, or the session has."""
        if not self.ended:
            self.ended = True
            self._owner.part_has_ended(self)

    def abort(self) -> None:
        if not self.ended:
            self._owner.wire.abort()

    def tell_full(self) -> None:
        if self._listener is not None:
            self._listener.sink_is_full()

    def tell_lost(self, outcome: str) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.sink_is_lost(outcome)
