"""What followers of a table are told when its capture changes, as rows of the outbox.

They are written in the transaction that changes the capture, so they have their place in the order
of all changes. Where the log knows what the table held, followers get the difference; where it does
not, or where that is too much, they get a break (`reset`, reason `schema`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from cdchub.capture.difference import ShapeVersion, differs, write_difference, write_removal
from cdchub.capture.driver import BadStatement
from cdchub.capture.schema import Database
from cdchub.capture.table import Shape, quote
from cdchub.capture.triggers import OUTBOX, backfill_sql
from cdchub.catalog import TableSchema
from cdchub.log.protocol import KnownRows

# Rows that are told one by one. More would hold the source's write lock for seconds; followers of
# such a table are reset, and take a snapshot.
TOLD_ROWS_MAX = 100_000


@dataclass(slots=True)
class Told:
    """The tables that came in with their rows, the ones with a break, and how many rows differed."""

    entered: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    differences: dict[str, int] = field(default_factory=dict)


class Teller:
    """`known`: what the log holds of the tables, if it can tell. `silent`: nobody follows yet."""

    def __init__(self, db: Database, known: KnownRows | None, *, silent: bool) -> None:
        self._db = db
        self._known = known
        self._silent = silent
        self.told = Told()

    def entered(self, new: ShapeVersion) -> None:
        """A table is captured from here on, with the rows that it has."""
        if self._silent:
            return
        self._note_schema(new.shape, begins=True)
        if self._fits(new.shape):
            self._db.execute(backfill_sql(new.shape, new.id))
            self.told.entered.append(new.shape.name)
        else:
            self._break(new)

    def changed(self, old: ShapeVersion, new: ShapeVersion) -> None:
        """A table has another shape, or its capture was interrupted."""
        if self._silent:
            return
        self._note_schema(new.shape)
        known = self._knowing(old.shape)
        # Rows are sorted into rooms anew: what a room's follower holds can't be told by the rows.
        if known is None or _sorted_otherwise(old.shape, new.shape) or not self._fits(new.shape):
            self._break(new)
        else:
            count = write_difference(self._db, known, old=old, new=new)
            self.told.differences[new.shape.name] = count

    def renumbered(self, version: ShapeVersion) -> None:
        """The rowids that are this table's keys may be others now."""
        if self._silent:
            return
        known = self._knowing(version.shape)
        fits = known is not None and self._fits(version.shape)
        if known is None or not fits or differs(self._db, known, version.shape):
            self._break(version)

    def left(self, old: ShapeVersion) -> None:
        """A table is captured no longer."""
        if self._silent:
            return
        known = self._knowing(old.shape)
        if known is None or self._exists(old.shape.name):
            # Its rows are still there, or nobody knows which they were.
            self._break(old)
        else:
            count = write_removal(self._db, known, old=old)
            self.told.differences[old.shape.name] = count
        self._note(old.shape.name, None)

    def _knowing(self, shape: Shape) -> KnownRows | None:
        known, name = self._known, shape.name
        if known is None or not known.knows(name) or known.count(name) > TOLD_ROWS_MAX:
            return None
        # No difference by key tells of the row that was there before.
        return None if known.overwritten(name) else known

    def _fits(self, shape: Shape) -> bool:
        limited = f"SELECT count(*) FROM (SELECT 1 FROM {quote(shape.name)} LIMIT {TOLD_ROWS_MAX + 1})"
        ((rows,),) = self._db.execute(limited)
        return bool(rows <= TOLD_ROWS_MAX)

    def _exists(self, name: str) -> bool:
        found = self._db.execute(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (name,)
        )
        return bool(list(found))

    def _note_schema(self, shape: Shape, *, begins: bool = False) -> None:
        schema = schema_of(self._db, shape, begins=begins)
        self._note(shape.name, msgspec.json.encode(schema).decode())

    def _note(self, name: str, schema: str | None) -> None:
        self._db.execute(f"INSERT INTO {OUTBOX}(op, v0, v1) VALUES ('s', ?, ?)", (name, schema))

    def _break(self, version: ShapeVersion) -> None:
        name = version.shape.name
        self._db.execute(f"INSERT INTO {OUTBOX}(op, v0) VALUES ('b', ?)", (name,))
        self.told.broken.append(name)


def schema_of(db: Database, shape: Shape, *, begins: bool = False) -> TableSchema:
    """A shape as the log remembers it. Raises `BadStatement` where the table is gone meanwhile."""
    found = db.execute("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?", (shape.name,))
    sql = next((text for (text,) in found), None)
    if sql is None:
        raise BadStatement(f"no such table: {shape.name}", 1)
    return TableSchema(
        table=shape.name,
        key=shape.key,
        columns=tuple((c.name, c.type) for c in shape.columns if c.name in shape.captured),
        generated=tuple(c.name for c in shape.columns if c.generated),
        rowid=None if shape.rowid_key else shape.rowid,
        whole=len(shape.captured) == len(shape.columns),
        sql=sql,
        begins=begins,
    )


def _sorted_otherwise(old: Shape, new: Shape) -> bool:
    """Whether rows are in other rooms: by another column, or one that compares otherwise."""
    if old.room is None or old.room != new.room:
        return old.room != new.room
    before, after = old.info().column(old.room), new.info().column(old.room)
    return before is None or after is None or before.affinity is not after.affinity
