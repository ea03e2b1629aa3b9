"""`GET /cdc/stream`: from a request to a subscriber, and its bytes to the connection.

Where the server lets go of the connection, the stream takes it over, and nothing of the web framework
stands between a round and the socket. Elsewhere sse-starlette carries the stream: what it sends is
framed already, and its own pings are off, because a heartbeat here carries the subscriber's cursor.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cdchub.catalog import Catalog, Selection
from cdchub.config import StreamConfig
from cdchub.errors import NotImplementedYet, PassingRefusal, ValidationFailed
from cdchub.fanout import (
    EXTENSION,
    BufferSink,
    Core,
    Format,
    FromBase,
    Gone,
    HandOver,
    Sink,
    Start,
    Subscriber,
    TransportSink,
    resolve,
)
from cdchub.log.protocol import Cursor
from cdchub.position import Beginning, Now, Since, parse_position, parse_since
from cdchub.sse.events import SseFramer, refusal

logger = logging.getLogger("cdchub.sse")

MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


# Queries that are remembered with what they mean: a crowd asks for the same.
_QUERIES_MAX = 1_024


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a query asks for, by one catalog."""

    selection: Selection
    since: Since | None
    snapshot: bool
    conflate: bool
    format: Format
    framer: SseFramer


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks for at this moment. `opening` is what its stream begins with."""

    asked: _Asked
    start: Start
    headers: dict[str, str]
    opening: bytes


class StreamEndpoint:
    """The endpoint, an ASGI application. Raises `RequestError` for what the client must change."""

    def __init__(self, core: Core, config: StreamConfig, *, drains: bool = False) -> None:
        """`drains`: whoever runs the server ends the streams before it stops."""
        self._drains = drains
        self._core = core
        self._present = core.present
        self._config = config
        self._framer = SseFramer()
        self._beating_framer = SseFramer(heartbeat_s=config.heartbeat_s)
        self._queries: dict[bytes, _Asked] = {}
        self._queries_of: Catalog | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            wanted = self._wanted(request)
            self._core.admit_connection()
            self._core.admit()
        except PassingRefusal as refused:
            if MEDIA_TYPE not in request.headers.get("accept", ""):
                raise
            await self._refusal(refused)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await Response(media_type=MEDIA_TYPE, headers=wanted.headers)(scope, receive, send)
            return
        server: HandOver | None = (scope.get("extensions") or {}).get(EXTENSION)
        if server is None:
            sink = BufferSink(self._config.buffer_bytes_max)
            subscriber = self._subscribe(wanted, sink)
            stream = _DrainedStream if self._drains else _Stream
            carried = stream(self._core, subscriber, sink, wanted.headers, stall_s=self._config.stall_s)
            await carried(scope, receive, send)
        else:
            await self._hand_over(wanted, server, send)

    async def _hand_over(self, wanted: _Wanted, server: HandOver, send: Send) -> None:
        server.begin_stream()
        headers = [(b"content-type", _CONTENT_TYPE)]
        headers += [(k.lower().encode(), v.encode()) for k, v in wanted.headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        transport = await server.take_transport()
        if transport is not None:
            sink = TransportSink(transport, bytes_max=self._config.buffer_bytes_max)
            try:
                self._subscribe(wanted, sink)
            except PassingRefusal as refused:
                # The hub began to drain while the head was on its way.
                sink.write(self._refusal_body(refused))
                sink.close()

    def _subscribe(self, wanted: _Wanted, sink: Sink) -> Subscriber:
        sink.write(wanted.opening)
        return self._core.subscribe(
            wanted.asked.selection,
            wanted.asked.framer,
            sink,
            wanted.start,
            snapshot=wanted.asked.snapshot,
            conflate=wanted.asked.conflate,
            format=wanted.asked.format,
            transport="sse",
        )

    def _wanted(self, request: Request) -> _Wanted:
        asked = self._asked(request)
        start = self._start(request.headers.get("last-event-id"), asked)
        # Before a reset there is no id: who is cut off in between must be told of the break again.
        position = self._present.position(start) if isinstance(start, Cursor) else None
        opening = asked.framer.opening(position, retry_ms=self._core.retry_ms())
        headers = dict(_HEADERS)
        if isinstance(start, Gone) and not asked.snapshot:
            position = self._present.head
        if position is not None:
            headers["X-CDC-Position"] = str(position)
        return _Wanted(asked, start, headers, opening)

    def _asked(self, request: Request) -> _Asked:
        """Raises `RequestError` where the query is wrong."""
        catalog = self._present.catalog
        if catalog is not self._queries_of or len(self._queries) >= _QUERIES_MAX:
            self._queries_of, self._queries = catalog, {}
        text: bytes = request.scope["query_string"]
        asked = self._queries.get(text)
        if asked is None:
            query = request.query_params
            if "source" in query:
                raise NotImplementedYet("source=")
            since = query.get("since", query.get("startLSN"))
            asked = self._queries[text] = _Asked(
                catalog.asked_for(query),
                # Checked even where the header wins: a bad URL should fail on its first use.
                None if since is None else parse_since(since),
                _flag(query.get("snapshot"), "snapshot"),
                _flag(query.get("conflate"), "conflate"),
                Format.asked_for(query.get("format")),
                self._beating_framer if _flag(query.get("heartbeat"), "heartbeat") else self._framer,
            )
        return asked

    def _start(self, last_id: str | None, asked: _Asked) -> Start:
        """Where to begin: Last-Event-ID wins over `since`; None means with a snapshot."""
        since = asked.since
        if last_id:
            since = parse_position(last_id)
            if since is None:
                return Gone("epoch")
        if since is None or (isinstance(since, Now) and asked.snapshot):
            if asked.snapshot:
                return None
            since = Now()
        if isinstance(since, Beginning):
            return FromBase()
        return resolve(since, self._present.view)

    def _refusal(self, refused: PassingRefusal) -> Response:
        # The connection would be kept for a next request, and its place is wanted for others.
        headers = {**_HEADERS, "Connection": "close"}
        return Response(self._refusal_body(refused), media_type=MEDIA_TYPE, headers=headers)

    def _refusal_body(self, refused: PassingRefusal) -> bytes:
        retry_after_ms = max(refused.retry_after_ms, self._core.retry_ms())
        return refusal(code=refused.code, message=refused.detail, retry_after_ms=retry_after_ms)


_CONTENT_TYPE = f"{MEDIA_TYPE}; charset=utf-8".encode()


def _flag(text: str | None, name: str) -> bool:
    """A parameter that is 1 or left out. Raises `ValidationFailed`."""
    if text not in (None, "0", "1"):
        raise ValidationFailed({name: f"{name} is 1, or left out"})
    return text == "1"


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
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a reader took nothing for %g s and is cut off", self.send_timeout)
            self._core.unsubscribe(self._subscriber, "stalled")
        finally:
            # Nobody takes the rest.
            self._sink.abort()
            self._core.unsubscribe(self._subscriber)


class _DrainedStream(_Stream):
    """A stream that the core ends in time: nobody need look for a shutdown twice a second."""

    async def _listen_for_exit_signal_with_grace(self) -> None:
        await asyncio.Event().wait()
