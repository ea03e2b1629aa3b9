"""What the sessions of one hub share, and its sessions: admission, heartbeats, an orderly end."""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

from cdchub.config import StreamConfig, WebSocketConfig
from cdchub.fanout import Core
from cdchub.ws.frames import Framers
from cdchub.ws.messages import Messages
from cdchub.ws.rooms import Rooms

# RFC 6455 §7.4.1, and INTERFACE §5.
GOING_AWAY, POLICY_VIOLATION, TRY_AGAIN_LATER, UNAUTHORIZED = 1001, 1008, 1013, 4401
# Heartbeats are spread over so many ticks, one a second: answers come in bursts as large as the pings.
_SLOTS = 15
# The last close frames still have to leave within the drain window.
_DRAIN_PART = 0.8


class OpenSession(Protocol):
    def heartbeat(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


class Shared:
    """One for each way of framing: those on our own server, and those on another."""

    def __init__(
        self,
        core: Core,
        framers: Framers,
        rooms: Rooms,
        messages: Messages,
        *,
        config: WebSocketConfig,
        stream: StreamConfig,
    ) -> None:
        self.core = core
        self.framers = framers
        self.rooms = rooms
        self.messages = messages
        self.config = config
        self.heartbeat_s = stream.heartbeat_s
        self._drain_s = stream.drain_s
        self._slots: list[set[OpenSession]] = [set() for _ in range(_SLOTS)]
        self._next_slot = 0
        self._beating: asyncio.TimerHandle | None = None
        self._random = random.Random()

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def began(self, session: OpenSession) -> None:
        self._next_slot = (self._next_slot + 1) % _SLOTS
        self._slots[self._next_slot].add(session)
        self.core.outcomes["ws_opened"] += 1
        self.core.connection_opened()
        if self._beating is None:
            self._beat_later(0)

    def ended(self, session: OpenSession) -> None:
        for slot in self._slots:
            slot.discard(session)
        self.core.connection_closed()

    def drain(self) -> None:
        """Closes every connection (1001) at a time of its own within the drain window."""
        loop = asyncio.get_running_loop()
        for slot in self._slots:
            for session in slot:
                loop.call_later(
                    self._random.uniform(0, self._drain_s * _DRAIN_PART),
                    session.close,
                    GOING_AWAY,
                    "the hub is shutting down",
                )

    def _beat_later(self, slot: int) -> None:
        """Beats for one slot after the other, as long as there is anybody."""
        if any(self._slots):
            loop = asyncio.get_running_loop()
            self._beating = loop.call_later(self.heartbeat_s / _SLOTS, self._beat, slot)
        else:
            self._beating = None

    def _beat(self, slot: int) -> None:
        for session in list(self._slots[slot]):
            session.heartbeat()
        self._beat_later((slot + 1) % _SLOTS)
