"""The listener: a bound socket, uvicorn around the app, and an orderly end.

At SIGTERM or SIGINT new streams are refused and open ones end spread over the drain window, each
with its position, so that their clients come back spread out too. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn

from cdchub.app import create_app
from cdchub.config import HttpConfig
from cdchub.errors import StartError
from cdchub.hub import Hub

logger = logging.getLogger("cdchub")

# Requests that are no streams get so long to finish after the streams have ended.
_FINISH_S = 5
_TICK_S = 1.0


class PortUnavailable(StartError):
    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(f"can't listen on {host}:{port}: {why}; choose with --host and --port")


def bind(config: HttpConfig) -> socket.socket:
    """A listening socket, bound before anything else is touched. Raises `PortUnavailable`."""
    try:
        infos = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = infos[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2_048)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise PortUnavailable(config.host, config.port, error.strerror or str(error)) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the listener."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._exit.wait()

    def exit(self) -> None:
        self.should_exit = True
        self._exit.set()


async def serve(hub: Hub, listener: socket.socket) -> None:
    """Serves a running hub until a signal ends it."""
    server = _Server(
        uvicorn.Config(
            create_app(hub, drains=True),
            http="httptools",
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
