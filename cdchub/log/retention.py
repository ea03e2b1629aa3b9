"""What the log lets go of: where history may begin, and the sweeping up behind it.

The floor moves at once, from one complete base snapshot to a newer one (or freely, where there are
to be no bases); the blocks and bases below it are deleted in slices, so that an append never waits
for long. The newest block stays whatever the bounds say: it holds the anchor.
"""

from __future__ import annotations

import sqlite3

from cdchub.log import bases
from cdchub.log.blocks import LSN_MAX, key_of, routes
from cdchub.log.protocol import EpochInfo, LogState, Retention

# Blocks that one turn deletes: some milliseconds of the log's writer.
SWEEP_BLOCKS_MAX = 8


def sweep(db: sqlite3.Connection, state: LogState) -> int:
    """Deletes a slice of what lies below the floors. Returns how much went, 0 when all is clean."""
    return bases.sweep(db) or _sweep_blocks(db, state)


def _sweep_blocks(db: sqlite3.Connection, state: LogState) -> int:
    floors = {info.number: info.floor_lsn for info in state.epochs}
    newest = db.execute("SELECT max(id) FROM blocks").fetchone()[0]
    gone = 0
    blocks = db.execute("SELECT id, last_lsn FROM blocks ORDER BY id LIMIT ?", (SWEEP_BLOCKS_MAX,))
    for block, last_lsn in blocks.fetchall():
        epoch_number = block >> LSN_MAX.bit_length()
        if block == newest or last_lsn > floors.get(epoch_number, LSN_MAX):
            break
        _delete_block(db, block)
        gone += 1
    return gone


def _delete_block(db: sqlite3.Connection, block: int) -> None:
    (index,) = db.execute("SELECT entries FROM blocks WHERE id = ?", (block,)).fetchone()
    tables, rooms = routes(index)
    for name in ("block_tables", "block_breaks"):
        db.executemany(
            f"DELETE FROM {name} WHERE tbl = ? AND block = ?", [(table, block) for table in tables]
        )
    db.executemany(
        "DELETE FROM block_rooms WHERE tbl = ? AND room = ? AND block = ?",
        [(table, room, block) for table, room in rooms],
    )
    db.execute("DELETE FROM blocks WHERE id = ?", (block,))


def wanted_floor(
    db: sqlite3.Connection, state: LogState, retention: Retention, *, now_ms: int, size_bytes: int
) -> int:
    """Up to which LSN the bounds would let the oldest epoch's entries go."""
    oldest = state.epochs[0]
    held = oldest.head_lsn - oldest.floor_lsn
    total = sum(info.head_lsn - info.floor_lsn for info in state.epochs)
    surplus = total - retention.changes_max
    if size_bytes > retention.bytes_max and total:
        # About as many entries as take the bytes that are too many.
        too_many = (size_bytes - retention.bytes_max) * total // size_bytes
        surplus = max(surplus, too_many, 1)
    aged = _aged(db, oldest, int(now_ms - retention.age_s * 1000))
    # The newest entry of the present epoch always stays.
    most = held - 1 if oldest is state.present else held
    return oldest.floor_lsn + max(0, min(max(surplus, aged), most))


def _aged(db: sqlite3.Connection, oldest: EpochInfo, before_ms: int) -> int:
    """How many of the oldest entries were committed before `before_ms`."""
    # The first block that is young enough ends the count: writers' clocks may step back, and an
    # entry is never let go before all that precede it.
    row = db.execute(
        "SELECT id FROM blocks WHERE id BETWEEN ? AND ? AND last_lsn > ? AND ts >= ?"
        " ORDER BY id LIMIT 1",
        (key_of(oldest.number, 0), key_of(oldest.number, LSN_MAX), oldest.floor_lsn, before_ms),
    ).fetchone()
    if row is None:
        return oldest.head_lsn - oldest.floor_lsn
    return max(0, int(row[0] & LSN_MAX) - 1 - oldest.floor_lsn)


def floor_for(
    db: sqlite3.Connection, state: LogState, wanted_lsn: int, *, to_bases: bool
) -> int | None:
    """Where the oldest epoch's floor goes; None where it stays; its head where all of it may go."""
    oldest = state.epochs[0]
    if oldest is not state.present and wanted_lsn >= oldest.head_lsn:
        return oldest.head_lsn
    if not to_bases:
        return wanted_lsn if wanted_lsn > oldest.floor_lsn else None
    found = db.execute(
        "SELECT max(lsn) FROM bases WHERE epoch = ? AND complete = 1 AND lsn > ? AND lsn <= ?",
        (oldest.number, oldest.floor_lsn, wanted_lsn),
    ).fetchone()[0]
    return None if found is None else int(found)
