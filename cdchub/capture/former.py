"""What a row was, put aside before it is changed, for tables whose OLD can't be trusted afterwards.

To check a foreign key, SQLite before 3.54 looks a parent's old key up among the children, and converts
it to their column's type in OLD itself: where a numeric column refers to a key of TEXT or of no type,
AFTER triggers are told that '05' was 5. BEFORE triggers see it as it is. So on such a table they put
OLD on a pile, and what comes after takes it from there.

An operation that a trigger ended in between leaves its row on the pile. It is rubbish once its
statement has ended, which shows as in `stage`: 'now' is one moment within a statement.
"""

from __future__ import annotations

from cdchub.capture.rows import Image, Rows
from cdchub.capture.schema import OWN_PREFIX


def former_name(table_id: int) -> str:
    return f"{OWN_PREFIX}former_{table_id}"


class Former:
    """The pile of one table: its SQL, and where the row is that OLD was."""

    def __init__(self, rows: Rows, table_id: int) -> None:
        self._rows = rows
        self._name = former_name(table_id)
        self._keys = [f"k{i}" for i in range(len(rows.identity))]
        self._values = [f"s{i}" for i in range(len(rows.shape.captured))]
        values = dict(zip(rows.shape.captured, self._values, strict=True))
        self.image = Image(
            tuple(f"_cdchub_f.{key}" for key in self._keys),
            {name: f"_cdchub_f.{column}" for name, column in values.items()},
        )
        found = f"SELECT n FROM {self._name} WHERE {self._was_old()} ORDER BY n DESC LIMIT 1"
        self.source = f"(SELECT * FROM {self._name} WHERE n = ({found})) _cdchub_f"
        self.take_off = f"DELETE FROM {self._name} WHERE n = ({found})"

    def create(self) -> dict[str, str]:
        """The table: name → CREATE statement."""
        columns = ", ".join(["n INTEGER PRIMARY KEY", "moment", *self._keys, *self._values])
        return {self._name: f"CREATE TABLE {self._name}({columns})"}

    def put(self) -> list[str]:
        """The steps before a change."""
        columns = ", ".join(["moment", *self._keys, *self._values])
        old = ", ".join([*self._rows.old.identity, *self._rows.old.values])
        oldest = f"(SELECT moment FROM {self._name} ORDER BY n LIMIT 1)"
        return [
            f"DELETE FROM {self._name} WHERE {oldest} <> julianday() AND moment <> julianday()",
            f"INSERT INTO {self._name}({columns}) VALUES (julianday(), {old})",
        ]

    def _was_old(self) -> str:
        pairs = zip(self._keys, self._rows.old.identity, strict=True)
        if self._rows.rowid:
            return " AND ".join(f"{self._name}.{key} = {old}" for key, old in pairs)
        return " AND ".join(
            f"({self._name}.{key} IS {old} OR CAST({self._name}.{key} AS NUMERIC) IS {old})"
            for key, old in pairs
        )
