"""Reading rows exactly as they are stored, also beside TEXT that no str can hold."""

from __future__ import annotations

import pytest

from cdchub.capture import install
from cdchub.capture.driver import Connection, Driver
from cdchub.capture.outbox import VALUES, Anchor, read_rows
from cdchub.capture.scan import scan
from cdchub.change import InvalidText

BROKEN = {
    "UTF-8": ("x'61ff'", b"a\xff"),
    # Half of a pair; in UTF-8 it would be these bytes, were it allowed there.
    "UTF-16le": ("x'610000d8'", b"a\xed\xa0\x80"),
    "UTF-16be": ("x'0061d800'", b"a\xed\xa0\x80"),
}


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize("encoding", BROKEN)
def test_broken_text_leaves_the_text_beside_it_alone(encoding: str, driver: Driver) -> None:
    sql, broken = BROKEN[encoding]
    connection = Connection(":memory:", driver, read_only=False)
    connection.execute(f"PRAGMA encoding = '{encoding}'")
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)")
    captured = install.reconcile(connection).captured
    connection.execute("INSERT INTO t VALUES (1, 'a\u00f6\U0001f600', 2.0)")
    connection.execute(f"INSERT INTO t VALUES (2, CAST({sql} AS TEXT), x'00ff')")
    expected = [(1, "a\u00f6\U0001f600", 2.0), (2, InvalidText(broken), b"\x00\xff")]
    (shape,) = captured.shapes.values()
    ((_, *first), (_, *second)) = (row for batch in scan(connection, shape) for row in batch)
    assert [tuple(first), tuple(second)] == expected
    rows = read_rows(connection, after=Anchor(0, None), captured=captured, limit=10)
    assert [row[VALUES + 3 : VALUES + 6] for row in rows] == expected
    assert type(rows[1][VALUES + 4]) is InvalidText
    connection.close()
