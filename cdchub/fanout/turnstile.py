"""Turns for those who catch up: so many in an iteration of the loop, in the order in which they came.

After a restart thousands come back at once. Each writes page after page, and one iteration that did
all of it would hold up the live rounds for seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    def __init__(self, turns_per_iteration: int) -> None:
        self._turns = self._left = turns_per_iteration
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._armed = False

    async def turn(self) -> None:
        """Returns when it is the caller's turn; at once, if few are under way."""
        loop = asyncio.get_running_loop()
        if not self._armed:
            self._armed = True
            loop.call_soon(self._next_iteration)
        if self._left and not self._waiting:
            self._left -= 1
            return
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        await future

    def _next_iteration(self) -> None:
        self._left = self._turns
        while self._left and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                self._left -= 1
        self._armed = bool(self._waiting)
        if self._armed:
            asyncio.get_running_loop().call_soon(self._next_iteration)
