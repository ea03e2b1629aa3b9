"""`cdchub tail`: changes on standard output, from a file or from a hub's URL."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cdchub.capture.connection import source_paths
from cdchub.catalog import fold_name
from cdchub.cli.check import Checker
from cdchub.cli.follow import Follower, Note
from cdchub.cli.options import is_url
from cdchub.cli.pretty import pretty
from cdchub.client import Client
from cdchub.errors import BadPosition, RequestError, StartError, UsageError
from cdchub.fanout import Format, encode
from cdchub.position import Now, parse_since


def run(options: argparse.Namespace) -> int:
    printer = Printer(options.format)
    if options.since is not None:
        try:
            parse_since(options.since)
        except BadPosition as error:
            raise UsageError(f"--since: {error}") from error
    if options.check and not is_url(options.source):
        raise UsageError("--check compares a stream with its hub: give the hub's URL, or use verify")
    if options.check and not (options.since is None or options.since == "beginning"):
        raise UsageError("--check begins with a snapshot, or with --since beginning")
    if options.check and _wire_format(options) is not Format.CDCHUB:
        raise UsageError("--check reads the hub's own format: leave out --format")
    if options.check:
        asyncio.run(_check_url(options, printer))
    elif is_url(options.source):
        asyncio.run(_tail_url(options, printer))
    else:
        _tail_file(options, printer)
    return 0


def _wire_format(options: argparse.Namespace) -> Format:
    """The format that a change comes in; `pretty` and `json` are made of the hub's own."""
    own = options.format in (None, "pretty", "json")
    return Format.CDCHUB if own else Format(options.format)


class Printer:
    """Changes to standard output, one a line, each flushed; everything else to standard error."""

    def __init__(self, format: str | None) -> None:
        self._terminal = sys.stdout.isatty()
        self._pretty = format == "pretty" or (format is None and self._terminal)

    def change(self, data: bytes) -> None:
        if self._pretty:
            print(pretty(data, colour=self._terminal), flush=True)
        else:
            sys.stdout.buffer.write(data + b"\n")
            sys.stdout.buffer.flush()

    def note(self, text: str) -> None:
        print(f"cdchub: {text}", file=sys.stderr, flush=True)


def _tail_file(options: argparse.Namespace, printer: Printer) -> None:
    paths = source_paths(options.source)
    try:
        follower = Follower(paths, options.table, options.room)
    except RequestError as error:
        raise StartError(error.detail) from error
    since = Now() if options.since is None else parse_since(options.since)
    try:
        for item in follower.items(since, snapshot=options.snapshot, follow=not options.no_follow):
            if isinstance(item, Note):
                printer.note(item.text)
            else:
                printer.change(encode(_wire_format(options), follower.epoch, item))
    finally:
        follower.close()


def _checked_tables(
    known: Sequence[Mapping[str, Any]], options: Sequence[str], *, room: str | None
) -> list[str]:
    """The tables to compare, as the hub calls them; with a room only those that have rooms."""
    names = [name for option in options or ["*"] for name in option.split(",")]
    if "*" in names:
        return [table["table"] for table in known if room is None or table["room"] is not None]
    folded = {fold_name(table["table"]): table["table"] for table in known}
    # The hub says what there is to say of one that it doesn't know.
    return [folded.get(fold_name(name), name) for name in names]


async def _check_url(options: argparse.Namespace, printer: Printer) -> None:
    """Prints like `_tail_url`, and compares what it makes of the stream with what the hub holds."""
    async with Client(options.source, token=options.token) as client:
        tables = _checked_tables(await client.tables(), options.table, room=options.room)
        checker = Checker(client, tables, options.room, follow=not options.no_follow)
        events = client.events(
            tables,
            room=options.room,
            since=options.since,
            snapshot=options.since is None,
            positions=True,
        )
        async for event in events:
            line = await checker.take(event)
            if event.name == "message":
                printer.change(event.data.encode())
            if line is not None:
                printer.note(line)
            if checker.done:
                return


async def _tail_url(options: argparse.Namespace, printer: Printer) -> None:
    async with Client(options.source, token=options.token) as client:
        events = client.events(
            options.table,
            room=options.room,
            since=options.since,
            snapshot=options.snapshot,
            format=_wire_format(options).value,
            follow=not options.no_follow,
        )
        async for event in events:
            if event.name == "message":
                printer.change(event.data.encode())
            elif event.name in ("reset", "error", "refused"):
                printer.note(f"{event.name}: {event.data}")
