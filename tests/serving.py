"""`cdchub serve` with what its options don't offer: another server, TLS, bounds of one's own.

`python -m tests.serving serve DB … [--http PROTOCOL] [--tls KEY CERTIFICATE] [--set stream.stall_s=1]`
Without `--http` the server is the product's; with it, uvicorn as anybody would start it: `httptools`
is its own protocol, through which a stream goes by ASGI.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace

import uvicorn
import uvloop

from cdchub.app import create_app
from cdchub.cli.options import parse
from cdchub.cli.serve import choice_from, serve_config, start_line
from cdchub.config import Config
from cdchub.hub import Hub
from cdchub.server import bind, serve, url_of

logger = logging.getLogger("cdchub")


def changed(config: Config, settings: list[str]) -> Config:
    """`config` with settings like `stream.stall_s=1`."""
    for setting in settings:
        path, _, text = setting.partition("=")
        part_name, _, name = path.partition(".")
        part = getattr(config, part_name)
        value = type(getattr(part, name))(text)
        config = replace(config, **{part_name: replace(part, **{name: value})})
    return config.checked()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_by_uvicorn(hub: Hub, listener: socket.socket, options: argparse.Namespace) -> None:
    key, certificate = options.tls or (None, None)
    server = _Server(
        uvicorn.Config(
            create_app(hub, drains=True),
            http=options.http,
            # `wsproto` would do as well; this one reads with the same library as our own server.
            ws="websockets-sansio",
            access_log=False,
            lifespan="off",
            log_config=None,
            ssl_keyfile=key,
            ssl_certfile=certificate,
            timeout_graceful_shutdown=5,
        )
    )
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await ended.wait()
    await hub.drain()
    server.should_exit = True
    await serving


async def run(hub: Hub, listener: socket.socket, options: argparse.Namespace) -> None:
    async with hub:
        logger.info("%s", start_line(hub, url_of(listener)))
        if options.http is None:
            await serve(hub, listener)
        else:
            await serve_by_uvicorn(hub, listener, options)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http")
    parser.add_argument("--tls", nargs=2)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options, words = parser.parse_known_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    served = parse(words, os.environ)
    config = changed(serve_config(served), options.settings)
    listener = bind(config.http, stall_s=config.stream.stall_s)
    hub = Hub(served.database, choice=choice_from(served), driver="apsw", config=config, exclusive=True)
    with listener:
        uvloop.run(run(hub, listener, options))


if __name__ == "__main__":
    main()
