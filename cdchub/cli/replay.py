"""`cdchub replay`: the captured tables as they were at a position, as a new database."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from cdchub.capture.connection import source_paths
from cdchub.capture.table import quote
from cdchub.catalog import TableSchema
from cdchub.change import InvalidText, SqliteValue, from_wire, transaction_mark
from cdchub.cli.rebuild import Files
from cdchub.errors import BadPosition, NotVerifiable, StartError, UsageError
from cdchub.log import Replica
from cdchub.log.protocol import Cursor, EpochInfo, Narrowing
from cdchub.position import AtLsn, Beginning, Now, Position, parse_since


def run(options: argparse.Namespace) -> int:
    out = Path(options.output)
    if out.exists():
        raise UsageError(f"{out} exists already: choose another name for -o")
    files = Files(source_paths(options.database))
    try:
        epoch, lsn = find_position(files, options.to)
        lsn = round_down(files, epoch, lsn)
        replica = files.replica(epoch, lsn)
        try:
            rows = write_database(replica, out)
        finally:
            replica.close()
    finally:
        files.close()
    print(f"{out}: {rows} rows of {len(replica.schemas)} tables as of {epoch.position(lsn)}")
    for table in sorted(replica.lost):
        print(
            f"cdchub: {table} is left out: it is not known from a break to the next base snapshot",
            file=sys.stderr,
        )
    return 1 if replica.lost else 0


def find_position(files: Files, text: str) -> tuple[EpochInfo, int]:
    """The epoch and LSN that `--to` names. Raises `UsageError` or `StartError`."""
    try:
        wanted = parse_since(text)
    except BadPosition as error:
        raise UsageError(f"--to: {error}") from error
    present, state = files.present(), files.reader.state()
    match wanted:
        case Now():
            return present, max(present.head_lsn, files.head_lsn())
        case Beginning():
            return present, present.floor_lsn if present.base_lsn is None else present.base_lsn
        case AtLsn(lsn):
            epoch = present
        case Position(name, lsn):
            found = state.by_name(name)
            if found is None:
                raise StartError(f"{text}: the log knows no epoch {name!r}")
            epoch = found
    head_lsn = epoch.head_lsn
    if epoch.number == present.number:
        head_lsn = max(head_lsn, files.head_lsn())
    if lsn > head_lsn:
        raise StartError(f"{text}: that is in the future, the newest position is {head_lsn}")
    if epoch.head_lsn < lsn < head_lsn:
        raise StartError(f"{text}: no hub has read that far yet, up to {epoch.head_lsn}; or use now")
    return epoch, lsn


def round_down(files: Files, epoch: EpochInfo, lsn: int) -> int:
    """The last LSN up to `lsn` at which a transaction had ended."""
    if not epoch.floor_lsn < lsn <= epoch.head_lsn:
        return lsn
    page = files.reader.read(
        Cursor(epoch.number, lsn - 1), upto=lsn, narrowing=Narrowing(), rows_max=1, bytes_max=1
    )
    if not page.entries:
        raise NotVerifiable(f"the log has no LSN {lsn}")
    txid, commit = transaction_mark(page.entries[0].data)
    return lsn if commit else txid - 1


def write_database(replica: Replica, out: Path) -> int:
    """Writes a replica's tables as a database. Returns how many rows they have."""
    # A name of our own, so that nobody's file is in the way.
    new = out.with_name(f"{out.name}.{os.getpid()}.new")
    try:
        new.unlink(missing_ok=True)
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            rows = _write(db, replica)
        new.rename(out)
    except (sqlite3.Error, OSError) as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise StartError(f"{out} can't be written: {error}") from error
    return rows


def _write(db: sqlite3.Connection, replica: Replica) -> int:
    rows = 0
    db.execute("PRAGMA journal_mode = OFF").fetchall()
    # The rows have met their constraints once, with functions that may not be at hand here.
    db.execute("PRAGMA ignore_check_constraints = ON")
    db.execute("BEGIN")
    for schema in sorted(replica.schemas.values(), key=lambda schema: schema.table):
        skipped = _create(db, schema)
        # Rows that have a rowid to be known by come first: the others take any that is left.
        for known_by_rowid in (True, False):
            for key, row in replica.rows(schema.table):
                rowid = _rowid(schema, key)
                if (rowid is not None) == known_by_rowid:
                    _insert(db, schema, rowid, row, skipped)
                    rows += 1
    db.execute("COMMIT")
    return rows


def _create(db: sqlite3.Connection, schema: TableSchema) -> tuple[str, ...]:
    """Makes a table, and returns which of its columns make themselves."""
    if schema.whole:
        try:
            db.execute(schema.sql)
        except sqlite3.Error as error:
            print(
                f"cdchub: {schema.table}: made without its constraints ({error})",
                file=sys.stderr,
            )
        else:
            return schema.generated
    columns = ", ".join(f"{quote(name)} {_type(kind)}" for name, kind in schema.columns)
    key = f", PRIMARY KEY({', '.join(map(quote, schema.key))})" if schema.key else ""
    db.execute(f"CREATE TABLE {quote(schema.table)}({columns}{key})")
    return ()


def _type(declared: str) -> str:
    if declared.upper() == "ANY":
        # Only a STRICT table takes it for what it says (sqlite.org/stricttables.html).
        return ""
    # A type is a word or several; anything else in it would have been a constraint's.
    return declared if all(c.isalnum() or c in " _(),." for c in declared) else quote(declared)


def _rowid(schema: TableSchema, key: bytes) -> SqliteValue:
    """The rowid that is in a key because the declared one does not tell rows apart."""
    if schema.rowid is None or "rowid" in schema.key:
        return None
    return from_wire(msgspec.json.decode(key).get("rowid"))


def _insert(
    db: sqlite3.Connection,
    schema: TableSchema,
    rowid: SqliteValue,
    row: bytes,
    skipped: tuple[str, ...],
) -> None:
    values = {name: from_wire(value) for name, value in msgspec.json.decode(row).items()}
    columns = {quote(name): v for name, v in values.items() if name not in skipped}
    if schema.rowid is not None and rowid is not None:
        columns[schema.rowid] = rowid
    marks = ", ".join(
        "CAST(? AS TEXT)" if isinstance(v, InvalidText) else "?" for v in columns.values()
    )
    bound: list[SqliteValue] = [bytes(v) if isinstance(v, InvalidText) else v for v in columns.values()]
    db.execute(f"INSERT INTO {quote(schema.table)}({', '.join(columns)}) VALUES ({marks})", bound)
