"""How a table's rows are told apart, as SQL text: by identity inside a statement, by key on the wire.

`identity` is the rowid, or the key of a WITHOUT ROWID table: it finds a row and compares as SQLite
does, so two rows never share it at one moment. The *wire key* is the declared key, value and type
exact; a key with a NULL in it has the rowid too. In the text `NEW` and `OLD` are the rows of a
trigger, `_cdchub_o` is another row of the table, `_cdchub_r` the one that stands under a key now:
names of ours, which no table of a user's has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdchub.capture.table import Shape, quote


@dataclass(frozen=True, slots=True)
class Image:
    """A row wherever it is: the expressions for its identity, and for its captured columns by name."""

    identity: tuple[str, ...]
    columns: dict[str, str]

    @property
    def values(self) -> list[str]:
        return list(self.columns.values())


class Rows:
    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.table = quote(shape.name)
        # Quoted only where it is a column: "rowid" in quotes would be a string in old libraries.
        rowid = shape.rowid if shape.rowid is None or not shape.rowid_key else quote(shape.rowid)
        self.rowid = rowid
        self.identity = [rowid] if rowid else [quote(name) for name in shape.key]
        self.old, self.new = self.image("OLD"), self.image("NEW")
        self.other, self.present = self.image("_cdchub_o"), self.image("_cdchub_r")

    def image(self, row: str) -> Image:
        identity = tuple(f"{row}.{name}" for name in self.identity)
        return Image(identity, {name: f"{row}.{quote(name)}" for name in self.shape.captured})

    def is_there(self, image: Image) -> str:
        """Whether a row stands under this identity now."""
        return f"EXISTS (SELECT 1 FROM {self.table} _cdchub_o WHERE {self.alike(self.other, image)})"

    def alike(self, left: Image, right: Image) -> str:
        """Whether two images are of one row, by identity. `left` is the one whose columns may have a
        collation: the key of a WITHOUT ROWID table has one of its own."""
        collations = () if self.rowid else self.shape.key_collations
        return same(_collated(left.identity, collations), right.identity)

    def found_under(self, image: Image) -> str:
        """The condition that `_cdchub_r` is the row which stands under the wire key of `image` now."""
        shape = self.shape
        if not shape.key or shape.rowid_key:
            return self.alike(self.present, image)
        key = [image.columns[name] for name in shape.key]

        def under_key(row: Image) -> str:
            # Through the key's own index, which has its collation, to what is exactly that key.
            columns = [row.columns[name] for name in shape.key]
            return same(_collated(columns, shape.key_collations), key)

        exact = self._same_on_wire(self.present, image)
        if self.rowid is None or not shape.key_nullable:
            return f"{under_key(self.present)} AND {exact}"
        # A key with a NULL in it is the rowid's; any other is found through its own index.
        some_null = " OR ".join(f"{value} IS NULL" for value in key)
        by_key = (
            f"(SELECT _cdchub_k.{self.rowid} FROM {self.table} _cdchub_k"
            f" WHERE {under_key(self.image('_cdchub_k'))})"
        )
        return (
            f"_cdchub_r.{self.rowid} ="
            f" CASE WHEN {some_null} THEN {image.identity[0]} ELSE {by_key} END AND {exact}"
        )

    def key_changed(self, old: Image) -> str:
        """Whether the keys of `old` and NEW, which are one row, differ on the wire."""
        shape = self.shape
        moved = f"{old.identity[0]} <> {self.new.identity[0]}"
        if not shape.key or shape.rowid_key:
            return moved
        unlike = f"NOT ({self._same_on_wire(old, self.new)})"
        if not shape.key_nullable:
            return unlike
        some_null = " OR ".join(f"{old.columns[name]} IS NULL" for name in shape.key)
        return f"{unlike} OR (({some_null}) AND {moved})"

    def names_in_set(self, columns: Sequence[str]) -> str:
        """These columns and the rowid, under every name that the SET of an UPDATE may use."""
        names = [quote(name) for name in columns]
        if self.shape.rowid is not None:
            alias = [quote(name) for name in self.shape.key if self.shape.rowid_key]
            names += [*alias, "rowid", "_rowid_", "oid"]
        return ", ".join(dict.fromkeys(names))

    def _same_on_wire(self, left: Image, right: Image) -> str:
        # IS under BINARY tells 'A' from 'a' whatever the column's collation; typeof tells 1 from 1.0.
        return " AND ".join(
            f"{left.columns[name]} COLLATE BINARY IS {right.columns[name]}"
            f" AND typeof({left.columns[name]}) = typeof({right.columns[name]})"
            for name in self.shape.key
        )


def _collated(columns: Sequence[str], collations: Sequence[str]) -> list[str]:
    if not collations:
        return list(columns)
    return [f"{c} COLLATE {quote(name)}" for c, name in zip(columns, collations, strict=True)]


def same(left: Sequence[str], right: Sequence[str]) -> str:
    # The left side carries the collation (sqlite.org/datatype3.html §7.1), so a column of the table
    # stands there.
    return " AND ".join(f"{a} = {b}" for a, b in zip(left, right, strict=True))
