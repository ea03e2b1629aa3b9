"""From the shape of a table to the SQL that captures it. Pure text; nothing here runs it.

*Emission.* After each row operation triggers write, for each key that the operation touched, what
is under that key *now*: nothing new is copied from NEW. A trigger that fires late (SQLite fires the
newest first) then repeats the present state instead of reviving an old one, and whoever applies the
rows by key in order ends with the table, whatever the user's own triggers did in between, and
whichever of ours fires first.

*Conversion*: where a foreign key's check may convert OLD, what a row was comes from `capture.former`.

*Eviction* (grade FULL): rows that REPLACE removes without a DELETE trigger come from the stage
(`capture.stage`), and are emitted in the same way.

A trigger runs in the library of whoever writes, which may be old: the text uses no function newer
than SQLite 3.35, and values travel as untyped columns, so that each arrives exactly as it was.
"""

from __future__ import annotations

from cdchub.capture.former import Former
from cdchub.capture.rows import Image, Rows
from cdchub.capture.schema import OWN_PREFIX
from cdchub.capture.stage import Stage
from cdchub.capture.table import Grade, Shape

OUTBOX = f"{OWN_PREFIX}outbox"


def value_columns(count: int) -> list[str]:
    """The outbox's value columns: the old values first, then the new ones."""
    return [f"v{i}" for i in range(count)]


def capture_sql(shape: Shape, table_id: int) -> dict[str, str]:
    """All objects that capture `shape` under `table_id`: name → CREATE statement, in order.

    What is made last fires first, in the libraries known so far: so a DELETE comes before the
    INSERT that took its place, and nothing but that depends on it.
    """
    rows = Rows(shape)
    emission = _Emission(rows, table_id)
    triggers = _Triggers(rows.table, table_id)
    created: dict[str, str] = {}
    triggers.add("ai", "AFTER INSERT", "", [emission.present(rows.new)])
    if shape.converted:
        former = Former(rows, table_id)
        created |= former.create()
        triggers.add("fu", "BEFORE UPDATE", "", former.put())
        triggers.add("fd", "BEFORE DELETE", "", former.put())
        gone = emission.of_former(former.image, former.source)
        # All in one trigger, because what is taken off the pile is in no later one.
        moved = f"EXISTS (SELECT 1 FROM {former.source} WHERE {rows.key_changed(former.image)})"
        come = emission.present(rows.new, moved)
        triggers.add("au", "AFTER UPDATE", "", [gone, come, former.take_off])
        triggers.add("ad", "AFTER DELETE", "", [gone, former.take_off])
    else:
        # A BEFORE trigger of the user's may change a declared key which the statement doesn't name. It
        # can't change an identity: then SQLite lets go of the row.
        of = "" if shape.key and rows.rowid and not shape.rowid_key else rows.names_in_set(shape.key)
        moved = f"AFTER UPDATE OF {of}" if of else "AFTER UPDATE"
        triggers.add("am", moved, rows.key_changed(rows.old), [emission.present(rows.new)])
        gone = emission.of_former(rows.old)
        triggers.add("au", "AFTER UPDATE", "", [gone])
        triggers.add("ad", "AFTER DELETE", "", [gone])
    if shape.grade is Grade.FULL:
        stage = Stage(rows, table_id, emission.of_former)
        created |= stage.create()
        _capture_evictions(triggers, stage)
    return created | triggers.created


def backfill_sql(shape: Shape, table_id: int) -> str:
    """Writes every row of the table to the outbox as if it were inserted now, in key order."""
    rows = Rows(shape)
    order = ", ".join(rows.present.identity)
    return f"{_Emission(rows, table_id).all_present()} ORDER BY {order}"


def _capture_evictions(triggers: _Triggers, stage: Stage) -> None:
    for letter, steps in (
        ("i", [*stage.before_insert(), *stage.after_insert()]),
        ("u", [*stage.before_update(), *stage.after_update()]),
        ("d", stage.after_delete()),
    ):
        for suffix, event, when, body in steps:
            triggers.add(f"{suffix}{letter}", event, when, body)


class _Triggers:
    """Collects the triggers of one table: name → CREATE statement."""

    def __init__(self, table: str, table_id: int) -> None:
        self._table = table
        self._prefix = f"{OWN_PREFIX}{table_id}"
        self.created: dict[str, str] = {}

    def add(self, suffix: str, event: str, when: str, steps: list[str]) -> None:
        name = f"{self._prefix}_{suffix}"
        condition = f" WHEN {when}" if when else ""
        self.created[name] = (
            f"CREATE TRIGGER {name} {event} ON {self._table}{condition} "
            f"BEGIN {' '.join(f'{step};' for step in steps)} END"
        )


class _Emission:
    """INSERTs into the outbox: the present state of a key."""

    def __init__(self, rows: Rows, table_id: int) -> None:
        self._rows = rows
        self._table_id = table_id
        columns = value_columns(2 * len(rows.shape.captured))
        self._head = f"INSERT INTO {OUTBOX}(tbl, op, rid, %s)"
        self._all = self._head % ", ".join(columns)
        self._new = self._head % ", ".join(columns[len(rows.shape.captured) :])

    def all_present(self) -> str:
        return self._present("1")

    def present(self, image: Image, *conditions: str) -> str:
        """The row that is under the key of `image` now, if one is and the conditions hold."""
        return self._present(" AND ".join([self._rows.found_under(image), *conditions]))

    def _present(self, condition: str) -> str:
        row = self._rows.present
        values = ", ".join([self._rowid(row), *row.values])
        return (
            f"{self._new} SELECT {self._table_id}, 'c', {values}"
            f" FROM {self._rows.table} _cdchub_r WHERE {condition}"
        )

    def of_former(self, image: Image, source: str = "(SELECT 1)", condition: str = "1") -> str:
        """For the key of a former row: an UPDATE to the row that is under it now, else a DELETE.

        `source` has the rows for which `condition` holds; each is an `image`.
        """
        row = self._rows.present
        values = ", ".join([self._rowid(image), *image.values, *row.values])
        return (
            f"{self._all} SELECT {self._table_id},"
            f" CASE WHEN {row.identity[0]} IS NULL THEN 'd' ELSE 'u' END, {values}"
            f" FROM {source} LEFT JOIN {self._rows.table} _cdchub_r"
            f" ON {self._rows.found_under(image)} WHERE {condition}"
        )

    def _rowid(self, image: Image) -> str:
        return image.identity[0] if self._rows.rowid else "NULL"
