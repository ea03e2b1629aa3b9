"""Capture as it stands in a source: what is installed, and what has to change.

`reconcile` compares what should be captured with what the source holds and mends the difference in
the caller's transaction: after it, every change that commits is either in the outbox or told of by
a break. It is the one way in: `init`, the start of `serve` and every later schema change use it.

Objects of ours, all prefixed `_cdchub_`: `meta` (identity and selection), `tables` (the shapes, by
id), `outbox`, and for each table its triggers and, but for grade PLAIN, a `stage_<id>`. `uninstall`
removes all of them; an empty `sqlite_sequence` may stay, because SQLite can't drop it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from cdchub.capture.choice import Choice, wanted_shapes, warnings_for
from cdchub.capture.difference import ShapeVersion
from cdchub.capture.driver import BadStatement, SqliteFault
from cdchub.capture.former import former_name
from cdchub.capture.scan import scan_sql
from cdchub.capture.schema import OWN_PREFIX, Database, Schema
from cdchub.capture.stage import scratch_name, stage_name
from cdchub.capture.standing import may_have_escaped, stands
from cdchub.capture.table import Grade, Shape, literal, quote
from cdchub.capture.telling import Teller, Told
from cdchub.capture.triggers import OUTBOX, capture_sql, value_columns
from cdchub.catalog import Catalog, fold_name
from cdchub.errors import TableRefused
from cdchub.log.protocol import KnownRows

META = f"{OWN_PREFIX}meta"
TABLES = f"{OWN_PREFIX}tables"
_OURS = literal(f"{OWN_PREFIX}*")

# Unix milliseconds. julianday is older than any function with "subsec"; without an argument it is
# now, which is one moment within a statement (sqlite.org/lang_datefunc.html).
_NOW_MS = "CAST((julianday() - 2440587.5) * 86400000.0 + 0.5 AS INTEGER)"


@dataclass(frozen=True, slots=True)
class Captured:
    """What is captured: shapes by id, also the retired ones that older outbox rows refer to."""

    install_id: str
    choice: Choice
    shapes: dict[int, Shape]
    active: frozenset[int]

    def by_name(self) -> dict[str, Shape]:
        """What is captured now."""
        return {self.shapes[table_id].name: self.shapes[table_id] for table_id in self.active}

    def width_of(self, table_id: int | None, *, moved: bool) -> int:
        """How many value columns an outbox row of this table uses. A note has none (two), and a row
        that has `moved` to another shape has the values of both, after the older one's id."""
        if table_id is None:
            return 2
        width = len(self.shapes[table_id].captured)
        if not moved:
            return max(2, 2 * width)
        return 1 + width + max(len(shape.captured) for shape in self.shapes.values())

    def catalog(self) -> Catalog:
        # Ids ascend, so that of a table's shapes the last one stays.
        gone = {shape.name: shape for _, shape in sorted(self.shapes.items())}
        shapes = [self.shapes[table_id] for table_id in self.active]
        for shape in shapes:
            gone.pop(shape.name)
        retired = [shape for table_id, shape in self.shapes.items() if table_id not in self.active]
        return Catalog(
            [shape.info() for shape in shapes],
            gone=[shape.info() for shape in gone.values()],
            former=[shape.info() for shape in retired],
        )


@dataclass(slots=True)
class Outcome:
    """What `reconcile` did; `told` is what followers of the tables learn of it.

    `fresh`: nothing of ours was in the source before.
    """

    captured: Captured
    told: Told
    fresh: bool = False
    warnings: list[str] = field(default_factory=list)


def is_installed(db: Database) -> bool:
    return bool(
        list(db.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (META,)))
    )


def load(db: Database) -> Captured:
    """What is installed. The source must have capture (`is_installed`)."""
    meta = dict(db.execute(f"SELECT key, value FROM {META}"))
    shapes, active = {}, set()
    for table_id, text, is_active in db.execute(f"SELECT id, shape, active FROM {TABLES}"):
        shapes[table_id] = msgspec.json.decode(text, type=Shape)
        if is_active:
            active.add(table_id)
    choice = msgspec.json.decode(meta["choice"], type=Choice)
    return Captured(meta["install_id"], choice, shapes, frozenset(active))


def reconcile(
    db: Database,
    choice: Choice | None = None,
    *,
    strict: bool = False,
    known: KnownRows | None = None,
    silent: bool = False,
    escaped: Collection[str] = (),
) -> Outcome:
    """Makes the source capture `choice` (None: what it was told before, at first everything).

    To be called in a write transaction. `strict`: somebody has just asked for this, so what is
    named must be there; raises `TableRefused`. Otherwise a table that can't be captured, or can't
    any more, is a warning. `known`: what the log knows of the tables that `suspects` names, to tell
    followers the difference. `silent`: a new history begins here, so there is nothing to tell.
    `escaped`: tables that are known to have changed without capture.
    """
    fresh = not is_installed(db)
    if fresh:
        # A copied schema may have brought some of our objects along, which would fail every write.
        uninstall(db)
        _create(db, choice or Choice())
    elif choice is not None and choice != load(db).choice:
        _set_meta(db, "choice", msgspec.json.encode(choice).decode())
    before = load(db)
    teller = Teller(db, None if silent else known, silent=silent or fresh)
    outcome = Outcome(before, teller.told, fresh=fresh)
    schema = Schema(db)
    active = before.by_name()
    wanted = wanted_shapes(schema, before.choice, outcome.warnings, strict=strict, standing=active)
    named = {fold_name(chosen.table) for chosen in before.choice.tables or before.choice.rooms}
    named = {name for name in wanted if fold_name(name) in named}
    standing = {before.shapes[table_id].name: table_id for table_id in before.active}
    renumbered = _maybe_renumbered(db)
    for name, table_id in standing.items():
        old = ShapeVersion(table_id, before.shapes[table_id])
        if name not in wanted:
            _retire(db, old, teller)
        elif wanted[name] != old.shape or name in escaped or not stands(schema, old.shape, table_id):
            unseen = name in escaped or may_have_escaped(schema, old.shape, table_id)
            replace = partial(_replace, db, old, wanted[name], teller, escaped=unseen)
            if not _attempt(db, replace, outcome, strict=strict and name in named):
                _retire(db, old, teller)
        elif renumbered and not old.shape.key:
            teller.renumbered(old)
    for name, shape in wanted.items():
        if name not in standing:
            enter = partial(_enter, db, shape, teller)
            _attempt(db, enter, outcome, strict=strict and name in named)
        outcome.warnings.extend(warnings_for(shape))
    _note_schema(db)
    outcome.captured = load(db)
    return outcome


def suspects(db: Database, choice: Choice | None = None) -> list[str] | None:
    """The captured tables that `reconcile` may have to tell a difference of; None where it has
    nothing to do at all. To be called in a read transaction."""
    captured = load(db)
    if choice is None or choice == captured.choice:
        if not _maybe_renumbered(db) and _noted_schema(db) is not None:
            return None
        choice = captured.choice
    schema = Schema(db)
    wanted = wanted_shapes(schema, choice, [], strict=False, standing=captured.by_name())
    found = []
    for table_id in captured.active:
        shape = captured.shapes[table_id]
        same = wanted.get(shape.name) == shape and stands(schema, shape, table_id)
        if not same or not shape.key:
            found.append(shape.name)
    return found


def _attempt(db: Database, action: Callable[[], None], outcome: Outcome, *, strict: bool) -> bool:
    """Captures one table, or leaves it out with a warning: one that can't be stops no other."""
    db.execute("SAVEPOINT _cdchub_table")
    try:
        action()
    except TableRefused as error:
        db.execute("ROLLBACK TO _cdchub_table")
        db.execute("RELEASE _cdchub_table")
        if strict:
            raise
        outcome.warnings.append(str(error))
        return False
    db.execute("RELEASE _cdchub_table")
    return True


def suspend(db: Database, table_id: int) -> None:
    """Takes down what captures one table; `reconcile` notices, and puts it up again."""
    _drop_capture(db, table_id)


def has_traces(db: Database) -> bool:
    """Whether anything of ours is in the source, be it of use or not."""
    return bool(list(db.execute(f"SELECT 1 FROM sqlite_schema WHERE name GLOB {_OURS} LIMIT 1")))


def uninstall(db: Database) -> None:
    """Removes every trace of capture, in the caller's write transaction."""
    names = list(db.execute(f"SELECT type, name FROM sqlite_schema WHERE name GLOB {_OURS}"))
    for kind in ("trigger", "table"):
        for found, name in names:
            if found == kind:
                db.execute(f"DROP {kind} IF EXISTS {quote(name)}")


def _create(db: Database, choice: Choice) -> None:
    db.execute(f"CREATE TABLE {META}(key TEXT PRIMARY KEY, value) WITHOUT ROWID")
    _set_meta(db, "install_id", secrets.token_hex(8))
    _set_meta(db, "choice", msgspec.json.encode(choice).decode())
    db.execute(
        f"CREATE TABLE {TABLES}(id INTEGER PRIMARY KEY, shape TEXT NOT NULL, active INTEGER NOT NULL)"
    )
    # AUTOINCREMENT: an LSN is never used again, even when the outbox has been pruned; and the page
    # with its sequence tells where each commit ended (`commits`).
    db.execute(
        f"CREATE TABLE {OUTBOX}(lsn INTEGER PRIMARY KEY AUTOINCREMENT, tbl INTEGER, op TEXT, rid, "
        f"ts INTEGER DEFAULT ({_NOW_MS}), nonce INTEGER DEFAULT (random()), v0, v1)"
    )


def _set_meta(db: Database, key: str, value: str) -> None:
    db.execute(
        f"INSERT INTO {META}(key, value) VALUES (?, ?)"
        " ON CONFLICT(key) DO UPDATE SET value = excluded.value",
        (key, value),
    )


def _maybe_renumbered(db: Database) -> bool:
    """Whether somebody changed the schema since we last looked, which a VACUUM does too.

    VACUUM may renumber the rowids of a table without a key (sqlite.org/lang_vacuum.html), unless it
    has an index just then, and leaves no other trace. So any schema change counts for such a table:
    better a needless reset than wrong keys.
    """
    known = _noted_schema(db)
    ((version,),) = db.execute("PRAGMA schema_version")
    return known is not None and known != str(version)


def _note_schema(db: Database) -> None:
    ((version,),) = db.execute("PRAGMA schema_version")
    if _noted_schema(db) != str(version):
        _set_meta(db, "schema_version", str(version))


def _noted_schema(db: Database) -> str | None:
    rows = list(db.execute(f"SELECT value FROM {META} WHERE key = 'schema_version'"))
    return str(rows[0][0]) if rows else None


def _replace(db: Database, old: ShapeVersion, wanted: Shape, teller: Teller, *, escaped: bool) -> None:
    """Captures a table anew after its shape, its indexes or its triggers have changed."""
    same_rows = _apart_from_rivals(old.shape) == _apart_from_rivals(wanted)
    # Under a new unique index REPLACE evicted rows that the old triggers did not look for.
    fewer_rivals = wanted.grade is Grade.PLAIN or (
        old.shape.grade is Grade.FULL and set(wanted.unique) <= set(old.shape.unique)
    )
    _drop_capture(db, old.id)
    if same_rows and fewer_rivals and not escaped:
        _set_shape(db, old.id, wanted)
        _create_capture(db, wanted, old.id)
        return
    _set_active(db, old.id, active=False)
    new = ShapeVersion(_add_shape(db, wanted), wanted)
    _create_capture(db, wanted, new.id)
    # A row that changes shape has the values of both, after the older one's id.
    _widen_outbox(db, load(db).width_of(new.id, moved=True))
    teller.changed(old, new)


def _apart_from_rivals(shape: Shape) -> Shape:
    return msgspec.structs.replace(shape, unique=(), grade=Grade.FULL)


def _enter(db: Database, shape: Shape, teller: Teller) -> None:
    """Captures a table from here on. One found later brings its present rows along."""
    table_id = _add_shape(db, shape)
    _create_capture(db, shape, table_id)
    teller.entered(ShapeVersion(table_id, shape))


def _retire(db: Database, old: ShapeVersion, teller: Teller) -> None:
    """Ends the capture of a table. Whoever follows it is told, and so are older positions."""
    _drop_capture(db, old.id)
    _set_active(db, old.id, active=False)
    teller.left(old)


def _create_capture(db: Database, shape: Shape, table_id: int) -> None:
    """Raises `TableRefused` where the triggers can't be made."""
    _widen_outbox(db, 2 * len(shape.captured))
    # Where statements fail without our triggers, they rest on something that only the writers have,
    # such as a function of the application's.
    unreadable = _fault_in(db, [scan_sql(shape)])
    if unreadable is not None:
        raise TableRefused(
            shape.name, f"the hub can't read its rows ({unreadable}), as the application can"
        ) from unreadable
    works = _fault_in_statements(db, shape) is None
    fault = _fault_in(db, capture_sql(shape, table_id).values())
    if works and fault is None:
        # So that a fault shows here and not in a user's statement.
        fault = _fault_in_statements(db, shape)
    if fault is not None:
        raise TableRefused(shape.name, f"its capture triggers don't compile ({fault})") from fault


def _fault_in_statements(db: Database, shape: Shape) -> Exception | None:
    """What SQLite says when it compiles each kind of statement on a table, with its triggers."""
    table = quote(shape.name)
    column = next(quote(column.name) for column in shape.columns if not column.generated)
    return _fault_in(
        db,
        (
            f"INSERT INTO {table}({column}) SELECT {column} FROM {table} WHERE 0",
            f"UPDATE {table} SET {column} = {column} WHERE 0",
            f"DELETE FROM {table} WHERE 0",
        ),
    )


def _fault_in(db: Database, statements: Iterable[str]) -> Exception | None:
    """Runs statements up to the first that SQLite can't compile, and returns what it says then."""
    for statement in statements:
        try:
            db.execute(statement)
        except Exception as error:
            # A full disk or a lock is no fault of theirs.
            if isinstance(error, SqliteFault) and not isinstance(error, BadStatement):
                raise
            return error
    return None


def _standing_triggers(db: Database, table_id: int) -> list[Any]:
    pattern = f"{OWN_PREFIX}{table_id}_*"
    return list(
        db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name GLOB ?", (pattern,))
    )


def _drop_capture(db: Database, table_id: int) -> None:
    for (name,) in _standing_triggers(db, table_id):
        db.execute(f"DROP TRIGGER {quote(name)}")
    for name in (stage_name(table_id), scratch_name(table_id), former_name(table_id)):
        db.execute(f"DROP TABLE IF EXISTS {name}")


def _widen_outbox(db: Database, width: int) -> None:
    have = {name for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (OUTBOX,))}
    for column in value_columns(width):
        if column not in have:
            db.execute(f"ALTER TABLE {OUTBOX} ADD COLUMN {column}")


def _add_shape(db: Database, shape: Shape) -> int:
    """A new id for a shape. Ids are never used again: rows are kept, retired ones too."""
    ((table_id,),) = db.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {TABLES}")
    db.execute(
        f"INSERT INTO {TABLES}(id, shape, active) VALUES (?, ?, 1)",
        (table_id, msgspec.json.encode(shape).decode()),
    )
    return int(table_id)


def _set_shape(db: Database, table_id: int, shape: Shape) -> None:
    text = msgspec.json.encode(shape).decode()
    db.execute(f"UPDATE {TABLES} SET shape = ? WHERE id = ?", (text, table_id))


def _set_active(db: Database, table_id: int, *, active: bool) -> None:
    db.execute(f"UPDATE {TABLES} SET active = ? WHERE id = ?", (int(active), table_id))
