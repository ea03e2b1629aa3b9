"""What a source's schema holds, read once: its tables, indexes and triggers, as SQLite lists them.

A source may have a thousand tables, and each question that is asked of `sqlite_schema` or
`pragma_table_list` reads all of it: asked table by table they would cost the square. A `Schema` is of
the moment at which it was read; what is created or dropped later is not in it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from cdchub.catalog import fold_name

OWN_PREFIX = "_cdchub_"


class Database(Protocol):
    """What capture needs of a connection; `driver.Connection` is one."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Iterable[Any]: ...

    def iterate(self, sql: str, parameters: Sequence[Any] = ..., /) -> Generator[Any]:
        """The rows as they are asked for, not all at once."""
        ...


class Listed(NamedTuple):
    """A row of `pragma_table_list`. `kind` is "table", "view", "virtual" or "shadow"."""

    name: str
    kind: str
    without_rowid: bool
    strict: bool


class Object(NamedTuple):
    """A row of `sqlite_schema`; `order` is its rowid, which is higher the newer it is."""

    kind: str
    name: str
    table: str
    sql: str | None
    order: int


class Schema:
    def __init__(self, db: Database) -> None:
        self.db = db
        self._listed = {
            fold_name(name): Listed(name, kind, bool(without_rowid), bool(strict))
            for name, kind, without_rowid, strict in db.execute(
                "SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'"
            )
        }
        self._references: dict[str, list[tuple[str, int, str, str | None]]] | None = None
        self._named: dict[str, Object] = {}
        self._of_table: dict[str, list[Object]] = {}
        for row in db.execute("SELECT type, name, tbl_name, sql, rowid FROM sqlite_schema"):
            found = Object(*row)
            self._named[found.name] = found
            self._of_table.setdefault(fold_name(found.table), []).append(found)

    def listed(self, table: str) -> Listed | None:
        return self._listed.get(fold_name(table))

    def user_tables(self) -> list[str]:
        """The names of all tables that capture can cover: no views, no virtual or shadow tables."""
        tables = (listed.name for listed in self._listed.values() if listed.kind == "table")
        return sorted(name for name in tables if not is_reserved(name))

    def sql(self, name: str) -> str | None:
        """The text that an object was created with, by its exact name; None for what has none."""
        found = self._named.get(name)
        return None if found is None else found.sql

    def references(self, table: str) -> list[tuple[str, int, str, str | None]]:
        """The foreign-key columns that refer to a table: whose, the place in the key, their type, and
        the column here that they name; None for the primary key's."""
        if self._references is None:
            self._references = {}
            rows = self.db.execute(
                'SELECT m.name, f."table", f.seq, c.type, f."to" FROM sqlite_schema m'
                " JOIN pragma_foreign_key_list(m.name) f JOIN pragma_table_xinfo(m.name) c"
                " ON c.name = f.\"from\" COLLATE NOCASE WHERE m.type = 'table'"
            )
            for child, parent, place, kind, column in rows:
                found = self._references.setdefault(fold_name(parent), [])
                found.append((child, place, kind or "", column))
        return self._references.get(fold_name(table), [])

    def triggers(self, table: str) -> list[Object]:
        """All triggers on a table, ours too."""
        return [each for each in self._of_table.get(fold_name(table), ()) if each.kind == "trigger"]


def is_reserved(name: str) -> bool:
    return fold_name(name).startswith((OWN_PREFIX, "sqlite_"))
