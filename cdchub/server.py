"""The listener: a bound socket, uvicorn around the app, bounds on what peers may do, an orderly end.

Streams take their connections over (`handover`), so what stays with uvicorn are requests. The kernel
bounds what a stream's reader can hold: unsent bytes, and how long a reader may take nothing.

At SIGTERM or SIGINT new streams are refused and open ones end spread over the drain window, each
with its position, so that their clients come back spread out too. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import uvicorn

from cdchub.app import create_app
from cdchub.config import HttpConfig
from cdchub.errors import StartError
from cdchub.fanout import Core, Turnstile
from cdchub.handover import HandOverProtocol
from cdchub.hub import Hub

logger = logging.getLogger("cdchub")

# Requests that are no streams get so long to finish after the streams have ended.
_FINISH_S = 5
_TICK_S = 1.0
_BACKLOG_MAX = 4_096
# New connections that are heard in one iteration of the loop, some 0.15 ms each.
_TURNS_AT_DOOR = 64
# What the hub's own files and snapshots need; and connections beyond the streams, for other requests
# and for saying no politely.
_DESCRIPTORS_KEPT = 128
_REQUESTS_KEPT = 64
_DESCRIPTORS_MAX = 1_000_000
_TCP_NOTSENT_LOWAT = 25
_UNSENT_BYTES_MAX = 64 * 2**10


class PortUnavailable(StartError):
    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"can't listen on {host}:{port}: {why}; choose with --host and --port")


def bind(config: HttpConfig, *, stall_s: float) -> socket.socket:
    """A listening socket, bound before anything else is touched. Raises `PortUnavailable`.

    A peer that takes nothing for `stall_s` is cut off.
    """
    try:
        infos = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = infos[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            _bound_peers(listener, stall_s=stall_s)
            listener.listen(_backlog())
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise PortUnavailable(config.host, config.port, error.strerror or str(error)) from error
    return listener


def _bound_peers(listener: socket.socket, *, stall_s: float) -> None:
    """Bounds what a peer that does not read can hold in the kernel; connections inherit it (Linux).

    The send buffer grows to megabytes by itself. TCP_NOTSENT_LOWAT bounds the part that is not on its
    way, and leaves a fast reader far away its window. TCP_USER_TIMEOUT (RFC 5482) ends a connection
    whose bytes nobody takes: a peer that is gone, and one that is stopped.
    """
    if sys.platform == "linux":
        # Not in Python's socket module; from linux/tcp.h.
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES_MAX)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the listener."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _descriptors_max() -> int:
    """How many descriptors this process may have; it asks for as many as it can get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else _DESCRIPTORS_MAX


def _backlog() -> int:
    """Connections that wait to be accepted: all of them may come in one iteration of the loop."""
    return min(_BACKLOG_MAX, _descriptors_max() // 5)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all connections of a listener may take; the core's outcomes count who met a bound. The door
    lets new ones speak in turns."""

    core: Core
    door: Turnstile
    connections_max: int
    head_bytes_max: int
    head_s_max: float


class _BoundedProtocol(HandOverProtocol):
    """uvicorn's protocol with bounds on the head of a request, which it has none for."""

    bounds: ClassVar[Bounds]
    # When the head of a request began, or the wait for one; None while a request is served.
    waiting_since_s: float | None = None
    _head_bytes = 0
    _is_in_body = False
    # Whether the piece that is being read ended a head or a body.
    _heard = False
    _is_new = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting_since_s = self.loop.time()
        core = self.bounds.core
        if len(self.connections) + core.connection_count > self.bounds.connections_max:
            self._refuse("connections_full", 503, b"Service Unavailable", b"retry-after: 5\r\n")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if not self._is_answering():
            self.waiting_since_s = self.loop.time()

    def on_headers_complete(self) -> None:
        self.waiting_since_s = None
        self._is_in_body = self._heard = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._heard = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        # uvicorn gives up an idle connection; but one byte, of an empty line or of a body that nobody
        # wants, and it waits for ever.
        if not self.pipeline:
            self._head_bytes = 0
            self.waiting_since_s = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        if self._is_new:
            self._is_new = False
            if not self.bounds.door.take():
                # Thousands come back at once: what they ask for is looked at in turns.
                self.transport.pause_reading()
                self.bounds.door.wait(partial(self._hear, data))
                return
        room = self.bounds.head_bytes_max - self._head_bytes
        # A body may come with its head, in one piece; but the head must end within its bound.
        is_head = not self._is_in_body and data.find(b"\r\n\r\n", 0, max(0, room)) < 0
        if is_head and len(data) > room:
            self._refuse_head()
            return
        self._heard = False
        self._head_bytes += len(data)
        super().data_received(data)
        if self._heard or self._is_in_body:
            self._head_bytes = 0
        elif self._head_bytes > self.bounds.head_bytes_max and not self.transport.is_closing():
            # Empty lines, before which no head begins.
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse("head_too_large", 431, b"Request Header Fields Too Large")

    def _hear(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self.data_received(data)

    def look(self, now_s: float) -> None:
        """Called once a second."""
        since_s = self.waiting_since_s
        if since_s is not None and now_s - since_s > self.bounds.head_s_max:
            self._refuse("head_too_slow", 408, b"Request Timeout")

    def _is_answering(self) -> bool:
        """Whether a response is under way. The head of a pipelined request may come meanwhile."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, outcome: str, status: int, reason: bytes, headers: bytes = b"") -> None:
        self.bounds.core.outcomes[outcome] += 1
        self.waiting_since_s = None
        if not self._is_answering():
            # In the midst of another response it would be taken for a part of that.
            self.transport.write(
                b"HTTP/1.1 %d %s\r\n%scontent-length: 0\r\nconnection: close\r\n\r\n"
                % (status, reason, headers)
            )
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn, but signals are the hub's: it drains before uvicorn stops."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._exit = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        # uvicorn looks for its exit flag ten times a second, which is most of what an idle hub
        # does. Ours is an event; the one tick a second keeps the Date header right.
        loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            for connection in list(self.server_state.connections):
                if isinstance(connection, _BoundedProtocol):
                    connection.look(loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._exit.wait()

    def exit(self) -> None:
        self.should_exit = True
        self._exit.set()


async def serve(hub: Hub, listener: socket.socket) -> None:
    """Serves a running hub until a signal ends it."""

    most = max(1, _descriptors_max() - _DESCRIPTORS_KEPT - _backlog())
    hub.core.connections_max = min(hub.core.connections_max, max(1, most - _REQUESTS_KEPT))

    class Protocol(_BoundedProtocol):
        bounds = Bounds(
            hub.core,
            Turnstile(_TURNS_AT_DOOR),
            connections_max=most,
            head_bytes_max=hub.config.http.head_bytes_max,
            head_s_max=hub.config.http.head_s_max,
        )

    server = _Server(
        uvicorn.Config(
            create_app(hub, drains=True),
            http=Protocol,
            backlog=_backlog(),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_FINISH_S,
        )
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if ended.is_set():
            server.force_exit = True
            server.exit()
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(sockets=[listener]))
            ending = tasks.create_task(_end(hub, server, ended))
            await serving
            ending.cancel()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _end(hub: Hub, server: _Server, ended: asyncio.Event) -> None:
    await ended.wait()
    logger.info("ending: open streams are told where to resume")
    await hub.drain()
    server.exit()
