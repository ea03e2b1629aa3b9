"""uvicorn's HTTP protocol, from which a stream can take its connection over.

The response's head goes out through ASGI, so that routing, middleware and headers are the app's; then
the transport gets a protocol of the stream's own and the request's task ends. On any other server the
extension is missing, and the stream goes through ASGI.

With any uvicorn: `uvicorn.run(app, http="cdchub.handover:HandOverProtocol")`.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from cdchub.fanout import EXTENSION


class HandOverProtocol(HttpToolsProtocol):
    """One connection. Each request finds a `_HandOver` in its scope (ASGI 3.0, "Extensions")."""

    behind_request = b""
    _piece = b""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # An extension is a dict by the letter of ASGI; this one is an object, for our own app.
        self.scope["extensions"] = {EXTENSION: _HandOver(self, self.cycle)}  # type: ignore[dict-item]

    def data_received(self, data: bytes) -> None:
        self._piece = data
        super().data_received(data)
        self._piece = b""

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade is the app's affair: its request is passed on like any other, and what came behind
        it is of the other protocol."""
        error = sys.exception()
        if isinstance(error, httptools.HttpParserUpgrade):
            self.behind_request += self._piece[error.args[0] :]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._take_apart()

    def let_go(self) -> None:
        """The connection is somebody else's from here on."""
        self.connections.discard(self)
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        self._take_apart()

    def _take_apart(self) -> None:
        """Undoes the reference cycles, so that memory does not wait for the collector."""
        if self.scope is not None:
            self.scope["extensions"] = {}
        self.parser = None  # type: ignore[assignment]


class _HandOver:
    """The offer to one request: where requests are pipelined, the connection's newest is another."""

    __slots__ = ("_cycle", "_protocol")

    def __init__(self, protocol: HandOverProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle

    def begin_stream(self) -> None:
        """The response that is about to start ends when the connection does (RFC 9112 §6.3, rule 8):
        its bytes are the same for everybody, with no chunks around them."""
        self._cycle.chunked_encoding = False
        self._cycle.keep_alive = False

    @property
    def behind_request(self) -> bytes:
        """What the peer has sent already for the protocol that it asked to change to."""
        return self._protocol.behind_request

    async def take_transport(self) -> asyncio.Transport | None:
        """The connection, with what was written of the response, its head or nothing; None where the
        peer is gone already."""
        # A transport that is full tells so once, and that was to uvicorn: an earlier answer on this
        # connection may still be on its way.
        await self._protocol.flow.drain()
        protocol, transport = self._protocol, self._protocol.transport
        gone = self._cycle.disconnected or transport.is_closing()
        # The server neither waits for this response nor sends anything more.
        self._cycle.disconnected = True
        if gone:
            return None
        protocol.let_go()
        return transport
