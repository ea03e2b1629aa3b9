"""Turns: so many in an iteration of the loop, in the order in which they were asked for.

After a restart thousands come back at once: they connect, ask, and read page after page. One iteration
that did all of it would hold up the live rounds for seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turnstile:
    def __init__(self, turns_per_iteration: int) -> None:
        self._turns = self._left = turns_per_iteration
        self._waiting: deque[Callable[[], None]] = deque()
        self._armed = False

    def take(self) -> bool:
        """Whether a turn is free at once; it is taken then."""
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._next_iteration)
        if self._left and not self._waiting:
            self._left -= 1
            return True
        return False

    def wait(self, action: Callable[[], None]) -> None:
        """Calls `action` when it is its turn, in a later iteration."""
        self._waiting.append(action)

    async def turn(self) -> None:
        """Returns when it is the caller's turn; at once, if few are under way."""
        if not self.take():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.wait(lambda: None if future.done() else future.set_result(None))
            await future

    def _next_iteration(self) -> None:
        self._left = self._turns
        while self._left and self._waiting:
            self._left -= 1
            # By itself: an error in one must not be the others'.
            asyncio.get_running_loop().call_soon(self._waiting.popleft())
        self._armed = bool(self._waiting)
        if self._armed:
            asyncio.get_running_loop().call_soon(self._next_iteration)
