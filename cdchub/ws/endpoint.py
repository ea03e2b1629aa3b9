"""`/cdc/ws`: from a handshake to a session.

Our own server passes the request on as it came, and the connection is taken over after the answer
101. On another server the messages go through ASGI.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from websockets.datastructures import Headers as HandshakeHeaders
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from cdchub.config import Config
from cdchub.errors import PassingRefusal, UpgradeRequired, ValidationFailed
from cdchub.fanout import EXTENSION, Core, HandOver
from cdchub.ws.carried import Carried
from cdchub.ws.direct import Direct
from cdchub.ws.frames import Framers, line, text_frame
from cdchub.ws.grammar import USER_CHARS_MAX
from cdchub.ws.messages import Messages
from cdchub.ws.rooms import Rooms
from cdchub.ws.session import Session
from cdchub.ws.shared import GOING_AWAY, TRY_AGAIN_LATER, UNAUTHORIZED, Shared

# A peer that answers no ping for so many heartbeats is gone.
_BEATS_MISSED = 3
SUBPROTOCOL = Subprotocol("cdchub.v1.json")
# In a scope, whom the application that this hub is mounted in knows the peer as.
USER = "cdchub.user"


class WebSocketEndpoint:
    """The endpoint, an ASGI application. Raises `RequestError` before a connection is upgraded."""

    def __init__(self, core: Core, rooms: Rooms, messages: Messages, config: Config) -> None:
        self._core = core
        self._config = config
        self._shared = {
            wrap: Shared(
                core,
                Framers(wrap),
                rooms,
                messages,
                config=config.websocket,
                stream=config.stream,
            )
            for wrap in (text_frame, line)
        }
        core.when_draining(self._drain)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._carry(scope, receive, send)
            return
        server: HandOver | None = (scope.get("extensions") or {}).get(EXTENSION)
        if server is None or Headers(scope=scope).get("upgrade", "").lower() != "websocket":
            raise UpgradeRequired("this address speaks WebSocket: open it with new WebSocket(…)")
        await self._upgrade(scope, receive, send, server)

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send, server: HandOver) -> None:
        user_id = _user_id(scope)
        handshake = ServerProtocol(select_subprotocol=_select)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        answer = handshake.accept(Handshake(scope["path"], HandshakeHeaders(headers)))
        if answer.status_code != 101:
            told = dict(answer.headers.raw_items())
            response = Response(answer.body or b"", answer.status_code, told)
            await response(scope, receive, send)
            return
        transport = await server.take_transport()
        if transport is None:
            return
        answer.headers["X-CDC-Version"] = "1"
        transport.write(answer.serialize())
        config = self._config
        connection = Direct(
            transport,
            buffer_bytes_max=config.stream.buffer_bytes_max,
            message_bytes_max=config.websocket.message_bytes_max,
            close_s=config.websocket.close_s,
            silent_s=max(config.stream.stall_s, _BEATS_MISSED * config.stream.heartbeat_s),
        )
        shared = self._shared[text_frame]
        session = Session(shared, connection, user_id)
        refused = self._refusal()
        shared.began(session)
        connection.begin(session, server.behind_request)
        if refused is not None:
            session.close(*refused)

    async def _carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        user_id = _user_id(scope)
        await receive()
        chosen = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        config = self._config
        wire = Carried(
            receive,
            send,
            buffer_bytes_max=config.stream.buffer_bytes_max,
            message_bytes_max=config.websocket.message_bytes_max,
            stall_s=config.stream.stall_s,
        )
        shared = self._shared[line]
        session = Session(shared, wire, user_id)
        refused = self._refusal()
        shared.began(session)
        if refused is not None:
            session.close(*refused)
        await wire.run(session)

    def _refusal(self) -> tuple[int, str] | None:
        """Code and reason where there is no room for one more. A browser learns nothing of a handshake
        that failed, so the connection is made all the same, and closed with them."""
        try:
            self._core.admit_connection()
        except PassingRefusal as refused:
            return GOING_AWAY if self._core.draining else TRY_AGAIN_LATER, refused.detail
        return None

    def _drain(self) -> None:
        for shared in self._shared.values():
            shared.drain()


async def refuse_unauthorized(receive: Receive, send: Send) -> None:
    """Tells a peer that it may not connect, in the way in which a browser's page can see it."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": UNAUTHORIZED, "reason": "this needs a credential"})


def _guest() -> str:
    return f"guest-{secrets.token_hex(4)}"


def _select(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """A client that offers others, or none, is served all the same (RFC 6455 §4.2.2, 5)."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def _user_id(scope: Scope) -> str:
    """Where the application knows its users, no URL says who somebody is."""
    if USER in scope:
        known = scope[USER]
        return known if isinstance(known, str) else _guest()
    asked = HTTPConnection(scope).query_params.get("user")
    if asked is None:
        return _guest()
    if not 1 <= len(asked) <= USER_CHARS_MAX:
        raise ValidationFailed({"user": f"user has 1 to {USER_CHARS_MAX} characters"})
    return asked
