"""One client of `/cdc/ws`: its subscriptions and rooms, and the answers to what it says.

What only concerns memory is answered at once. What reads or writes the database is done in order, by
one task that lives while there is such work. All subscriptions share the connection: when it holds too
much, each leaves the live path and catches up at the connection's pace.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import assert_never

import msgspec

from cdchub.catalog import Selection
from cdchub.errors import (
    CdchubError,
    PassingRefusal,
    RequestError,
    TooManyRequests,
    ValidationFailed,
)
from cdchub.fanout import Format, Framer, Start
from cdchub.ws.chat import Chat
from cdchub.ws.frames import encoded
from cdchub.ws.grammar import (
    Addressed,
    BadMessage,
    Broadcast,
    History,
    Join,
    Leave,
    Ping,
    Request,
    SendMessage,
    Subscribe,
    Texts,
    Unsubscribe,
    address_of,
    addressed,
    parse,
)
from cdchub.ws.parts import Part, Wire
from cdchub.ws.rate import Rate
from cdchub.ws.shared import GOING_AWAY, POLICY_VIOLATION, Shared
from cdchub.ws.starts import position_shown, start_of

logger = logging.getLogger("cdchub.ws")


class UnknownSub(RequestError):
    code = "unknown_sub"
    title = "Unknown subscription"


class DuplicateSub(RequestError):
    code = "duplicate_sub"
    title = "Subscription exists"


class Session:
    """`wire` calls `receive`, `is_full`, `has_drained` and `is_lost`; whoever accepts it, `begin`."""

    # There may be tens of thousands.
    __slots__ = (
        "__weakref__",
        "_chat",
        "_core",
        "_requests",
        "_shared",
        "_subscriptions",
        "_waiters",
        "is_closed",
        "user_id",
        "wire",
    )

    def __init__(self, shared: Shared, wire: Wire, user_id: str) -> None:
        self._shared = shared
        self.wire = wire
        self.user_id = user_id
        self._core = shared.core
        config = shared.config
        self._requests = Rate(per_s=config.requests_per_s, burst=config.requests_burst)
        self._subscriptions: dict[str, Part] = {}
        # Most connections are in no room.
        self._chat: Chat | None = None
        self._waiters: tuple[asyncio.Future[None], ...] = ()
        self.is_closed = False

    def begin(self) -> None:
        self.send(
            "connected",
            clientId=secrets.token_urlsafe(9),
            userId=self.user_id,
            epoch=self._core.present.head.epoch,
            heartbeat=_whole(self._shared.heartbeat_s),
        )

    # What the connection tells.

    def receive(self, text: bytes) -> None:
        """One whole text message of the client."""
        if self.is_closed:
            return
        now_s = self._shared.now_s()
        if not self._requests.take(now_s):
            self._count("too_many_requests")
            self.close(POLICY_VIOLATION, "too many requests")
            return
        try:
            request = parse(text)
        except BadMessage as error:
            self._refuse(error, addressed(text))
            return
        try:
            self._handle(request)
        except Exception as error:
            self.failed(request, error)

    def is_full(self) -> None:
        for part in self._parts():
            part.tell_full()

    def has_drained(self) -> None:
        self._wake()
        if self._chat is not None:
            self._chat.has_drained()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def is_lost(self, outcome: str) -> None:
        """The connection is gone, however that came."""
        if not self.is_closed:
            self._end(outcome)

    # What subscriptions ask.

    async def drained(self) -> None:
        if self.wire.is_full and not self.is_closed:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters = (*self._waiters, waiter)
            await waiter

    def part_has_ended(self, part: Part) -> None:
        del part.among[part.name]
        if self._chat is not None and part.among is self._chat.rooms:
            self._chat.part_has_ended(part)
        if self._core.draining:
            self.close(GOING_AWAY, "the hub is shutting down")

    def close(self, code: int, reason: str) -> None:
        if not self.is_closed:
            self._end("client_closed")
            self.wire.close(code, reason)

    def heartbeat(self) -> None:
        """A sign of life in each direction; where subscriptions are, theirs are the hub's."""
        if not self._parts():
            self.send("heartbeat")
        self.wire.ping()

    # Requests.

    def _handle(self, request: Request) -> None:
        match request:
            case Subscribe():
                self._subscribe(request)
            case Unsubscribe(sub=sub):
                if sub not in self._subscriptions:
                    raise UnknownSub(f"there is no subscription {sub!r} on this connection")
                self.end_part(self._subscriptions[sub])
                self.send("unsubscribed", sub=sub, id=request.id)
            case Join() | SendMessage() | History() | Broadcast() | Leave():
                if self._chat is None:
                    self._chat = Chat(self._shared, self)
                self._chat.handle(request)
            case Ping():
                self.send("pong", id=request.id)
            case _:
                assert_never(request)

    def _subscribe(self, request: Subscribe) -> None:
        if request.sub in self._subscriptions:
            raise DuplicateSub(f"there is a subscription {request.sub!r} on this connection already")
        core, catalog = self._core, self._core.present.catalog
        selection = catalog.select(
            catalog.names(_texts(request.table)),
            request.room,
            filters=_texts(request.filter),
            columns=_texts(request.columns),
        )
        snapshot, conflate = _flag("snapshot", request.snapshot), _flag("conflate", request.conflate)
        format = Format.asked_for(request.format)
        start = start_of(request.since, core, snapshot=snapshot)
        self.check_room_for_more()
        core.admit()
        position = position_shown(start, core, since=request.since, snapshot=snapshot)
        self.send("subscribed", sub=request.sub, position=position, id=request.id)
        part = self.new_part(request.sub, self._subscriptions)
        framer = self._shared.framers.subscription(request.sub)
        self.begin_part(
            part, selection, framer, start, snapshot=snapshot, conflate=conflate, format=format
        )

    def check_room_for_more(self) -> None:
        most = self._shared.config.subscriptions_max
        if len(self._parts()) >= most:
            raise TooManyRequests(f"a connection has at most {most} subscriptions and rooms")

    # Its parts, for itself and for chat.

    @property
    def is_lagging(self) -> bool:
        return self.wire.is_full

    def new_part(self, name: str, among: dict[str, Part]) -> Part:
        part = among[name] = Part(self, name, among)
        return part

    def begin_part(
        self,
        part: Part,
        selection: Selection,
        framer: Framer,
        start: Start,
        *,
        snapshot: bool = False,
        conflate: bool = False,
        format: Format = Format.CDCHUB,
    ) -> None:
        part.subscriber = self._core.subscribe(
            selection,
            framer,
            part,
            start,
            snapshot=snapshot,
            conflate=conflate,
            format=format,
            transport="ws",
        )

    def end_part(self, part: Part) -> None:
        """The client wants it no longer."""
        part.ended = True
        del part.among[part.name]
        assert part.subscriber is not None
        self._core.unsubscribe(part.subscriber)

    # Ending.

    def _end(self, outcome: str) -> None:
        self.is_closed = True
        if self._chat is not None:
            self._chat.stop()
        for part in self._parts():
            part.ended = True
            part.tell_lost(outcome)
        self._subscriptions.clear()
        self._chat = None
        self._wake()
        self._shared.ended(self)

    def _parts(self) -> list[Part]:
        rooms = () if self._chat is None else self._chat.rooms.values()
        return [*self._subscriptions.values(), *rooms]

    # Answers.

    def _refuse(self, error: RequestError, address: Addressed) -> None:
        self._count(f"refused_{error.code}")
        retry_ms = error.retry_after_ms if isinstance(error, PassingRefusal) else None
        self._send_error(error.code, error.detail, address, retry_ms, dict(error.fields))

    def failed(self, request: Request, error: Exception) -> None:
        if isinstance(error, RequestError):
            self._refuse(error, address_of(request))
        else:
            self._fault(error, address_of(request))

    def _fault(self, error: Exception, address: Addressed) -> None:
        error_id = secrets.token_hex(4)
        expected = isinstance(error, CdchubError | OSError)
        logger.error(
            "a request over WebSocket fails with error %s: %s",
            error_id,
            error,
            exc_info=None if expected else error,
        )
        self._send_error("internal", f"the hub could not do this (error {error_id})", address)

    def _send_error(
        self,
        code: str,
        message: str,
        address: Addressed,
        retry_ms: int | None = None,
        fields: dict[str, object] | None = None,
    ) -> None:
        self.send(
            "error",
            **{
                **(fields or {}),
                "code": code,
                "message": message,
                "retryAfterMs": retry_ms,
                **msgspec.to_builtins(address),
            },
        )

    def send(self, type: str, **members: object) -> None:
        self.send_payload(encoded(type, **members))

    def send_payload(self, payload: bytes) -> None:
        if not self.is_closed:
            self.wire.write(self._shared.framers.wrap(payload))

    def _count(self, outcome: str) -> None:
        self._core.outcomes[f"ws_{outcome}"] += 1


def _whole(seconds: float) -> float:
    """Without a fraction where there is none: 15, not 15.0."""
    return int(seconds) if seconds == int(seconds) else seconds


def _texts(value: Texts) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _flag(name: str, value: int) -> bool:
    if value not in (0, 1):
        raise ValidationFailed({name: f"{name} is true, or left out"})
    return bool(value)
