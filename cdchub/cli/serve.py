"""`cdchub serve` and `cdchub demo`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random

import uvloop

from cdchub import views, ws
from cdchub.capture.choice import Choice, TableChoice
from cdchub.capture.connection import open_source, source_paths, write_transaction
from cdchub.capture.table import Grade
from cdchub.config import BaseConfig, Config, HttpConfig, LogConfig, StreamConfig
from cdchub.errors import UsageError
from cdchub.http import is_loopback, is_origin
from cdchub.hub import Hub
from cdchub.server import bind, serve, url_of
from cdchub.version import __version__

logger = logging.getLogger("cdchub")

DEMO_DATABASE = "cdchub-demo.db"
# About a day of simulated traffic: a demo that is forgotten must not fill a disk.
DEMO_LOG_BYTES = 64 * 2**20
# The first week of every demo is the same.
_DEMO_SEED = 7
_TABLES_NAMED_MAX = 8


def run(options: argparse.Namespace) -> int:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    if options.command == "demo":
        log = LogConfig(retain_bytes=DEMO_LOG_BYTES)
        config = Config(log=log, http=HttpConfig(port=options.port)).checked()
        listener = bind(config.http, stall_s=config.stream.stall_s)
        create_demo(Path(DEMO_DATABASE))
        hub = Hub(DEMO_DATABASE, driver="apsw", config=config, exclusive=True)
    else:
        config = serve_config(options)
        listener = bind(config.http, stall_s=config.stream.stall_s)
        if options.rooms:
            create_messages(options.database)
            # Named like any other, where only some tables are.
            options.table += [ws.TABLE] if options.table and "*" not in options.table else []
        hub = Hub(
            options.database,
            choice=choice_from(options),
            driver="apsw",
            config=config,
            exclusive=True,
        )
    with listener:
        if options.command == "demo":
            uvloop.run(_serve_demo(hub, listener, quiet=options.quiet))
        else:
            uvloop.run(_serve(hub, listener))
    return 0


async def _serve(hub: Hub, listener: socket.socket) -> None:
    async with hub:
        logger.info("%s", start_line(hub, url_of(listener)))
        await serve(hub, listener)


async def _serve_demo(hub: Hub, listener: socket.socket, *, quiet: bool) -> None:
    async with hub:
        url = url_of(listener)
        logger.info("%s", start_line(hub, url))
        logger.info("open %s/todos in two windows; then, in another shell:", url)
        logger.info("sqlite3 %s \"UPDATE todos SET title = title || '!'\"", DEMO_DATABASE)
        if quiet:
            await serve(hub, listener)
            return
        logger.info("watch simulated visitors at %s/dashboard (--quiet: none)", url)
        async with _traffic(hub):
            await serve(hub, listener)


@contextlib.asynccontextmanager
async def _traffic(hub: Hub) -> AsyncIterator[None]:
    """The simulator, as long as the block."""
    task = asyncio.create_task(views.simulate(hub.writer, Random()), name="cdchub-traffic")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def start_line(hub: Hub, url: str) -> str:
    """What is captured and where to point a browser, in one line."""
    names = [table.name for table in hub.core.present.catalog.tables]
    shown = ", ".join(names[:_TABLES_NAMED_MAX]) + (", …" if len(names) > _TABLES_NAMED_MAX else "")
    example = names[0] if len(names) == 1 else "*"
    count = f"{len(names)} table" + ("" if len(names) == 1 else "s")
    return (
        f"cdchub {__version__} streams {count} of {hub.paths.database} ({shown or 'none yet'}) "
        f"from {url}/cdc/stream?table={example}, pages at {url}/"
    )


def serve_config(options: argparse.Namespace) -> Config:
    """The configuration that the options describe. Raises `UsageError`."""
    if not is_loopback(options.host) and not options.anonymous:
        raise UsageError(
            f"--host {options.host} can be reached by others, and this hub has no credentials: "
            "add --anonymous to serve anybody"
        )
    for origin in options.cors_origin:
        if not is_origin(origin):
            raise UsageError(f"--cors-origin {origin}: use https://example.org, without a path")
    stream, log = StreamConfig(), LogConfig()
    if options.heartbeat is not None:
        stream = replace(stream, heartbeat_s=options.heartbeat)
    if options.drain is not None:
        stream = replace(stream, drain_s=options.drain)
    if options.retain_age is not None:
        log = replace(log, retain_age_s=options.retain_age)
    if options.retain_changes is not None:
        log = replace(log, retain_changes=options.retain_changes)
    if options.retain_bytes is not None:
        log = replace(log, retain_bytes=options.retain_bytes)
    if options.no_base and options.base_interval is not None:
        raise UsageError("--base-interval and --no-base exclude each other")
    base = BaseConfig(enabled=not options.no_base, interval_s=options.base_interval)
    http = HttpConfig(
        host=options.host,
        port=options.port,
        cors_origins=tuple(options.cors_origin),
        allowed_hosts=tuple(options.allow_host),
        anonymous=options.anonymous,
    )
    return Config(stream=stream, log=log, base=base, http=http).checked()


def choice_from(options: argparse.Namespace) -> Choice | None:
    """What `--table` and `--exclude` choose; None where neither was given. Raises `UsageError`."""
    if not options.table and not options.exclude:
        return None
    named = tuple(_table_choice(text) for text in options.table if text != "*")
    if options.table and "*" not in options.table:
        return Choice(named, tuple(options.exclude))
    return Choice(None, tuple(options.exclude), rooms=named)


def _table_choice(text: str) -> TableChoice:
    # Options are cut off at the end, so that a name may hold a colon.
    rest, mark, word = text.rpartition(":capture=")
    grade = _grade(text, word) if mark else Grade.FULL
    named = rest if mark else text
    name, mark, room = named.rpartition(":room=")
    if not mark:
        name = named
    if not name or (mark and not room):
        raise UsageError(f"--table {text}: use T[:room=COL][:capture=full|plain]")
    return TableChoice(name, room if mark else None, grade)


def _grade(text: str, word: str) -> Grade:
    try:
        return Grade(word)
    except ValueError:
        raise UsageError(
            f"--table {text}: :capture= comes last and is 'full' or 'plain', not {word!r}"
        ) from None


def create_messages(database: str) -> None:
    """Creates the table of the chat rooms, if it isn't there. Raises `StartError`."""
    connection = open_source(source_paths(database))
    try:
        with write_transaction(connection):
            connection.execute(ws.SCHEMA)
    finally:
        connection.close()


def create_demo(path: Path) -> None:
    """Creates the demo's database if it isn't there, with a week of which the pages can tell."""
    new = not path.exists()
    path.touch()
    connection = open_source(source_paths(path))
    try:
        connection.pragma("journal_mode", "wal")
        with write_transaction(connection):
            connection.execute(views.SCHEMA)
            if new:
                now_ms = time.time_ns() // 1_000_000
                for sql, parameters in views.past(now_ms, Random(_DEMO_SEED)):
                    connection.execute(sql, parameters)
    finally:
        connection.close()
