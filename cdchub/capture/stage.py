"""What REPLACE evicts: the rows in the way of a write, put aside before it and looked for after it.

With default pragmas REPLACE removes rows without firing a DELETE trigger (sqlite.org/lang_conflict
.html). So BEFORE triggers put the rows that a unique index would evict on a stage, one slot for each
index, and AFTER triggers take off what is gone from the table; a trigger on the stage reports it.

- The body of a BEFORE trigger runs only if there is a rival, that of a cleaning one only if there is
  something to clean: a write that collides with nothing pays for the look alone.
- A row that was staged and stayed (IGNORE, DO UPDATE) is rubbish once its statement has ended. No
  trigger sees an end, but 'now' is one moment within a statement (sqlite.org/lang_datefunc.html):
  what was staged at another moment is removed, and reported only if it is gone.
- An expression of an index is text of the user's, which means columns: with their affinities and
  collations, which NEW does not have (sqlite.org/datatype3.html §3.3). So NEW is written to a scratch
  table, with just the columns that expressions name, and evaluated there. Generated columns are such
  expressions: before a write NEW has only those of them that need nothing else.
- A rowid that SQLite is yet to give out is not in NEW (sqlite.org/lang_createtrigger.html §4). Where
  an expression names it, a second row of the scratch table has the one that will be.
- The stage is written by upsert, because the conflict policy of the user's statement overrides any
  other policy inside a trigger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from cdchub.capture.rows import Image, Rows, same
from cdchub.capture.schema import OWN_PREFIX
from cdchub.capture.table import IndexTerm, UniqueIndex, literal, quote

# What it is called after the table's prefix, its event, its WHEN, and the statements of its body.
Trigger = tuple[str, str, str, list[str]]

# The key of the scratch table's rows: NEW as it is, and with the rowid that it will get.
_PLACE = f"{OWN_PREFIX}place"
_AS_IT_IS, _AS_NUMBERED = 1, 2


def stage_name(table_id: int) -> str:
    return f"{OWN_PREFIX}stage_{table_id}"


def scratch_name(table_id: int) -> str:
    return f"{OWN_PREFIX}new_{table_id}"


class Stage:
    """The stage of one table: its SQL, and the steps of the triggers that use it."""

    def __init__(self, rows: Rows, table_id: int, emit: Callable[[Image, str, str], str]) -> None:
        self.rows = rows
        self._emit = emit
        self.name = stage_name(table_id)
        self._scratch = scratch_name(table_id)
        self._key = [f"k{i}" for i in range(len(rows.identity))]
        self._values = [f"s{i}" for i in range(len(rows.shape.captured))]
        self.staged = self.image(self.name)

    def create(self) -> dict[str, str]:
        """The tables: name → CREATE statement."""
        columns = ", ".join([*self._key, *self._values])
        tables = {
            self.name: f"CREATE TABLE {self.name}(slot INTEGER PRIMARY KEY, live, moment, {columns})"
        }
        if self._has_expressions:
            named = (
                f"{quote(c.name)} {c.affinity} COLLATE {quote(c.collation)}"
                + (f" AS ({c.generated}\n)" if c.generated is not None else "")
                for c in self.rows.shape.named
            )
            columns = ", ".join([f"{_PLACE} INTEGER PRIMARY KEY", *named])
            tables[self._scratch] = f"CREATE TABLE {self._scratch}({columns})"
        return tables

    @property
    def _has_expressions(self) -> bool:
        # One may name no column at all: a misspelt name in double quotes is a string to SQLite.
        return any(self._is_expression(t) for index in self.rows.shape.unique for t in index.terms)

    def _is_expression(self, term: IndexTerm) -> bool:
        return term.column is None or self.rows.shape.column(term.column).generated

    def image(self, row: str) -> Image:
        values = dict(zip(self.rows.shape.captured, self._values, strict=True))
        return Image(
            tuple(f"{row}.{key}" for key in self._key),
            {name: f"{row}.{column}" for name, column in values.items()},
        )

    # Before a write: what is in its way.

    def before_insert(self) -> Iterable[Trigger]:
        yield from self._before("BEFORE INSERT", "", "", numbers=True)

    def before_update(self) -> Iterable[Trigger]:
        columns = self._colliding_columns()
        but = f" AND NOT ({self.rows.alike(self.rows.other, self.rows.old)})"
        changed = ""
        if columns is not None:
            differ = [f"NEW.{quote(c)} COLLATE BINARY IS NOT OLD.{quote(c)}" for c in columns]
            if self.rows.rowid:
                differ.append(f"NEW.{self.rows.rowid} IS NOT OLD.{self.rows.rowid}")
            changed = f"({' OR '.join(differ)}) AND "
        yield from self._before(f"BEFORE {self._colliding_update()}", but, changed)

    def _before(
        self, event: str, but: str, changed: str, *, numbers: bool = False
    ) -> Iterable[Trigger]:
        """One trigger stages the rivals; another makes room where a slot may not be used again.

        A row that is gone must be reported first: a user's trigger may write to the table in the
        middle of another row's REPLACE. So the one leaves such slots alone and the other fills
        them too, and it doesn't matter which of them SQLite fires first. They are two, because an
        INSERT from a SELECT goes through a temporary table, which takes longer than all the rest,
        when anything in its trigger, even the WHEN, reads the table that it inserts into.
        `numbers`: SQLite may give out the rowid.
        """
        key = self.rows.shape.key
        numbers = numbers and self.rows.shape.rowid_key and key[0] in self._written()
        conditions = self._rivals(numbers=numbers)
        if not conditions:
            return
        rivals = " OR ".join(
            f"EXISTS (SELECT 1 FROM {self.rows.table} _cdchub_o WHERE {condition}{but})"
            for condition in conditions
        )
        put = self._put(conditions, but)
        if self._has_expressions:
            # Only the body can write down what the rivals are looked for by.
            written = [self._write_down(_AS_IT_IS)]
            if numbers:
                written.append(self._write_down(_AS_NUMBERED))
            rivals, put = "1", [*written, *put]
        yield "b", event, f"{changed}({rivals})", put
        yield "g", event, f"{changed}{self._any(self._gone)}", [*self._take_off(self._gone), *put]

    def _written(self) -> list[str]:
        """The columns of the scratch table that are written; it generates the others."""
        return [column.name for column in self.rows.shape.named if column.generated is None]

    def _write_down(self, place: int) -> str:
        """NEW into the scratch table.

        The key is never set: a new key may collide, and for a statement that may, SQLite before 3.36
        keeps a journal, which changes what is left of it where it fails with "datatype mismatch".
        """
        names = self._written()
        columns = ", ".join([_PLACE, *map(quote, names)])
        values = {name: self._new_value(name) for name in names}
        if place == _AS_NUMBERED:
            values[self.rows.shape.key[0]] = self._next_rowid()
        written = ", ".join([str(place), *values.values()])
        update = ", ".join(f"{name} = excluded.{name}" for name in map(quote, names))
        known = f"DO UPDATE SET {update}" if update else "DO NOTHING"
        return (
            f"INSERT INTO {self._scratch}({columns}) VALUES ({written}) ON CONFLICT({_PLACE}) {known}"
        )

    def _next_rowid(self) -> str:
        """The rowid that SQLite gives out next (sqlite.org/autoinc.html): one more than the largest
        there is, or than the largest there has been."""
        name = literal(self.rows.shape.name)
        largest = f"(SELECT coalesce(max({self.rows.rowid}) + 1, 1) FROM {self.rows.table})"
        return (
            f"coalesce((SELECT max(seq + 1, {largest}) FROM sqlite_sequence WHERE name = {name}),"
            f" {largest})"
        )

    def _any(self, condition: str) -> str:
        return f"EXISTS (SELECT 1 FROM {self.name} WHERE {condition})"

    def _put(self, conditions: list[str], but: str) -> list[str]:
        """Each rival into its slot.

        One statement per constraint: one OR over all of them would scan the table.
        """
        columns = ", ".join([*self._key, *self._values])
        values = ", ".join([*self.rows.other.identity, *self.rows.other.values])
        update = ", ".join(f"{c} = excluded.{c}" for c in ["live", "moment", *self._key, *self._values])
        rivals = " UNION ALL ".join(
            f"SELECT {slot}, 1, julianday(), {values} FROM {self.rows.table} _cdchub_o"
            f" WHERE {condition}{but}{self._but_earlier(conditions, slot)}"
            for slot, condition in enumerate(conditions, 1)
        )
        # Of a row that is gone the slot is left alone.
        free = self.rows.is_there(self.staged)
        insert = f"INSERT INTO {self.name}(slot, live, moment, {columns}) {rivals}"
        return [f"{insert} ON CONFLICT(slot) DO UPDATE SET {update} WHERE {free}"]

    def _but_earlier(self, conditions: list[str], slot: int) -> str:
        """A row that two constraints name is staged for the first one."""
        if slot == 1 or not self._plain():
            return ""
        return "".join(f" AND ({condition}) IS NOT TRUE" for condition in conditions[: slot - 1])

    def _rivals(self, *, numbers: bool) -> list[str]:
        """For each constraint, the condition that `_cdchub_o` stands where NEW wants to be."""
        shape = self.rows.shape
        conditions = [self._rival(index, _AS_IT_IS) for index in shape.unique]
        if self.rows.rowid:
            conditions.insert(0, self.rows.alike(self.rows.other, self.rows.new))
        if numbers:
            # A rowid that is to be given out is -1 until then.
            conditions += [
                f"({self.rows.new.identity[0]} = -1 AND {self._rival(index, _AS_NUMBERED)})"
                for index in shape.unique
                if any(self._is_expression(term) for term in index.terms)
            ]
        return conditions

    def _rival(self, index: UniqueIndex, place: int) -> str:
        """That `_cdchub_o` and NEW collide in `index`. NULLs are distinct, so `=` is right for them.

        An expression is not rewritten: its text is evaluated where the columns' names mean the other
        row, and in the scratch table, where they mean NEW. Whether NEW is in a partial index is not
        asked: if it is not, the other row stays, and what stays is never reported.
        """
        parts = []
        for term in index.terms:
            collate = f"COLLATE {quote(term.collation)}"
            if term.column is None:
                theirs = f"({term.expression}\n)"
                parts.append(f"{theirs} {collate} = {self._scratched(theirs, place)}")
            elif self._is_expression(term):
                theirs = quote(term.column)
                parts.append(f"_cdchub_o.{theirs} {collate} = {self._scratched(theirs, place)}")
            else:
                parts.append(
                    f"_cdchub_o.{quote(term.column)} {collate} = {self._new_value(term.column)}"
                )
        if index.predicate is not None:
            parts.append(f"({index.predicate}\n)")
        return "(" + " AND ".join(parts) + ")"

    def _scratched(self, expression: str, place: int) -> str:
        return f"(SELECT {expression} FROM {self._scratch} WHERE {_PLACE} = {place})"

    def _new_value(self, name: str) -> str:
        column = self.rows.shape.column(name)
        if column.not_null and column.default is not None:
            # REPLACE puts a NOT NULL column's default for NULL, but only after BEFORE triggers ran.
            return f"coalesce(NEW.{quote(name)}, {_default(column.default)}\n)"
        return f"NEW.{quote(name)}"

    def _plain(self) -> bool:
        """Whether all unique indexes are on stored columns alone."""
        return not self._has_expressions and not any(i.predicate for i in self.rows.shape.unique)

    def _colliding_columns(self) -> list[str] | None:
        """The columns that unique indexes are on; None where that can't be told."""
        if not self._plain():
            return None
        return sorted({t.column for i in self.rows.shape.unique for t in i.terms if t.column})

    def _colliding_update(self) -> str:
        """The event of an UPDATE that can evict; without columns where they can't be told."""
        columns = self._colliding_columns()
        if columns is None:
            return "UPDATE"
        return f"UPDATE OF {self.rows.names_in_set(columns)}"

    # After a write: what is gone.

    def after_insert(self) -> Iterable[Trigger]:
        yield self._cleaning("AFTER INSERT", self.rows.alike(self.rows.new, self.staged))

    def after_update(self) -> Iterable[Trigger]:
        old, new = self.rows.old, self.rows.new
        moved = f"NOT ({self.rows.alike(new, old)})"
        was_old = self.rows.alike(old, self.staged)
        # If it looks otherwise than the row that was staged, it has replaced that one already. Row
        # values, because a term for each of many columns would be too deep an expression.
        was_old += f" AND ({', '.join(self.staged.values)}) IS ({', '.join(old.values)})"
        replaced = f"{moved} AND {self.rows.alike(new, self.staged)}"
        present = ", ".join([*self.rows.present.identity, *self.rows.present.values])
        refresh = (
            f"UPDATE {self.name} SET ({', '.join([*self._key, *self._values])}) = (SELECT {present}"
            f" FROM {self.rows.table} _cdchub_r WHERE {self.rows.alike(self.rows.present, new)})"
            f" WHERE {was_old} AND {self.rows.is_there(new)}"
        )
        suffix, event, _, steps = self._cleaning(f"AFTER {self._colliding_update()}", "")
        steps = [*self._take_off(replaced), refresh, *steps]
        when = f"{self._rubbish} OR {self._gone} OR ({moved} AND ({was_old} OR {replaced}))"
        yield suffix, event, self._any(when), steps
        # A staged row that stays in its place only changes its image: so does each DO UPDATE.
        yield "r", "AFTER UPDATE", f"NOT ({moved}) AND {self._any(was_old)}", [refresh]

    def after_delete(self) -> Iterable[Trigger]:
        # The DELETE itself is reported by the table's own trigger.
        suffix, event, when, steps = self._cleaning("AFTER DELETE", "")
        old = self.rows.alike(self.rows.old, self.staged)
        yield suffix, event, when, [f"UPDATE {self.name} SET live = 0 WHERE {old}", *steps]

    def _cleaning(self, event: str, replaced: str) -> Trigger:
        """Reports what is gone, or was replaced in its place, and takes it off; rubbish too."""
        gone = f"({replaced} OR {self._gone})" if replaced else self._gone
        removed = f"{self._rubbish} OR {gone}"
        steps = [self._report(gone), f"DELETE FROM {self.name} WHERE {removed}"]
        return "c", event, self._any(removed), steps

    def _take_off(self, condition: str) -> list[str]:
        return [self._report(condition), f"DELETE FROM {self.name} WHERE {condition}"]

    def _report(self, condition: str) -> str:
        # What two slots hold is reported once.
        twin = same([f"_cdchub_s.{key}" for key in self._key], self.staged.identity)
        return self._emit(
            self.staged,
            self.name,
            f"{self.name}.live AND {condition} AND NOT EXISTS (SELECT 1 FROM {self.name} _cdchub_s"
            f" WHERE _cdchub_s.slot < {self.name}.slot AND _cdchub_s.live AND {twin})",
        )

    @property
    def _rubbish(self) -> str:
        # With the table's name here and elsewhere: a user's column may have any name of ours.
        return f"{self.name}.moment <> julianday()"

    @property
    def _gone(self) -> str:
        return f"NOT {self.rows.is_there(self.staged)}"


def _default(text: str) -> str:
    """A DEFAULT as an expression. A single name there is a string, in whichever quotes or none, and in
    an expression it would be a column (sqlite.org/lang_createtable.html, "The DEFAULT clause")."""
    if _WORD.fullmatch(text):
        return text if text.upper() in _CONSTANTS else literal(text)
    if _QUOTED.fullmatch(text):
        return literal(text[1:-1].replace(2 * text[0], text[0]))
    return literal(text[1:-1]) if _BRACKETED.fullmatch(text) else text


_WORD = re.compile(r"(?!\d)[\w$\x80-\U0010ffff]+")
_QUOTED = re.compile(r"""([`"])(?:(?!\1).|\1\1)*\1""", re.DOTALL)
_BRACKETED = re.compile(r"\[[^\]]*\]")
_CONSTANTS = frozenset({"TRUE", "FALSE", "NULL", "CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP"})
