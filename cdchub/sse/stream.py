"""`GET /cdc/stream`: from a request to a subscriber, and from its bytes to the ASGI server.

sse-starlette carries the stream. What it sends is framed already; its own pings are off, because a
heartbeat here carries the subscriber's cursor.
"""

from __future__ import annotations

import asyncio
import logging

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cdchub.catalog import Selection
from cdchub.config import StreamConfig
from cdchub.errors import NotImplementedYet, PassingRefusal, ValidationFailed
from cdchub.fanout import BufferSink, Core, FromBase, Gone, Subscriber, resolve
from cdchub.log.protocol import Cursor
from cdchub.position import Beginning, Now, Since, parse_position, parse_since
from cdchub.sse.events import SseFramer, refusal

logger = logging.getLogger("cdchub.sse")

MEDIA_TYPE = "text/event-stream"
_NOT_YET = ("filter", "columns", "conflate", "source")


class StreamEndpoint:
    """The endpoint. Raises `RequestError` for what the client must change."""

    def __init__(self, core: Core, config: StreamConfig, *, drains: bool = False) -> None:
        """`drains`: whoever runs the server ends the streams before it stops."""
        self._drains = drains
        self._core = core
        self._present = core.present
        self._config = config
        self._framer = SseFramer()

    async def open(self, request: Request) -> Response:
        """Answers `GET /cdc/stream`."""
        try:
            return self._open(request)
        except PassingRefusal as refused:
            if MEDIA_TYPE not in request.headers.get("accept", ""):
                raise
            return self._refuse(refused)

    def _open(self, request: Request) -> Response:
        selection, snapshot = self._wanted(request)
        start = self._start(request, snapshot=snapshot)
        self._core.admit()
        if request.method == "HEAD":
            return Response(media_type=MEDIA_TYPE, headers=dict(_HEADERS))
        sink = BufferSink()
        position = self._present.position(start) if isinstance(start, Cursor) else None
        # Before a reset there is no id: who is cut off in between must be told of the break again.
        sink.write(self._framer.opening(position, retry_ms=self._core.retry_ms()))
        subscriber = self._core.subscribe(
            selection, self._framer, sink, start, snapshot=snapshot, transport="sse"
        )
        headers = dict(_HEADERS)
        if isinstance(start, Gone) and not snapshot:
            position = self._present.head
        if position is not None:
            headers["X-CDC-Position"] = str(position)
        stream = _DrainedStream if self._drains else _Stream
        return stream(self._core, subscriber, sink, headers, stall_s=self._config.stall_s)

    def _wanted(self, request: Request) -> tuple[Selection, bool]:
        query = request.query_params
        for name in _NOT_YET:
            if name in query:
                raise NotImplementedYet(f"{name}=")
        if query.get("format", "cdchub") != "cdchub":
            raise NotImplementedYet("format=" + query["format"][:40])
        names = self._present.catalog.names(query.getlist("table"))
        selection = self._present.catalog.select(names, query.get("room"))
        snapshot = query.get("snapshot", "0")
        if snapshot not in ("0", "1"):
            raise ValidationFailed({"snapshot": "snapshot is 1, or left out"})
        return selection, snapshot == "1"

    def _start(self, request: Request, *, snapshot: bool) -> Cursor | Gone | FromBase | None:
        """Where to begin: Last-Event-ID wins over `since`; None means with a snapshot."""
        query = request.query_params
        text = query.get("since", query.get("startLSN"))
        # Checked even where the header wins: a bad URL should fail on its first use.
        since: Since | None = None if text is None else parse_since(text)
        last_id = request.headers.get("last-event-id")
        if last_id:
            position = parse_position(last_id)
            if position is None:
                return Gone("epoch")
            since = position
        if since is None or (isinstance(since, Now) and snapshot):
            if snapshot:
                return None
            since = Now()
        if isinstance(since, Beginning):
            return FromBase()
        return resolve(since, self._present.view)

    def _refuse(self, refused: PassingRefusal) -> Response:
        retry_after_ms = max(refused.retry_after_ms, self._core.retry_ms())
        body = refusal(code=refused.code, message=refused.detail, retry_after_ms=retry_after_ms)
        return Response(body, media_type=MEDIA_TYPE, headers=dict(_HEADERS))


_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Stream(EventSourceResponse):
    """One open stream; it ends with its subscriber, and takes the subscriber along when it ends."""

    def __init__(
        self,
        core: Core,
        subscriber: Subscriber,
        sink: BufferSink,
        headers: dict[str, str],
        *,
        stall_s: float,
    ) -> None:
        super().__init__(
            sink.chunks(), headers=headers, ping=0, send_timeout=stall_s, media_type=MEDIA_TYPE
        )
        self._core = core
        self._subscriber = subscriber

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a reader took nothing for %g s and is cut off", self.send_timeout)
            self._core.unsubscribe(self._subscriber, "stalled")
        finally:
            self._core.unsubscribe(self._subscriber)


class _DrainedStream(_Stream):
    """A stream that the core ends in time: nobody need look for a shutdown twice a second."""

    async def _listen_for_exit_signal_with_grace(self) -> None:
        await asyncio.Event().wait()
