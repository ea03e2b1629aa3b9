"""`cdchub status`: of a hub by URL, or of a database and its log by path. It only reads."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping

import msgspec

from cdchub.capture import install
from cdchub.capture.connection import SourcePaths, open_source, owner_pid, source_paths, translated
from cdchub.capture.outbox import outbox_head
from cdchub.capture.triggers import OUTBOX
from cdchub.cli.options import is_url
from cdchub.client import Client
from cdchub.errors import NotCaptured
from cdchub.log import LogReader
from cdchub.version import __version__

_AGAIN_S = 1.0


def run(options: argparse.Namespace) -> int:
    while True:
        document = (
            asyncio.run(_of_url(options))
            if is_url(options.source)
            else _of_file(source_paths(options.source))
        )
        if options.json:
            print(msgspec.json.encode(document).decode(), flush=True)
        else:
            if options.watch and sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            print("\n".join(_lines(document)), flush=True)
        if not options.watch:
            return 0
        time.sleep(_AGAIN_S)


async def _of_url(options: argparse.Namespace) -> Mapping[str, object]:
    async with Client(options.source, token=options.token) as client:
        return await client.status()


def _of_file(paths: SourcePaths) -> Mapping[str, object]:
    connection = open_source(paths, read_only=True)
    try:
        with translated(paths):
            if not install.is_installed(connection):
                raise NotCaptured(str(paths.database))
            catalog = install.load(connection).catalog()
            source_head = outbox_head(connection).lsn
            rows = connection.value(f"SELECT count(*) FROM {OUTBOX}")
    finally:
        connection.close()
    document: dict[str, object] = {
        "version": __version__,
        "database": str(paths.database),
        "servedByPid": owner_pid(paths),
        "tables": [table.name for table in catalog.tables],
        "outbox": {"headLsn": source_head, "rows": rows},
    }
    if paths.log.exists():
        reader = LogReader(paths.log)
        try:
            state = reader.state()
        finally:
            reader.close()
        if state.epochs:
            present = state.present
            document |= {
                "epoch": present.epoch,
                "firstLsn": present.floor_lsn + 1,
                "headLsn": present.head_lsn,
                "lagLsn": max(0, source_head - present.head_lsn),
                "log": {"bytes": paths.log.stat().st_size, "epochs": len(state.epochs)},
            }
    return document


def _lines(document: Mapping[str, object], prefix: str = "") -> list[str]:
    """The document as `name  value` lines, nested names joined by dots."""
    lines = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{prefix}{name}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{prefix + name:<28} {'-' if shown in (None, '') else shown}")
    return lines
