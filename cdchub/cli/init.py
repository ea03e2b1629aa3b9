"""`cdchub init` and `cdchub deinit`."""

from __future__ import annotations

import argparse
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
from cdchub.cli.serve import choice_from
from cdchub.errors import NotCaptured, UsageError


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
        return _init(paths, options) if options.command == "init" else _deinit(paths, options)
    finally:
        owner.release()


def _init(paths: SourcePaths, options: argparse.Namespace) -> int:
    connection = open_source(paths)
    try:
        with translated(paths):
            if options.wal and journal_mode(connection) != "wal":
                connection.pragma("journal_mode", "wal")
            require_wal(connection, paths)
            with write_transaction(connection):
                outcome = install.reconcile(connection, choice_from(options), strict=True)
    finally:
        connection.close()
    for line in outcome.warnings:
        print(f"cdchub: warning: {line}", file=sys.stderr)
    names = [table.name for table in outcome.captured.catalog().tables]
    print(f"capturing {', '.join(names) or 'no table yet'}; next: cdchub serve {options.database}")
    return 0


def _deinit(paths: SourcePaths, options: argparse.Namespace) -> int:
    connection = open_source(paths)
    try:
        with translated(paths):
            if not install.is_installed(connection) and not paths.log.exists():
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
