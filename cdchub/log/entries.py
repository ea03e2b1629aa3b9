"""Finding entries in the log's blocks, narrowed by table and room to the blocks that hold any of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from cdchub.change import ChangeType, Entry, SqliteValue
from cdchub.log.blocks import LSN_MAX, key_of, unpack
from cdchub.log.protocol import Cursor, Narrowing

# SQLite takes 500 terms in a compound SELECT (sqlite.org/limits.html §4); long before, all blocks
# together are found faster.
_ARMS_MAX = 100


def read_entries(
    db: sqlite3.Connection, after: Cursor, upto: int, narrowing: Narrowing
) -> Iterator[Entry]:
    """The entries after the cursor up to `upto` of its epoch, without what the narrowing can leave
    out. To be read in one transaction."""
    names = dict(db.execute("SELECT id, name FROM tables"))
    wanted = None if narrowing.tables is None else frozenset(narrowing.tables)
    room = narrowing.room if wanted is not None and len(wanted) == 1 else None
    for block in _blocks(db, after, upto, narrowing):
        first = block & LSN_MAX
        index, data = db.execute("SELECT entries, data FROM blocks WHERE id = ?", (block,)).fetchone()
        for entry in unpack(first, index, data, names):
            if entry.lsn <= after.lsn or (wanted is not None and entry.table not in wanted):
                continue
            if entry.lsn > upto:
                return
            in_room = room in (entry.room_old, entry.room_new)
            if room is None or in_room or entry.type is ChangeType.BREAK:
                yield entry


def _blocks(db: sqlite3.Connection, after: Cursor, upto: int, narrowing: Narrowing) -> Iterator[int]:
    """The keys of the blocks that hold any of it, in order. SQLite merges the sorted arms."""
    # The block that the next entry is in may have begun before it.
    (first,) = db.execute(
        "SELECT coalesce(max(id), 0) FROM blocks WHERE id BETWEEN ? AND ?",
        (key_of(after.epoch, 0), key_of(after.epoch, after.lsn + 1)),
    ).fetchone()
    span: list[SqliteValue] = [max(first, key_of(after.epoch, 0)), key_of(after.epoch, upto)]
    if narrowing.tables is None or len(narrowing.tables) > _ARMS_MAX:
        rows = db.execute("SELECT id FROM blocks WHERE id BETWEEN ? AND ? ORDER BY id", span)
        yield from (block for (block,) in rows)
        return
    arms: list[str] = []
    parameters: list[SqliteValue] = []
    of_table = "tbl = (SELECT id FROM tables WHERE name = ?)"
    for table in narrowing.tables:
        if narrowing.room is not None and len(narrowing.tables) == 1:
            arms.append(
                f"SELECT block FROM block_rooms WHERE {of_table} AND room = ? AND block BETWEEN ? AND ?"
            )
            parameters += [table, narrowing.room, *span]
            arms.append(f"SELECT block FROM block_breaks WHERE {of_table} AND block BETWEEN ? AND ?")
        else:
            arms.append(f"SELECT block FROM block_tables WHERE {of_table} AND block BETWEEN ? AND ?")
        parameters += [table, *span]
    rows = db.execute(" UNION ALL ".join(arms) + " ORDER BY 1", parameters)
    last = -1
    for (block,) in rows:
        # A block that has several of the tables comes once from each arm.
        if block != last:
            yield block
        last = block
