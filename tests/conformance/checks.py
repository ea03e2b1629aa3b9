"""What must hold of one subscriber's changes. Each raises AssertionError with what does not."""

from __future__ import annotations

import json

from cdchub.change import NOTES, transaction_mark
from loadtest.rows import Rows, from_wire, row_problems
from tests.conformance.subscribers import Subscriber


def compare(who: str, held: Rows, expected: Rows) -> None:
    problems = row_problems(held, expected)
    assert not problems, f"{who} holds otherwise:\n" + "\n".join(problems)


def check_updates(subscriber: Subscriber) -> None:
    """Each change says which row it is about, and an UPDATE is about one row."""
    for change in subscriber.changes:
        key, old, new = change["key"], change["oldValue"], change["newValue"]
        assert change["type"] in ("INSERT", "UPDATE", "DELETE"), change
        assert (old is None) == (change["type"] == "INSERT"), change
        assert (new is None) == (change["type"] == "DELETE"), change
        for row in (old, new):
            for name, value in key.items():
                # The rowid stands in a key beside the columns, one of which may be called so.
                if row is not None and name != "rowid":
                    same = from_wire(row[name]) == from_wire(value)
                    zero = value == 0.0 and row[name] == 0.0 and isinstance(row[name], float)
                    assert same or zero, f"another row than its key says: {change}"


def check_transactions(subscriber: Subscriber, ends: list[int]) -> None:
    """No LSN is missing; a transaction is contiguous, and ends with its one commit, where a commit
    of the writer's ended."""
    lsn = 0
    txid = None
    for entry in subscriber.entries:
        assert entry.lsn == lsn + 1, f"LSN {lsn + 1} is missing"
        lsn = entry.lsn
        number, commit = transaction_mark(entry.data)
        assert number == (lsn if txid is None else txid), f"LSN {lsn} has txid {number}, not {txid}"
        txid = None if commit else number
        assert not commit or lsn in ends, f"LSN {lsn} is no end of a commit, they are {ends}"
        noted = entry.type in NOTES
        assert noted or json.loads(entry.data)["lsn"] == lsn
    assert txid is None, f"the transaction {txid} has no end"
