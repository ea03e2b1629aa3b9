"""`cdchub migrate`: a schema migration in one transaction, with capture out of its way where it must.

SQLite refuses a DROP COLUMN while a trigger names the column (sqlite.org/lang_altertable.html#dropcol).
So the script runs with capture in place; where a trigger of ours stops it, that table's are taken
down, and it runs again from the start. Then capture is brought in line, and followers are told what
became of the rows, all before the one COMMIT: no writer comes between. A hub may serve meanwhile.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cdchub.capture import install
from cdchub.capture.connection import open_source, source_paths, write_transaction
from cdchub.capture.difference import differs
from cdchub.capture.driver import Busy, Connection, SqliteFault
from cdchub.capture.outbox import Anchor
from cdchub.capture.schema import OWN_PREFIX, Schema
from cdchub.capture.table import columns_of, quote
from cdchub.capture.telling import TOLD_ROWS_MAX
from cdchub.catalog import fold_name
from cdchub.cli.rebuild import Files, apply_outbox
from cdchub.errors import MigrationFailed, NoBase, SourceBusy, UsageError
from cdchub.log import Replica

_OUR_TRIGGER = re.compile(rf"\b{OWN_PREFIX}(\d+)_\w+")
_COMMENTS = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
_WORD = re.compile(r"\w+")
_FOREIGN_KEYS_ON = re.compile(
    r"PRAGMA\s+(main\s*\.\s*)?foreign_keys\s*(=|\()\s*['\"]?(1|on|true|yes)\b", re.IGNORECASE
)
_PASSING = re.compile(r"CREATE\s+(UNIQUE\s+INDEX|(TEMP(ORARY)?\s+)?TRIGGER)\b", re.IGNORECASE)
_OUTER = frozenset(("BEGIN", "COMMIT", "END", "ROLLBACK"))
_TO_SAVEPOINT = re.compile(r"ROLLBACK\s+(TRANSACTION\s+)?TO\b", re.IGNORECASE)
_FOREIGN_KEY_CHECK = re.compile(r"PRAGMA\s+(main\s*\.\s*)?foreign_key_check\b", re.IGNORECASE)
_SHOWN_CHARS_MAX = 80
# Other writers finish first; a migration is worth waiting for.
_BUSY_TIMEOUT_S = 30.0


def run(options: argparse.Namespace) -> int:
    statements = list(read_script(Path(options.file)))
    paths = source_paths(options.database)
    files = Files(paths)
    known: Replica | None = None
    try:
        epoch = files.present()
        try:
            known = files.replica(epoch, files.head_lsn(), tables=_small_tables(files.connection))
        except NoBase as error:
            print(f"cdchub: {error}; followers of changed tables are reset", file=sys.stderr)
        connection = open_source(paths)
        try:
            connection.set_busy_timeout(_BUSY_TIMEOUT_S)
            with write_transaction(connection):
                if known is not None:
                    # Nobody can write now, so this is all that has happened.
                    files.catch_up(known, epoch.number, files.head_lsn())
                run_script(connection, statements)
                # What the script itself wrote is going to be told as it was written; what it did to
                # the same rows where no trigger saw it is the difference to that.
                anchor = None if known is None else Anchor(known.lsn, None)
                while known is not None and anchor is not None:
                    anchor = apply_outbox(connection, known, anchor)
                escaped = () if known is None else _changed_unseen(connection, known, statements)
                outcome = install.reconcile(connection, known=known, escaped=escaped)
        except Busy as error:
            raise SourceBusy(options.database, _BUSY_TIMEOUT_S) from error
        finally:
            connection.close()
    finally:
        if known is not None:
            known.close()
        files.close()
    for line in outcome.warnings:
        print(f"cdchub: warning: {line}", file=sys.stderr)
    told = outcome.told
    lines = [f"{name}: captured from now on" for name in told.entered]
    lines += [f"{name}: {count} changes" for name, count in told.differences.items()]
    lines += [f"{name}: subscribers are reset" for name in told.broken]
    print("; ".join([f"{options.file}: {len(statements)} statements", *lines]))
    return 0


def read_script(path: Path) -> Iterator[str]:
    """The statements of a script. Raises `UsageError` for what can't be run in one transaction."""
    try:
        # As it is: to read it as text would change the ends of lines, in strings too.
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: can't be read ({error})") from error
    if "\0" in text:
        raise UsageError(f"{path}: a NUL character ends what SQLite reads: take it out")
    statement = ""
    for part in re.split(r"(?<=;)", text):
        statement += part
        # It knows strings, comments and the bodies of triggers (sqlite.org/c3ref/complete.html).
        if sqlite3.complete_statement(statement):
            yield from _checked(path, statement)
            statement = ""
    if _body(statement):
        yield from _checked(path, statement + "\n;")


def _checked(path: Path, statement: str) -> Iterator[str]:
    body = _body(statement).rstrip("; \n")
    word = _WORD.match(body)
    if word and word[0].upper() in _OUTER and not _TO_SAVEPOINT.match(body):
        raise UsageError(
            f"{path}: leave {word[0].upper()} out: the whole script is run in one transaction"
        )
    if word and word[0].upper() in ("ATTACH", "DETACH"):
        raise UsageError(f"{path}: leave {word[0].upper()} out: a migration is of one database")
    if _FOREIGN_KEYS_ON.match(body):
        raise UsageError(
            f"{path}: PRAGMA foreign_keys does nothing inside a transaction, and the script is run in"
            " one: write to the child tables too"
        )
    if body:
        yield statement


def _body(statement: str) -> str:
    """A statement without the comments and blanks before it."""
    found = _COMMENTS.match(statement)
    return statement[found.end() :] if found else statement


def _small_tables(connection: Connection) -> list[str]:
    """The captured tables whose rows can be told one by one. One may be gone, which no hub has seen."""
    captured = install.load(connection)
    standing = Schema(connection).user_tables()
    names = [captured.shapes[table_id].name for table_id in captured.active]
    limited = "SELECT count(*) FROM (SELECT 1 FROM {} LIMIT {})"
    return [
        name
        for name in names
        if name not in standing
        or connection.value(limited.format(quote(name), TOLD_ROWS_MAX + 1)) <= TOLD_ROWS_MAX
    ]


def _changed_unseen(connection: Connection, known: Replica, statements: Sequence[str]) -> list[str]:
    """The tables that the script changed past their triggers. A unique index or a trigger that comes
    and goes can do that, and leaves no trace in the schema."""
    if not any(_PASSING.match(_body(statement)) for statement in statements):
        return []
    captured = install.load(connection)
    shapes = [captured.shapes[table_id] for table_id in captured.active]
    return [
        shape.name
        for shape in shapes
        # One that has other columns now is compared anyway.
        if known.knows(shape.name)
        and columns_of(connection, shape.name) == {fold_name(column.name) for column in shape.columns}
        and differs(connection, known, shape)
    ]


def run_script(connection: Connection, statements: list[str]) -> None:
    """Runs the statements, with those triggers of ours down that stand in their way.

    Raises `MigrationFailed`; then nothing of them is left.
    """
    down: set[int] = set()
    while True:
        connection.execute("SAVEPOINT _cdchub_script")
        for table_id in down:
            install.suspend(connection, table_id)
        stopped_by = _run_all(connection, statements)
        if stopped_by is None:
            connection.execute("RELEASE _cdchub_script")
            return
        number, error = stopped_by
        if connection.in_transaction:
            # OR ROLLBACK and RAISE(ROLLBACK) have ended it.
            connection.execute("ROLLBACK TO _cdchub_script")
            connection.execute("RELEASE _cdchub_script")
        ours = _OUR_TRIGGER.search(str(error)) if connection.in_transaction else None
        if ours is None or int(ours[1]) in down:
            shown = " ".join(_body(statements[number]).split())[:_SHOWN_CHARS_MAX]
            why = " ".join(str(error).split())
            raise MigrationFailed(f"statement {number + 1} ({shown}): {why}; nothing was changed")
        down.add(int(ours[1]))


def _run_all(connection: Connection, statements: list[str]) -> tuple[int, Exception] | None:
    """The first statement that fails, and why; None where none does."""
    for number, statement in enumerate(statements):
        try:
            rows = connection.execute(statement)
            if rows and _FOREIGN_KEY_CHECK.match(_body(statement)):
                broken = ", ".join(sorted({str(row[0]) for row in rows}))
                return number, ValueError(
                    f"{len(rows)} rows of {broken} refer to rows that are not there"
                )
        except Busy:
            raise
        except SqliteFault as error:
            return number, error
    return None
