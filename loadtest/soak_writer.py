"""The soak's writer: random transactions on three tables, from a process that knows nothing of cdchub.

It is told how far it may go, so that the kills of the hub fall where the run wants them: a line with a
count on standard input allows that many changes in all. After each commit it prints how many it has
made. It ends at `--changes`, with one row in each table that marks the end.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence

SCHEMA = """
CREATE TABLE a(id INTEGER PRIMARY KEY, slug TEXT COLLATE NOCASE UNIQUE, amount REAL, data);
CREATE TABLE b(region TEXT COLLATE NOCASE, code, qty INTEGER, note TEXT NOT NULL DEFAULT 'none',
    PRIMARY KEY(region, code)) WITHOUT ROWID;
CREATE TABLE c(value, extra TEXT, size INTEGER GENERATED ALWAYS AS (length(extra)) VIRTUAL);
"""
# `size` is a function of text only: a VIRTUAL column is computed by whoever reads it, and SQLite's
# text of a REAL became longer between 3.40 and 3.54, so the hub's library and ours could differ.
# The key columns of each table; c has no declared key.
KEYS: dict[str, tuple[str, ...]] = {"a": ("id",), "b": ("region", "code"), "c": ()}
END_MARK = "the end of the soak"

TRANSACTION_ROWS_MAX = 100
# Small spaces of keys, so that most statements meet a row, and REPLACE meets one to throw out.
_IDS, _SLUGS, _CODES, _ROWIDS = 600, 400, 120, 500

_TEXTS = [
    "",
    "milk",
    "Milk",
    "tab\tquote\"'\\",
    "two\nlines\r\n",
    "żółć 🥛 \u2028",
    "nul\0in it",
    "x" * 300,
]
_NUMBERS = [0, 1, -1, 2**53 - 1, 2**53, -(2**53), 2**63 - 1, -(2**63)]
_REALS = [0.0, -0.0, 1.0, 0.1, 1e22, -1e-300, 1.7976931348623157e308, float("inf"), float("-inf")]

Value = None | int | float | str | bytes
Statement = tuple[str, Sequence[Value]]


class Statements:
    """Random statements; one seed makes one sequence."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._makers: list[Callable[[], Statement]] = [
            *[self._replace_a, self._insert_a, self._update_a, self._upsert_a, self._delete_a],
            *[self._move_a, self._shift_a, self._replace_b, self._replace_b, self._update_b],
            *[self._move_b, self._delete_b, self._copy_b, self._insert_c, self._replace_c],
            *[self._update_c, self._broken_text_c, self._move_c, self._delete_c],
        ]

    def next(self) -> Statement:
        return self._random.choice(self._makers)()

    def _value(self) -> Value:
        pick = self._random
        match pick.randrange(7):
            case 0:
                return None
            case 1:
                return pick.choice(_NUMBERS)
            case 2:
                return pick.randrange(-1_000, 1_000)
            case 3:
                return pick.choice(_REALS)
            case 4:
                return pick.uniform(-1e6, 1e6)
            case 5:
                return pick.choice(_TEXTS)
            case _:
                return pick.randbytes(pick.randrange(40))

    def _id(self) -> int:
        return self._random.randrange(_IDS)

    def _slug(self) -> str | None:
        number = self._random.randrange(_SLUGS)
        return self._random.choice([f"slug{number}", f"SLUG{number}", None])

    def _real(self) -> float:
        return self._random.choice([*_REALS, self._random.uniform(-9, 9)])

    def _region(self) -> str:
        return self._random.choice(["north", "North", "south", "east", "żółć"])

    def _code(self) -> Value:
        number = self._random.randrange(_CODES)
        # 1 and 1.0 are one key for SQLite and two on the wire.
        forms: list[Value] = [number, float(number), f"c{number}", -0.0, b"k%d" % number]
        return self._random.choice(forms)

    def _rowid(self) -> int:
        return self._random.randrange(1, _ROWIDS)

    def _replace_a(self) -> Statement:
        return (
            "INSERT OR REPLACE INTO a VALUES (?, ?, ?, ?)",
            (self._id(), self._slug(), self._real(), self._value()),
        )

    def _insert_a(self) -> Statement:
        return (
            "INSERT OR IGNORE INTO a VALUES (?, ?, ?, ?)",
            (self._id(), self._slug(), self._real(), self._value()),
        )

    def _upsert_a(self) -> Statement:
        sql = (
            "INSERT OR REPLACE INTO a VALUES (?, ?, ?, ?)"
            " ON CONFLICT(id) DO UPDATE SET amount = excluded.amount, data = excluded.data"
        )
        return (sql, (self._id(), self._slug(), self._real(), self._value()))

    def _update_a(self) -> Statement:
        first = self._id()
        return (
            "UPDATE a SET amount = ?, data = ? WHERE id BETWEEN ? AND ?",
            (self._real(), self._value(), first, first + self._random.randrange(5)),
        )

    def _move_a(self) -> Statement:
        return ("UPDATE OR REPLACE a SET id = ? WHERE id = ?", (self._id(), self._id()))

    def _shift_a(self) -> Statement:
        # Every row of the range lands on the next one's key.
        first = self._id()
        return ("UPDATE OR REPLACE a SET id = id + 1 WHERE id BETWEEN ? AND ?", (first, first + 3))

    def _delete_a(self) -> Statement:
        return ("DELETE FROM a WHERE id = ?", (self._id(),))

    def _replace_b(self) -> Statement:
        note = self._random.choice([None, *_TEXTS])
        return (
            "INSERT OR REPLACE INTO b VALUES (?, ?, ?, ?)",
            (self._region(), self._code(), self._random.randrange(100), note),
        )

    def _update_b(self) -> Statement:
        return (
            "UPDATE b SET qty = qty + 1 WHERE region = ? AND code = ?",
            (self._region(), self._code()),
        )

    def _move_b(self) -> Statement:
        return (
            "UPDATE OR REPLACE b SET region = ?, code = ? WHERE region = ? AND code = ?",
            (self._region(), self._code(), self._region(), self._code()),
        )

    def _copy_b(self) -> Statement:
        sql = (
            "INSERT OR REPLACE INTO b SELECT ?, code, qty, note FROM b"
            " WHERE region = ? AND code > ? ORDER BY code LIMIT 4"
        )
        return (sql, (self._region(), self._region(), self._code()))

    def _delete_b(self) -> Statement:
        return ("DELETE FROM b WHERE region = ? AND code = ?", (self._region(), self._code()))

    def _insert_c(self) -> Statement:
        text = self._random.choice(_TEXTS)
        return ("INSERT INTO c(value, extra) VALUES (?, ?)", (self._value(), text))

    def _replace_c(self) -> Statement:
        return (
            "INSERT OR REPLACE INTO c(rowid, value, extra) VALUES (?, ?, 'put')",
            (self._rowid(), self._value()),
        )

    def _update_c(self) -> Statement:
        return ("UPDATE c SET value = ? WHERE rowid = ?", (self._value(), self._rowid()))

    def _broken_text_c(self) -> Statement:
        return ("UPDATE c SET value = CAST(? AS TEXT) WHERE rowid = ?", (b"a\xffb", self._rowid()))

    def _move_c(self) -> Statement:
        return ("UPDATE OR REPLACE c SET rowid = ? WHERE rowid = ?", (self._rowid(), self._rowid()))

    def _delete_c(self) -> Statement:
        return ("DELETE FROM c WHERE rowid = ?", (self._rowid(),))


class Writer:
    def __init__(self, path: str, seed: int) -> None:
        self._path = path
        self._random = random.Random(seed)
        self._statements = Statements(self._random)
        self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path, timeout=30.0, isolation_level=None)

    def transaction(self) -> int:
        """One transaction of at most 100 rows. How many changes it committed; 0 if rolled back."""
        wanted = self._random.randint(1, TRANSACTION_ROWS_MAX)
        made = statements = 0
        self._database.execute("BEGIN IMMEDIATE")
        # A small transaction on empty tables may find nothing to change: it is given up in the end.
        while made < wanted and statements < 4 * TRANSACTION_ROWS_MAX:
            statements += 1
            if self._random.random() < 0.03:
                self._undone()
            else:
                made += self._execute(self._statements.next())
        if self._random.random() < 0.05:
            self._database.execute("ROLLBACK")
            return 0
        self._database.execute("COMMIT")
        return made

    def _execute(self, statement: Statement) -> int:
        return max(0, self._database.execute(*statement).rowcount)

    def _undone(self) -> None:
        """A statement that never happened, inside a transaction that goes on."""
        self._database.execute("SAVEPOINT undone")
        self._execute(self._statements.next())
        self._database.execute("ROLLBACK TO undone")
        self._database.execute("RELEASE undone")

    def maybe_pause(self) -> None:
        """Now and then nothing happens for a while: the hub prunes its outbox in such pauses."""
        if self._random.random() < 0.012:
            time.sleep(1.2)

    def maybe_reopen(self) -> None:
        """Now and then it goes: if the hub is dead then, SQLite removes the -wal with it."""
        if self._random.random() < 0.02:
            self._database.close()
            self._open()

    def finish(self) -> None:
        """The mark of the end, in every table."""
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("INSERT INTO a(id, data) VALUES (?, ?)", (10**9, END_MARK))
        self._database.execute("INSERT INTO b VALUES ('end', 0, 0, ?)", (END_MARK,))
        self._database.execute("INSERT INTO c(rowid, value) VALUES (?, ?)", (10**9, END_MARK))
        self._database.execute("COMMIT")
        self._database.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--changes", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--row-ms", type=float, required=True, help="the pace: time for one change")
    options = parser.parse_args()
    writer = Writer(options.database, options.seed)
    made = allowed = 0
    while made < options.changes:
        while made >= allowed:
            line = sys.stdin.readline()
            if not line:
                return 1
            allowed = int(line)
        count = writer.transaction()
        made += count
        if count:
            print(made, flush=True)
        writer.maybe_reopen()
        writer.maybe_pause()
        time.sleep(count * options.row_ms / 1_000)
    writer.finish()
    print("end", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
