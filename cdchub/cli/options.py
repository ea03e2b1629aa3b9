"""Options: their words, and the layers they come from.

The command line wins over the environment (`CDCHUB_PORT`), that over the file that `--config` names
(`port = 8787`), and that over the defaults. Errors are one line and exit 2.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cdchub.errors import UsageError
from cdchub.version import __version__

ENVIRONMENT_PREFIX = "CDCHUB_"


class Parser(argparse.ArgumentParser):
    """argparse, but wrong words are one line, raised instead of printed."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """The command and its options. Raises `UsageError`."""
    parser, commands = build_parser()
    given = parser.parse_args(arguments)
    command = commands[given.command]
    layers = _defaults(command, given.config, environment)
    # argparse would append to a list that a layer gives; but here too the command line wins.
    layers = {n: v for n, v in layers.items() if not (isinstance(v, list) and getattr(given, n))}
    if layers:
        # A second pass: what the command line names replaces what the layers say.
        command.set_defaults(**layers)
        given = parser.parse_args(arguments)
    return given


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="cdchub",
        description="Makes a SQLite database live: every committed change, to every subscriber.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cdchub {__version__}")
    words = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    commands = {
        "serve": _serve(words),
        "demo": _demo(words),
        "init": _init(words),
        "deinit": _deinit(words),
        "tail": _tail(words),
        "status": _status(words),
        "verify": _verify(words),
        "replay": _replay(words),
        "migrate": _migrate(words),
    }
    for command in commands.values():
        command.add_argument("--config", metavar="FILE", help="a TOML file with these options")
    return parser, commands


def _add(words: Any, name: str, text: str) -> Parser:
    command: Parser = words.add_parser(name, help=text, description=text, allow_abbrev=False)
    return command


def _serve(words: Any) -> Parser:
    command = _add(words, "serve", "install capture if needed, and serve the change stream")
    command.add_argument("database", metavar="DB")
    _choice(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    command.add_argument("--port", type=int, default=8787, help="port, 0 for any (%(default)s)")
    command.add_argument(
        "--cors-origin", action="append", metavar="ORIGIN", default=[], help="a page that may ask"
    )
    command.add_argument(
        "--allow-host", action="append", metavar="HOST", default=[], help="a Host to answer to"
    )
    command.add_argument("--anonymous", action="store_true", help="serve anybody, also beyond loopback")
    command.add_argument("--heartbeat", type=float, metavar="S", help="seconds between heartbeats")
    command.add_argument("--drain", type=float, metavar="S", help="seconds to end open streams in")
    command.add_argument("--retain-age", type=float, metavar="S", help="keep changes so long")
    command.add_argument("--retain-changes", type=int, metavar="N", help="keep so many changes")
    command.add_argument("--retain-bytes", type=int, metavar="N", help="keep a log of this size")
    command.add_argument(
        "--base-interval", type=float, metavar="S", help="seconds between base snapshots of the log"
    )
    command.add_argument(
        "--no-base", action="store_true", help="no base snapshots: nothing to replay or verify from"
    )
    command.add_argument(
        "--rooms",
        action="store_true",
        help="chat rooms: create the table messages if it is missing",
    )
    return command


def _demo(words: Any) -> Parser:
    command = _add(words, "demo", "serve a ready-made database with live pages")
    command.add_argument("--port", type=int, default=8787, help="port, 0 for any (%(default)s)")
    command.add_argument("--quiet", action="store_true", help="no simulated traffic")
    return command


def _init(words: Any) -> Parser:
    command = _add(words, "init", "install capture in a database")
    command.add_argument("database", metavar="DB")
    _choice(command)
    command.add_argument("--wal", action="store_true", help="switch the journal mode to WAL")
    return command


def _deinit(words: Any) -> Parser:
    command = _add(words, "deinit", "remove every trace of capture, and the change log")
    command.add_argument("database", metavar="DB")
    command.add_argument("--yes", action="store_true", help="don't ask")
    return command


def _tail(words: Any) -> Parser:
    command = _add(words, "tail", "print changes as they are committed")
    command.add_argument("source", metavar="DB_OR_URL")
    command.add_argument("--table", action="append", default=[], metavar="T", help="only this one")
    command.add_argument("--room", metavar="R", help="only this room")
    command.add_argument("--since", metavar="P", help="<epoch>:<lsn>, <lsn>, now or beginning")
    command.add_argument("--snapshot", action="store_true", help="first the rows that are there")
    formats = ["pretty", "json", "debezium", "cloudevents"]
    command.add_argument("--format", choices=formats, help="pretty on a terminal, json in a pipe")
    command.add_argument("--no-follow", action="store_true", help="end at the present")
    command.add_argument(
        "--check", action="store_true", help="compare what the stream tells with what the hub holds"
    )
    command.add_argument("--token", metavar="T", help="credential for a URL")
    return command


def _status(words: Any) -> Parser:
    command = _add(words, "status", "what a hub, or a database and its log, are doing")
    command.add_argument("source", metavar="DB_OR_URL")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--watch", action="store_true", help="again every second")
    command.add_argument("--token", metavar="T", help="credential for a URL")
    return command


def _verify(words: Any) -> Parser:
    command = _add(words, "verify", "replay the log and compare it with the tables, row by row")
    command.add_argument("database", metavar="DB")
    return command


def _replay(words: Any) -> Parser:
    command = _add(words, "replay", "the captured tables as they were at a position")
    command.add_argument("database", metavar="DB")
    command.add_argument(
        "--to", metavar="P", required=True, help="<epoch>:<lsn>, <lsn>, now or beginning"
    )
    command.add_argument("-o", dest="output", metavar="OUT.db", required=True, help="the new database")
    return command


def _migrate(words: Any) -> Parser:
    command = _add(words, "migrate", "run a schema migration that capture would block")
    command.add_argument("database", metavar="DB")
    command.add_argument("file", metavar="FILE.sql", help="run in one transaction")
    return command


def _choice(command: Parser) -> None:
    command.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="T[:room=COL][:capture=plain]",
        help="a table to capture; without it (or with *) every user table, also later ones",
    )
    command.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="T[.COL]",
        help="keep it out of everything",
    )


def _defaults(command: Parser, file: str | None, environment: Mapping[str, str]) -> dict[str, object]:
    actions = {
        action.dest: action
        for action in command._actions
        if action.option_strings and action.dest not in ("help", "config")
    }
    values: dict[str, object] = {}
    file = file or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if file is not None:
        values |= _from_file(Path(file), actions)
    for name, action in actions.items():
        text = environment.get(f"{ENVIRONMENT_PREFIX}{name.upper()}")
        if text is not None:
            values[name] = _converted(action, text, f"{ENVIRONMENT_PREFIX}{name.upper()}")
    return values


def _from_file(path: Path, actions: Mapping[str, argparse.Action]) -> dict[str, object]:
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    values = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in actions:
            raise UsageError(f"--config {path}: there is no option {key!r}")
        values[name] = _converted(actions[name], value, f"--config {path}: {key}")
    return values


def _converted(action: argparse.Action, value: object, where: str) -> object:
    """A value as the command line would have made it. A list in the environment has commas."""
    if isinstance(action.default, list):
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"{where}: a list of strings is wanted")
        return parts
    if action.nargs == 0:
        if isinstance(value, str) and value.lower() in ("0", "false", "no", ""):
            return False
        if isinstance(value, str) and value.lower() not in ("1", "true", "yes"):
            raise UsageError(f"{where}: 1 or 0 is wanted")
        return bool(value)
    if action.choices is not None and value not in action.choices:
        raise UsageError(f"{where}: one of {', '.join(action.choices)} is wanted")
    if callable(action.type):
        try:
            return action.type(str(value))
        except ValueError as error:
            raise UsageError(f"{where}: {value!r} is not a number") from error
    return str(value)


def is_url(source: str) -> bool:
    """Whether a source is a hub's address, not a file. Raises `UsageError` for one without a host."""
    if not source.startswith(("http://", "https://")):
        return False
    if not source.split("://", 1)[1].strip("/"):
        raise UsageError(f"{source}: there is no host in this address")
    return True


def environment() -> Mapping[str, str]:
    return os.environ
