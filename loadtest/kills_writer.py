"""A writer of the kills: random transactions of many sizes, until its standard input ends. Between an
"r" and a "g" that come there it rests.

Several run at a time on one database. One of them (`--schema`) now and then changes the schema too.
Each commits on its own; what they do is `soak_writer`'s statements, REPLACE among them.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import sqlite3
import sys

from loadtest.soak_writer import Statements

# Statements of a transaction: mostly few, sometimes more than one read of the hub takes.
_SIZES = (1, 1, 1, 2, 5, 20, 100, 400)
_TABLES_MAX = 8


class Writer:
    def __init__(self, path: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._statements = Statements(self._random)
        self._database = sqlite3.connect(path, timeout=60.0, isolation_level=None)

    def transaction(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        for _ in range(self._random.choice(_SIZES)):
            self._database.execute(*self._statements.next())
        self._database.execute("ROLLBACK" if self._random.random() < 0.05 else "COMMIT")

    def change_schema(self) -> None:
        """A table comes, grows a column, or goes."""
        name = f"late{self._random.randrange(_TABLES_MAX)}"
        self._database.execute("BEGIN IMMEDIATE")
        columns = [row[1] for row in self._database.execute(f"PRAGMA table_info({name})")]
        if not columns:
            self._database.execute(f"CREATE TABLE {name}(id INTEGER PRIMARY KEY, v)")
        elif len(columns) > 4:
            self._database.execute(f"DROP TABLE {name}")
        else:
            self._database.execute(f"ALTER TABLE {name} ADD COLUMN c{len(columns)} DEFAULT 'added'")
        if len(columns) <= 4:
            self._database.execute(f"INSERT INTO {name}(v) VALUES ('a'), ('b'), ('c')")
        self._database.execute("COMMIT")

    def pause_s(self) -> float:
        return self._random.choice([0.0, 0.002, 0.01, 0.05])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--schema", action="store_true", help="changes the schema now and then")
    options = parser.parse_args()
    writer = Writer(options.database, options.seed)
    made = 0
    while True:
        if select.select([sys.stdin], [], [], writer.pause_s())[0]:
            said = os.read(sys.stdin.fileno(), 1)
            if said == b"r":
                said = os.read(sys.stdin.fileno(), 1)
            if not said:
                break
        writer.transaction()
        made += 1
        if options.schema and made % 40 == 0:
            writer.change_schema()
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
