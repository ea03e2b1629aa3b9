"""The requests of one client that take the database, one after the other.

What only concerns memory is done at once, as long as nothing waits. Otherwise one task works off what
there is, and ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine

from cdchub.errors import TooManyRequests
from cdchub.ws.grammar import Request

# What a request asks for; what it returns is to be awaited.
Action = Callable[[], Awaitable[None] | None]


class Turns:
    def __init__(
        self,
        start: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        *,
        ready: Callable[[], Awaitable[None]],
        failed: Callable[[Request, Exception], None],
        waiting_max: int,
    ) -> None:
        """`start` owns the task. `ready` returns when the client can take an answer; `failed` is told
        what an action raises."""
        self._start = start
        self._ready = ready
        self._failed = failed
        self._waiting_max = waiting_max
        self._waiting: deque[tuple[Request, Action]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def take(self, request: Request, action: Callable[[], None]) -> None:
        """Does it now, where nothing waits; raises what it raises then."""
        if self._worker is None:
            action()
        else:
            self.take_waiting(request, action)

    def take_waiting(self, request: Request, action: Action) -> None:
        """For what has to wait for the database. Raises `TooManyRequests` where too many wait."""
        if len(self._waiting) >= self._waiting_max:
            raise TooManyRequests("the hub is still at work on earlier requests; try again")
        self._waiting.append((request, action))
        if self._worker is None:
            self._worker = self._start(self._work_off())

    def stop(self, *, keep: Callable[[Request], bool]) -> None:
        """The client is gone. What it asked for and `keep` holds for is still done."""
        self._waiting = deque(each for each in self._waiting if keep(each[0]))

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                await self._ready()
                request, action = self._waiting.popleft()
                try:
                    awaited = action()
                    if awaited is not None:
                        await awaited
                except Exception as error:
                    self._failed(request, error)
        finally:
            self._worker = None
