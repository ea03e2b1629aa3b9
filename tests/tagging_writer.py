"""A writer whose transactions can be told apart in a log: `python -m tests.tagging_writer DB SEED`.

Every transaction has a tag, and marks itself with it: rows (tag, n) in `marks`, n from 1 to as many as
it has, in its first statement and its last, with others between them that replace, move and delete
rows of `t`. Some transactions change the schema. After each commit it prints the tag and the number
of marks; when its standard input ends, it stops.
"""

from __future__ import annotations

import random
import select
import sqlite3
import sys

SCHEMA = (
    "CREATE TABLE marks(tag INTEGER, n INTEGER, PRIMARY KEY(tag, n))",
    "CREATE TABLE t(id INTEGER PRIMARY KEY, slug TEXT UNIQUE, pad)",
    # Some megabytes that don't compress, so that a base has several slices.
    """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
    INSERT INTO t SELECT i, 'slug' || i, hex(randomblob(1000)) FROM n
    """,
)
_IDS = 400


class Writer:
    def __init__(self, path: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        (self.tag,) = self._db.execute("SELECT coalesce(max(tag), 0) FROM marks").fetchone()

    def transaction(self) -> int:
        """One transaction, committed. Returns how many marks it made."""
        pick = self._random
        self.tag += 1
        # Now and then one that is larger than several batches of the hub's.
        marks = pick.choice([2, 3, 5, 12, 150 if self.tag % 7 == 0 else 4])
        self._db.execute("BEGIN IMMEDIATE")
        for n in range(1, marks + 1):
            self._db.execute("INSERT INTO marks VALUES (?, ?)", (self.tag, n))
            if n < marks and pick.random() < 0.6:
                self._other()
        if self.tag % 11 == 0:
            self._change_schema()
        self._db.execute("COMMIT")
        return marks

    def _other(self) -> None:
        pick = self._random
        number, other = pick.randrange(_IDS), pick.randrange(_IDS)
        match pick.randrange(4):
            case 0:
                self._db.execute(
                    "INSERT OR REPLACE INTO t(id, slug, pad) VALUES (?, ?, ?)",
                    (number, f"slug{other}", "x" * pick.randrange(50)),
                )
            case 1:
                self._db.execute("UPDATE OR REPLACE t SET id = ? WHERE id = ?", (number, other))
            case 2:
                self._db.execute(
                    "UPDATE t SET pad = ? WHERE id >= ? AND id < ? + 3", (number, other, other)
                )
            case _:
                self._db.execute("DELETE FROM t WHERE id = ?", (number,))

    def _change_schema(self) -> None:
        if self.tag % 2:
            self._db.execute(f"CREATE TABLE late{self.tag}(id INTEGER PRIMARY KEY, v)")
            self._db.execute(f"INSERT INTO late{self.tag}(v) VALUES ('a'), ('b')")
        else:
            self._db.execute(f"ALTER TABLE t ADD COLUMN c{self.tag} DEFAULT {self.tag}")

    def pause_s(self) -> float:
        """Light writing, with pauses in which a hub does what it puts off."""
        return 0.15 if self.tag % 10 == 0 else self._random.uniform(0.0, 0.01)


def main() -> None:
    writer = Writer(sys.argv[1], int(sys.argv[2]))
    while True:
        marks = writer.transaction()
        print(writer.tag, marks, flush=True)
        if select.select([sys.stdin], [], [], writer.pause_s())[0]:
            return


if __name__ == "__main__":
    main()
