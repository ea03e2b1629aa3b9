"""Reading all rows of a table, in batches and in constant memory, exactly as they are stored."""

from __future__ import annotations

import marshal
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from cdchub.capture.schema import Database
from cdchub.capture.table import Shape, quote, rowid_text
from cdchub.change import InvalidText, SqliteValue
from cdchub.filter import EVERYTHING, Narrow

# What SQLite returns is untyped: the rowid, or None without one, then the captured values.
ScannedRow = tuple[Any, ...]

# A batch: its columns are encoded together, and it is all that is in memory, some five times over.
BATCH_ROWS = 500
BATCH_BYTES_MAX = 8 * 2**20
# So many rows are read before their bytes are counted, and only one where rows are larger than that.
_PIECE_ROWS, _PIECE_BYTES = 32, 64 * 2**10


def scan(db: Database, shape: Shape, where: Narrow = EVERYTHING) -> Iterator[list[ScannedRow]]:
    """Batches of rows, in key order, without those that `where` leaves out."""
    rowid = rowid_text(shape)
    first = "NULL" if rowid is None else f"_cdchub_t.{rowid}"
    columns = [f"_cdchub_t.{quote(name)}" for name in shape.captured]
    order = [f"_cdchub_t.{quote(name)}" for name in shape.key] or [first]
    tail = f"FROM {quote(shape.name)} _cdchub_t {where.sql} ORDER BY {', '.join(order)}"
    done = 0
    try:
        sql = f"SELECT {first}, {', '.join(columns)} {tail}"
        with closing(db.iterate(sql, where.values)) as rows:
            while batch := take(rows, BATCH_ROWS):
                yield batch
                done += len(batch)
    except UnicodeDecodeError:
        # One row holds TEXT that is no UTF-8: go on from that batch, reading bytes.
        codec = text_codec(db)
        sql = f"SELECT {first}, {exact_columns(columns)} {tail} LIMIT -1 OFFSET ?"
        with closing(db.iterate(sql, (*where.values, done))) as rows:
            while found := take(rows, BATCH_ROWS):
                yield [(row[0], *decode_exact(row[1:], codec)) for row in found]


def scan_sql(shape: Shape) -> str:
    """What a scan of the table asks, for no rows: whether it can be asked."""
    order = [quote(name) for name in shape.key] or [rowid_text(shape) or "NULL"]
    columns = ", ".join(quote(name) for name in shape.captured)
    return f"SELECT {columns} FROM {quote(shape.name)} ORDER BY {', '.join(order)} LIMIT 0"


def take(rows: Iterator[Any], rows_max: int) -> list[Any]:
    """The next rows, at most `rows_max`, and no further ones when they have `BATCH_BYTES_MAX`."""
    found: list[Any] = []
    size = 0
    piece_rows = 1
    while len(found) < rows_max and size < BATCH_BYTES_MAX:
        piece = list(islice(rows, min(piece_rows, rows_max - len(found))))
        if not piece:
            break
        found += piece
        # What counts the bytes of values quickest.
        piece_bytes = len(marshal.dumps(piece))
        size += piece_bytes
        piece_rows = min(2 * piece_rows, _PIECE_ROWS) if piece_bytes < _PIECE_BYTES else 1
    return found


def exact_columns(columns: Sequence[str]) -> str:
    """A select list that reads TEXT as bytes with a mark, for rows that hold invalid UTF-8."""
    return ", ".join(
        f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END, typeof({c}) = 'text'"
        for c in columns
    )


def text_codec(db: Database) -> str:
    """How the bytes are to be read that a cast makes of TEXT: they are the database's own."""
    ((encoding,),) = db.execute("PRAGMA encoding")
    return codec_of(encoding)


def codec_of(encoding: str) -> str:
    """Python's name of an encoding of SQLite's."""
    return _CODECS[encoding]


_CODECS = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}


def decode_exact(pairs: Sequence[SqliteValue], codec: str) -> tuple[SqliteValue, ...]:
    """What `exact_columns` selected, as values: TEXT that is not UTF-8 becomes `InvalidText`."""
    return tuple(
        _text(value, codec) if is_text and isinstance(value, bytes) else value
        for value, is_text in zip(pairs[::2], pairs[1::2], strict=True)
    )


def _text(raw: bytes, codec: str) -> str | InvalidText:
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        # In UTF-16 that is half of a pair, which UTF-8 has no place for either.
        whole = codec == "utf-8"
        return InvalidText(raw if whole else raw.decode(codec, _HALVES).encode("utf-8", _HALVES))


def castable(value: InvalidText, codec: str) -> bytes:
    """The bytes of which a cast makes such a TEXT again: those that the database has of it."""
    return bytes(value) if codec == "utf-8" else value.decode("utf-8", _HALVES).encode(codec, _HALVES)


_HALVES = "surrogatepass"
