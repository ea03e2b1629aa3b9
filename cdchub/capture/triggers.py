"""From the shape of a table to the SQL that captures it. Pure text; nothing here runs it.

Two mechanisms share the six triggers of a table:

*Emission.* After each row operation the triggers write, for each key that the operation touched,
what is under that key *now*: nothing is copied from NEW. A trigger that fires late (SQLite fires
the newest first) then repeats the present state instead of reviving an old one, and whoever applies
the rows by key in order ends with the table, whatever the user's own triggers did in between.

*Eviction.* With default pragmas REPLACE removes rows without firing a DELETE trigger
(sqlite.org/lang_conflict.html). So BEFORE triggers stage the rows that a unique index would evict,
one slot per index, and AFTER triggers drop from the stage the rows that are still there; a trigger
on the stage reports the ones that are gone. The stage is written by upsert because the conflict
policy of the user's statement overrides any other policy inside a trigger.

A trigger runs in the library of whoever writes, which may be old: the text uses no function newer
than SQLite 3.35, and values travel as untyped columns, so that each arrives exactly as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cdchub.capture.table import OWN_PREFIX, Shape, UniqueIndex, literal, quote

OUTBOX = f"{OWN_PREFIX}outbox"


def stage_name(table_id: int) -> str:
    return f"{OWN_PREFIX}stage_{table_id}"


def value_columns(count: int) -> list[str]:
    """The outbox's value columns: the old values first, then the new ones."""
    return [f"v{i}" for i in range(count)]


def capture_sql(shape: Shape, table_id: int) -> dict[str, str]:
    """All objects that capture `shape` under `table_id`: name → CREATE statement, in order."""
    return _Recipe(shape, table_id).statements()


def backfill_sql(shape: Shape, table_id: int) -> str:
    """Writes every row of the table to the outbox as if it were inserted now, in key order."""
    recipe = _Recipe(shape, table_id)
    order = ", ".join(f"_cdchub_r.{name}" for name in recipe.identity)
    return recipe.emit_present("1", source=f"{recipe.table} _cdchub_r") + f" ORDER BY {order}"


class _Recipe:
    """The pieces of SQL that the triggers of one table are put together from.

    `identity` tells rows of the table apart inside one statement: the rowid, or the key of a
    WITHOUT ROWID table. `NEW` and `OLD` are the rows of the trigger, `_cdchub_o` another row of the
    table, `_cdchub_r` the row as it is now: names of ours, which no table of a user's has.
    """

    def __init__(self, shape: Shape, table_id: int) -> None:
        self.shape = shape
        self.table_id = table_id
        self.table = quote(shape.name)
        self.stage = stage_name(table_id)
        self.captured = [quote(name) for name in shape.captured]
        self.rowid = None if shape.rowid is None else self._rowid_text(shape)
        self.identity = [self.rowid] if self.rowid else [quote(name) for name in shape.key]
        self.staged_key = [f"k{i}" for i in range(len(self.identity))]
        self.staged = [f"s{i}" for i in range(len(self.captured))]

    @staticmethod
    def _rowid_text(shape: Shape) -> str:
        assert shape.rowid is not None
        # Quoted only where it is a column: "rowid" in quotes would be a string in old libraries.
        return quote(shape.rowid) if shape.rowid_key else shape.rowid

    def statements(self) -> dict[str, str]:
        prefix = f"{OWN_PREFIX}{self.table_id}"
        staged = ", ".join([*self.staged_key, *self.staged])
        created = {self.stage: f"CREATE TABLE {self.stage}(slot INTEGER PRIMARY KEY, live, {staged})"}
        when, body = self._stage_deleted()
        created[f"{prefix}_sd"] = (
            f"CREATE TRIGGER {prefix}_sd AFTER DELETE ON {self.stage} WHEN {when} BEGIN {body} END"
        )
        for suffix, event, when, steps in (
            ("bi", "BEFORE INSERT", "", self._before_insert()),
            ("ai", "AFTER INSERT", "", self._after_insert()),
            ("bu", "BEFORE UPDATE", self._conflict_possible(), self._before_update()),
            ("au", "AFTER UPDATE", "", self._after_update()),
            ("ad", "AFTER DELETE", "", self._after_delete()),
        ):
            condition = f" WHEN {when}" if when else ""
            if steps:
                created[f"{prefix}_{suffix}"] = (
                    f"CREATE TRIGGER {prefix}_{suffix} {event} ON {self.table}{condition} "
                    f"BEGIN {' '.join(f'{step};' for step in steps)} END"
                )
        return created

    # The six triggers.

    def _before_insert(self) -> list[str]:
        return [self._drop_gone(), *self._stage_rivals("")]

    def _after_insert(self) -> list[str]:
        still_there = f"({self._same(_of('NEW', self.identity), self._stage_key())})"
        return [
            f"DELETE FROM {self.stage} WHERE {still_there} OR {self._gone()}",
            self.emit_present(self.found_under("NEW"), source=f"{self.table} _cdchub_r"),
        ]

    def _before_update(self) -> list[str]:
        itself = self._same(_of("_cdchub_o", self.identity), _of("OLD", self.identity))
        # Rows that are gone already are reported first: a user trigger that updates the table in
        # the middle of another row's REPLACE would overwrite their slots.
        return [self._drop_gone(), *self._stage_rivals(f" AND NOT ({itself})")]

    def _after_update(self) -> list[str]:
        old, new = _of("OLD", self.identity), _of("NEW", self.identity)
        moved_here = f"({self._same(new, self._stage_key())}) AND NOT ({self._same(new, old)})"
        refreshed = ", ".join(
            f"{column} = {value}"
            for column, value in zip(
                [*self.staged_key, *self.staged],
                [*new, *_of("NEW", self.captured)],
                strict=True,
            )
        )
        return [
            f"DELETE FROM {self.stage} WHERE {moved_here}",
            f"UPDATE {self.stage} SET {refreshed} WHERE {self._same(old, self._stage_key())}",
            self._drop_gone(),
            self._emit_old_key(),
            self.emit_present(
                f"{self.found_under('NEW')} AND ({self.key_changed()})",
                source=f"{self.table} _cdchub_r",
            ),
        ]

    def _after_delete(self) -> list[str]:
        same = self._same(_of("OLD", self.identity), self._stage_key())
        return [
            f"UPDATE {self.stage} SET live = 0 WHERE {same}",
            self._drop_gone(),
            self._emit_old_key(),
        ]

    def _stage_deleted(self) -> tuple[str, str]:
        other_slot = " AND ".join(f"{key} = OLD.{key}" for key in self.staged_key)
        when = f"OLD.live AND NOT EXISTS (SELECT 1 FROM {self.stage} WHERE live AND {other_slot})"
        rowid = "OLD.k0" if self.rowid else "NULL"
        values = ", ".join(f"OLD.{column}" for column in self.staged)
        columns = ", ".join(["tbl", "op", "rid", *value_columns(len(self.staged))])
        return when, (
            f"INSERT INTO {OUTBOX}({columns}) VALUES ({self.table_id}, 'd', {rowid}, {values});"
        )

    # Emission: the present state of each key that was touched.

    def emit_present(self, condition: str, *, source: str) -> str:
        """An INSERT for the row that is there now, if one is."""
        width = len(self.captured)
        columns = ", ".join(["tbl", "op", "rid", *value_columns(2 * width)[width:]])
        rowid = f"_cdchub_r.{self.rowid}" if self.rowid else "NULL"
        values = ", ".join(_of("_cdchub_r", self.captured))
        return (
            f"INSERT INTO {OUTBOX}({columns}) SELECT {self.table_id}, 'c', {rowid}, {values}"
            f" FROM {source} WHERE {condition}"
        )

    def _emit_old_key(self) -> str:
        """For OLD's key: an UPDATE to the row that is under it now, or else a DELETE."""
        columns = ", ".join(["tbl", "op", "rid", *value_columns(2 * len(self.captured))])
        present = f"_cdchub_r.{self.identity[0]} IS NOT NULL"
        rowid = f"OLD.{self.rowid}" if self.rowid else "NULL"
        values = ", ".join([*_of("OLD", self.captured), *_of("_cdchub_r", self.captured)])
        return (
            f"INSERT INTO {OUTBOX}({columns})"
            f" SELECT {self.table_id}, CASE WHEN {present} THEN 'u' ELSE 'd' END, {rowid}, {values}"
            f" FROM (SELECT 1) LEFT JOIN {self.table} _cdchub_r ON {self.found_under('OLD')}"
        )

    def found_under(self, row: str) -> str:
        """The condition that `_cdchub_r` is the row which stands under the wire key of `row` now."""
        shape = self.shape
        if not shape.key or shape.rowid_key:
            assert self.rowid is not None
            return f"_cdchub_r.{self.rowid} = {row}.{self.rowid}"
        key = [quote(name) for name in shape.key]
        exact = " AND ".join(self._same_on_wire("_cdchub_r", row, name) for name in shape.key)
        if self.rowid is None or not shape.key_nullable:
            return f"{self._same(_of('_cdchub_r', key), _of(row, key))} AND {exact}"
        # A key with a NULL in it is the rowid's; any other is found through its own index.
        some_null = " OR ".join(f"{row}.{name} IS NULL" for name in key)
        by_key = (
            f"(SELECT _cdchub_k.{self.rowid} FROM {self.table} _cdchub_k"
            f" WHERE {self._same(_of('_cdchub_k', key), _of(row, key))})"
        )
        return (
            f"_cdchub_r.{self.rowid} = CASE WHEN {some_null} THEN {row}.{self.rowid} ELSE {by_key} END"
            f" AND {exact}"
        )

    def key_changed(self) -> str:
        """Whether OLD's and NEW's keys differ on the wire."""
        shape = self.shape
        if not shape.key or shape.rowid_key:
            return f"OLD.{self.rowid} <> NEW.{self.rowid}"
        same = " AND ".join(self._same_on_wire("OLD", "NEW", name) for name in shape.key)
        if not shape.key_nullable:
            return f"NOT ({same})"
        some_null = " OR ".join(f"OLD.{quote(name)} IS NULL" for name in shape.key)
        return f"NOT ({same}) OR (({some_null}) AND OLD.{self.rowid} <> NEW.{self.rowid})"

    @staticmethod
    def _same_on_wire(left: str, right: str, name: str) -> str:
        # IS under BINARY tells 'A' from 'a' whatever the column's collation; typeof tells 1 from 1.0.
        column = quote(name)
        return (
            f"{left}.{column} COLLATE BINARY IS {right}.{column}"
            f" AND typeof({left}.{column}) = typeof({right}.{column})"
        )

    # Eviction: the stage.

    def _stage_rivals(self, but: str) -> list[str]:
        """For each unique constraint, the row that stands where NEW wants to be, into its slot.

        One statement per constraint: one OR over all of them would scan the table.
        """
        columns = ", ".join([*self.staged_key, *self.staged])
        values = ", ".join(_of("_cdchub_o", [*self.identity, *self.captured]))
        update = ", ".join(f"{c} = excluded.{c}" for c in ["live", *self.staged_key, *self.staged])
        return [
            f"INSERT INTO {self.stage}(slot, live, {columns}) SELECT {slot}, 1, {values}"
            f" FROM {self.table} _cdchub_o WHERE {condition}{but}"
            f" ON CONFLICT(slot) DO UPDATE SET {update}"
            for slot, condition in enumerate(self._rival_conditions(), 1)
        ]

    def _rival_conditions(self) -> Iterable[str]:
        if self.rowid:
            yield f"_cdchub_o.{self.rowid} = NEW.{self.rowid}"
        for index in self.shape.unique:
            yield self._rival_condition(index)

    def _rival_condition(self, index: UniqueIndex) -> str:
        """That `_cdchub_o` and NEW collide in `index`. NULLs are distinct, so `=` is right for them.

        An expression or a predicate is not rewritten: its text is evaluated in a scope where the
        columns' names mean the other row, and in one where they mean NEW.
        """
        here = self._same(self.identity, _of("_cdchub_o", self.identity))
        parts = []
        for term in index.terms:
            collate = f"COLLATE {quote(term.collation)}"
            if term.column is not None:
                parts.append(
                    f"_cdchub_o.{quote(term.column)} {collate} = {self._new_value(term.column)}"
                )
            else:
                theirs = f"(SELECT ({term.expression}) FROM {self.table} WHERE {here})"
                parts.append(f"{theirs} {collate} = (SELECT ({term.expression}) FROM {self._new()})")
        if index.predicate is not None:
            predicate = f"({index.predicate})"
            parts.append(f"EXISTS (SELECT 1 FROM {self.table} WHERE {here} AND {predicate})")
            parts.append(f"(SELECT {predicate} FROM {self._new()})")
        return "(" + " AND ".join(parts) + ")"

    def _new(self) -> str:
        """NEW as a one-row table with the columns' own names."""
        values = (f"{self._new_value(c.name)} AS {quote(c.name)}" for c in self.shape.columns)
        return f"(SELECT {', '.join(values)})"

    def _new_value(self, name: str) -> str:
        column = self.shape.column(name)
        if column.not_null and column.default is not None:
            # REPLACE puts a NOT NULL column's default for NULL, but only after BEFORE triggers ran.
            return f"coalesce(NEW.{quote(name)}, {_default(column.default)})"
        return f"NEW.{quote(name)}"

    def _conflict_possible(self) -> str:
        """When an UPDATE can collide with another row: a unique column or the rowid has changed."""
        indexes = self.shape.unique
        if any(index.predicate or any(t.column is None for t in index.terms) for index in indexes):
            return ""
        columns = sorted({t.column for index in indexes for t in index.terms if t.column is not None})
        changed = [f"NEW.{quote(name)} COLLATE BINARY IS NOT OLD.{quote(name)}" for name in columns]
        if self.rowid:
            changed.append(f"NEW.{self.rowid} IS NOT OLD.{self.rowid}")
        return " OR ".join(changed)

    def _gone(self) -> str:
        still = self._same(_of("_cdchub_o", self.identity), self._stage_key())
        return f"NOT EXISTS (SELECT 1 FROM {self.table} _cdchub_o WHERE {still})"

    def _drop_gone(self) -> str:
        return f"DELETE FROM {self.stage} WHERE {self._gone()}"

    def _stage_key(self) -> list[str]:
        return _of(self.stage, self.staged_key)

    @staticmethod
    def _same(left: Sequence[str], right: Sequence[str]) -> str:
        # The left side carries the collation (sqlite.org/datatype3.html §7.1), so a column of the
        # table stands there.
        return " AND ".join(f"{a} = {b}" for a, b in zip(left, right, strict=True))


def _of(row: str, columns: Sequence[str]) -> list[str]:
    return [f"{row}.{column}" for column in columns]


def _default(text: str) -> str:
    """A DEFAULT as an expression: in double quotes SQLite takes it for a string there, not a name."""
    if not text.startswith('"'):
        return text
    return literal(text[1:-1].replace('""', '"'))
