"""A request's body is taken before its answer starts.

An answer that overtakes the body gets lost on its way: Go's net/http, and with it Caddy, may break off
an exchange of which it still forwards the body, and the reader gets a head without a document. So a
refusal, which needs no body, waits for it all the same, within bounds.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A body of theirs means nothing (RFC 9110 §9.3), and streams begin with them, thousands at once.
_WITHOUT_BODY = {"GET", "HEAD", "OPTIONS"}
_BYTES_MAX = 2**20


class BodyFirst:
    """ASGI middleware. An answer waits until the body has come, `s_max` after the head at the most,
    and for 1 MiB of it; `outcomes` counts those that did not wait for its end as `body_unread`."""

    def __init__(self, app: ASGIApp, *, outcomes: Counter[str], s_max: float) -> None:
        self._app = app
        self._outcomes = outcomes
        self._s_max = s_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive, until_s=asyncio.get_running_loop().time() + self._s_max)

        async def send_behind_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not await body.take_rest():
                self._outcomes["body_unread"] += 1
            await send(message)

        await self._app(scope, body.receive, send_behind_body)


class _Body:
    def __init__(self, scope: Scope, receive: Receive, *, until_s: float) -> None:
        self._receive = receive
        self._until_s = until_s
        self._bytes = 0
        # Who waits for "100 Continue" sends nothing before the app reads (RFC 9110 §10.1.1).
        self._ended = "100-continue" in Headers(scope=scope).get("expect", "").lower()

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message

    async def take_rest(self) -> bool:
        """Whether nothing is left of it."""
        try:
            async with asyncio.timeout_at(self._until_s):
                while not self._ended and self._bytes < _BYTES_MAX:
                    await self.receive()
        except TimeoutError:
            return False
        return self._ended
