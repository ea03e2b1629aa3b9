"""`cdchub init` and `cdchub deinit`."""

from __future__ import annotations

import argparse
import logging
import sys

from cdchub.capture import install
from cdchub.capture.connection import (
    Owner,
    SourcePaths,
    journal_mode,
    open_source,
    require_wal,
    source_paths,
    translated,
    write_transaction,
)
from cdchub.capture.tailer import Tailer
from cdchub.cli.serve import choice_from
from cdchub.config import Config
from cdchub.errors import NotCaptured, UsageError
from cdchub.log import LogWriter, mark_of
from cdchub.log.protocol import Appended, Delivery


def run(options: argparse.Namespace) -> int:
    paths = source_paths(options.database)
    # Opened before the lock, so that what is no database gets no lock file beside it.
    connection = open_source(paths)
    try:
        if options.command == "init" and not options.wal:
            require_wal(connection, paths)
    finally:
        connection.close()
    owner = Owner(paths)
    owner.acquire()
    try:
        if options.command == "deinit":
            return _deinit(paths, options)
        _init(paths, options, owner)
        owner.left = mark_of(paths.log)
        return 0
    finally:
        owner.release(owner.left)


def _init(paths: SourcePaths, options: argparse.Namespace, owner: Owner) -> None:
    connection = open_source(paths)
    try:
        with translated(paths):
            if options.wal and journal_mode(connection) != "wal":
                connection.pragma("journal_mode", "wal")
            require_wal(connection, paths)
    finally:
        connection.close()
    logging.basicConfig(stream=sys.stderr, format="cdchub: warning: %(message)s")
    config = Config()

    def deliver(delivery: Delivery) -> None:
        # Nobody follows yet.
        if isinstance(delivery, Appended):
            tailer.accepted()

    log = LogWriter(
        paths.log,
        database=paths.database,
        left=owner.left,
        reached_lsn=owner.reached_lsn,
        note=owner.note,
    )
    try:
        tailer = Tailer(paths, log, choice=choice_from(options), config=config, deliver=deliver)
        _, catalog = tailer.open()
        try:
            # The log begins here, with what the tables hold now.
            tailer.settle()
        finally:
            tailer.stop()
    except BaseException:
        owner.left = log.close_as_found(owner.left)
        raise
    names = ", ".join(table.name for table in catalog.tables)
    print(f"capturing {names or 'no table yet'}; next: cdchub serve {options.database}")


def _deinit(paths: SourcePaths, options: argparse.Namespace) -> int:
    connection = open_source(paths)
    try:
        with translated(paths):
            if not install.has_traces(connection) and not paths.log.exists():
                raise NotCaptured(options.database)
            _confirm(options)
            with write_transaction(connection):
                install.uninstall(connection)
    finally:
        connection.close()
    for suffix in ("", "-wal", "-shm", ".new"):
        paths.log.with_name(paths.log.name + suffix).unlink(missing_ok=True)
    paths.lock.unlink(missing_ok=True)
    print(f"{options.database}: capture and its log are gone")
    return 0


def _confirm(options: argparse.Namespace) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("deinit removes the change log for good: say so with --yes")
    answer = input(f"Remove capture and the change log of {options.database}? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was removed")
