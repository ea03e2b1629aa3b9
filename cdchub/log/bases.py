"""Base snapshots in the log: every captured row at one LSN, so that history begins with a state.

A base is written in slices beside the appends and counts only when it is complete; what a crash
left half-written is swept away. Its rows are the SNAPSHOT changes that a stream would carry,
compressed, in chunks of one table each.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from cdchub.catalog import TableSchema
from cdchub.log.protocol import BaseChunk, BaseInfo

# Chunks that one turn of the writer deletes: some milliseconds.
SWEEP_CHUNKS_MAX = 16

_COLUMNS = "id, epoch, lsn, rows, bytes, taken_ms, tables"
_decoder = msgspec.json.Decoder(tuple[TableSchema, ...])


def read_bases(db: sqlite3.Connection) -> list[BaseInfo]:
    """The complete bases, oldest first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM bases WHERE complete = 1 ORDER BY epoch, lsn")
    return [
        BaseInfo(id, epoch, lsn, count, size, taken_ms, _decoder.decode(tables))
        for id, epoch, lsn, count, size, taken_ms, tables in rows
    ]


def read_chunks(
    db: sqlite3.Connection, base_id: int, tables: Sequence[str] | None
) -> Iterator[tuple[str, list[bytes]]]:
    """The rows of a base as lines, by table, in key order; of all tables where none are named."""
    if tables is None:
        chunks = db.execute("SELECT tbl, data FROM base_chunks WHERE base = ? ORDER BY id", (base_id,))
    else:
        marks = ", ".join("?" * len(tables))
        chunks = db.execute(
            f"SELECT tbl, data FROM base_chunks WHERE base = ? AND tbl IN ({marks}) ORDER BY id",
            (base_id, *tables),
        )
    for table, data in chunks:
        yield table, zlib.decompress(data).splitlines()


def begin(
    db: sqlite3.Connection,
    epoch_number: int,
    lsn: int,
    tables: Sequence[TableSchema],
    *,
    now_ms: int,
) -> int:
    """Notes a base that is going to be written, and returns its id. Another unfinished one goes."""
    drop_unfinished(db)
    cursor = db.execute(
        "INSERT INTO bases(epoch, lsn, complete, taken_ms, rows, bytes, tables)"
        " VALUES (?, ?, 0, ?, 0, 0, ?)",
        (epoch_number, lsn, now_ms, msgspec.json.encode(tables).decode()),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def add(db: sqlite3.Connection, base_id: int, chunks: Sequence[BaseChunk]) -> None:
    db.executemany(
        "INSERT INTO base_chunks(base, tbl, data) VALUES (?, ?, ?)",
        [(base_id, chunk.table, chunk.data) for chunk in chunks],
    )


def finish(db: sqlite3.Connection, base_id: int, *, rows: int, bytes: int) -> None:
    db.execute(
        "UPDATE bases SET complete = 1, rows = ?, bytes = ? WHERE id = ?", (rows, bytes, base_id)
    )


def drop_unfinished(db: sqlite3.Connection) -> None:
    """Marks what was half-written as not wanted any more; `sweep` frees its room."""
    db.execute("UPDATE bases SET complete = -1 WHERE complete = 0")


def discard(db: sqlite3.Connection, condition: str, parameters: Sequence[int]) -> None:
    """Marks bases as not wanted any more; `sweep` frees their room."""
    db.execute(f"UPDATE bases SET complete = -1 WHERE complete = 1 AND {condition}", parameters)


def sweep(db: sqlite3.Connection) -> int:
    """Deletes a slice of what is discarded. Returns how many chunks and bases went."""
    row = db.execute("SELECT id FROM bases WHERE complete = -1 LIMIT 1").fetchone()
    if row is None:
        return 0
    gone = db.execute(
        "DELETE FROM base_chunks WHERE id IN (SELECT id FROM base_chunks WHERE base = ? LIMIT ?)",
        (row[0], SWEEP_CHUNKS_MAX),
    ).rowcount
    if gone < SWEEP_CHUNKS_MAX:
        db.execute("DELETE FROM bases WHERE id = ?", row)
        gone += 1
    return gone
