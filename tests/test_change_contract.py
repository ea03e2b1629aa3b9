"""INTERFACE §2 through real HTTP: what a change says, exactly, whatever is in the row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import HubProcess, make_database, run_sql

# SQL expression -> the wire. A str is compared with the bytes, a callable decides on them.
EXACT = {
    "NULL": "null",
    "0": "0",
    "9007199254740991": "9007199254740991",
    "9007199254740992": '{"$int":"9007199254740992"}',
    "9223372036854775807": '{"$int":"9223372036854775807"}',
    "-9007199254740991": "-9007199254740991",
    "-9007199254740992": '{"$int":"-9007199254740992"}',
    "-9223372036854775807 - 1": '{"$int":"-9223372036854775808"}',
    "1.0": "1.0",
    "-1 * 0.0": "-0.0",
    "1e22": "1e22",
    "0.1 + 0.2": "0.30000000000000004",
    "9e999": '{"$real":"Infinity"}',
    "-9e999": '{"$real":"-Infinity"}',
    "x'00ff'": '{"$blob":"AP8="}',
    "x''": '{"$blob":""}',
    "CAST(x'ff41' AS TEXT)": '{"$text":"/0E="}',
    "CAST(x'eda080' AS TEXT)": '{"$text":"7aCA"}',  # a surrogate is no UTF-8
    "CAST(x'c080' AS TEXT)": '{"$text":"wIA="}',  # nor is an overlong form
    "CAST(x'41e282' AS TEXT)": '{"$text":"QeKC"}',  # nor is half a character
    "CAST(x'ff00' AS TEXT)": '{"$text":"/wA="}',
    "'123'": '"123"',
    "''": '""',
}
REALS = ["1e15", "1e16", "123456789012345680.0", "5e-324", "1.7976931348623157e308", "-2.5e-10", "1e21"]
TEXTS = {
    "'a' || char(0) || 'b'": "a\0b",
    "char(0)": "\0",
    "'😀é'": "😀é",
    "char(13, 10) || 'data: x' || char(10, 10)": "\r\ndata: x\n\n",
    "char(0x2028, 0x2029, 0x85, 0xFEFF, 127, 1)": "\u2028\u2029\x85\ufeff\x7f\x01",
    "char(0xFFFF, 0x10FFFF)": "\uffff\U0010ffff",
    "'\"\\/' || char(9)": '"\\/\t',
    '\'{"$int":"1"}\'': '{"$int":"1"}',
}
EXPRESSIONS = [*EXACT, *REALS, *TEXTS]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("changes") / "app.db",
        "CREATE TABLE vals(id INTEGER PRIMARY KEY, v)",
        "CREATE TABLE exact(id INTEGER PRIMARY KEY, v, z DEFAULT 'END')",
        "CREATE TABLE loose(id PRIMARY KEY, v)",
        "CREATE TABLE nocase(id TEXT PRIMARY KEY COLLATE NOCASE, v)",
        "CREATE TABLE nokey(a, b)",
        "CREATE TABLE pair(b TEXT, v, a INTEGER, PRIMARY KEY(a, b)) WITHOUT ROWID",
        "CREATE TABLE uniq(id INTEGER PRIMARY KEY, u UNIQUE, v)",
        "CREATE TABLE parent(id INTEGER PRIMARY KEY)",
        "CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent ON DELETE CASCADE)",
        "CREATE TABLE made(v, twice AS (v * 2), id INTEGER PRIMARY KEY, thrice AS (v * 3) STORED)",
        "CREATE TABLE audit(id INTEGER PRIMARY KEY, what)",
        "CREATE TRIGGER audited AFTER INSERT ON parent BEGIN INSERT INTO audit(what) VALUES(1); END",
        'CREATE TABLE "we""ird 😀"("$int" INTEGER PRIMARY KEY, "a""b" , "select" , "")',
    )
    with HubProcess(database) as hub:
        yield hub


def changes_of(hub: HubProcess, table: str, *statements: str) -> list[dict[str, Any]]:
    """What a live stream and a page of changes both tell of the statements."""
    before = hub.head()
    with hub.stream(f"table={table},audit") as stream:
        stream.until("caught-up")
        run_sql(hub.database, *statements, "INSERT INTO audit(what) VALUES ('end')")
        live = stream.changes(1)
        while live[-1]["table"] != "audit" or live[-1]["newValue"]["what"] != "end":
            live += stream.changes(1)
    paged = hub.get(f"/cdc/changes?table={table},audit&since={before}").json()["changes"]
    assert live == paged
    return live[:-1]


def brief(change: dict[str, Any]) -> tuple[str, str, str]:
    """Type, key and table. The key as text, because 1 == 1.0 in Python."""
    return change["type"], change["table"], json.dumps(change["key"])


@pytest.fixture(scope="module")
def wire(shared: HubProcess) -> dict[str, list[str]]:
    """The bytes of each value as a live stream, a resumed one, a page and two snapshots show it."""
    rows = ", ".join(f"({at}, {sql})" for at, sql in enumerate(EXPRESSIONS, 1))
    with shared.stream("table=exact") as live:
        live.until("caught-up")
        run_sql(shared.database, f"INSERT INTO exact(id, v) VALUES {rows}")
        live.changes(len(EXPRESSIONS))
        texts = [live.text]
    for query in ("table=exact&since=beginning", "table=exact&snapshot=1"):
        with shared.stream(query) as stream:
            stream.until("caught-up")
            texts.append(stream.text)
    texts.append(shared.get("/cdc/changes?table=exact").body.decode())
    texts.append(shared.get("/cdc/snapshot?table=exact").body.decode())
    found = {}
    for at, sql in enumerate(EXPRESSIONS, 1):
        row = re.compile(rf'{{"id":{at},"v":(.*?),"z":"END"}}')
        found[sql] = [match[1] for text in texts if (match := row.search(text))]
        assert len(found[sql]) == len(texts), f"{sql} is missing somewhere"
    return found


@pytest.mark.parametrize("sql", EXPRESSIONS)
def test_a_value_is_exact_everywhere(wire: dict[str, list[str]], sql: str) -> None:
    (text,) = set(wire[sql])
    if sql in EXACT:
        assert text == EXACT[sql]
    elif sql in TEXTS:
        assert json.loads(text) == TEXTS[sql]
    else:
        assert float(text) == float(sql)
        assert len(text) <= len(repr(float(sql))), "not the shortest"
        assert re.search(r"[.e]", text), "it must still show that it is a real"


# Keys.


@pytest.mark.parametrize(
    ("table", "statements", "expected"),
    [
        ("vals", ["INSERT INTO vals VALUES (-5, 1)"], [("INSERT", '{"id": -5}')]),
        ("nokey", ["INSERT INTO nokey(rowid, a) VALUES (7, 1)"], [("INSERT", '{"rowid": 7}')]),
        (
            "nokey",
            ["UPDATE nokey SET rowid = 8"],
            [("DELETE", '{"rowid": 7}'), ("INSERT", '{"rowid": 8}')],
        ),
        ("pair", ["INSERT INTO pair VALUES ('x', 0, 5)"], [("INSERT", '{"a": 5, "b": "x"}')]),
        (
            "pair",
            ["UPDATE pair SET b = 'y', v = 1"],
            [("DELETE", '{"a": 5, "b": "x"}'), ("INSERT", '{"a": 5, "b": "y"}')],
        ),
        (
            "loose",
            ["INSERT INTO loose(rowid, id) VALUES (7, NULL)"],
            [("INSERT", '{"id": null, "rowid": 7}')],
        ),
        ("loose", ["UPDATE loose SET v = 2"], [("UPDATE", '{"id": null, "rowid": 7}')]),
        (
            "loose",
            ["UPDATE loose SET id = 1"],
            [("DELETE", '{"id": null, "rowid": 7}'), ("INSERT", '{"id": 1}')],
        ),
        ("loose", ["UPDATE loose SET id = 1.0"], [("DELETE", '{"id": 1}'), ("INSERT", '{"id": 1.0}')]),
        (
            "loose",
            ["UPDATE loose SET id = '1'"],
            [("DELETE", '{"id": 1.0}'), ("INSERT", '{"id": "1"}')],
        ),
        (
            "loose",
            ["UPDATE loose SET id = 0.0"],
            [("DELETE", '{"id": "1"}'), ("INSERT", '{"id": 0.0}')],
        ),
        ("loose", ["UPDATE loose SET id = -1 * 0.0"], [("UPDATE", '{"id": 0.0}')]),
        ("loose", ["UPDATE loose SET rowid = 99"], [("UPDATE", '{"id": 0.0}')]),
        ("loose", ["DELETE FROM loose"], [("DELETE", '{"id": 0.0}')]),
        ("nocase", ["INSERT INTO nocase VALUES ('A', 1)"], [("INSERT", '{"id": "A"}')]),
        (
            "nocase",
            ["UPDATE nocase SET id = 'a'"],
            [("DELETE", '{"id": "A"}'), ("INSERT", '{"id": "a"}')],
        ),
        (
            "nocase",
            ["INSERT OR REPLACE INTO nocase VALUES ('A', 2)"],
            [("DELETE", '{"id": "a"}'), ("INSERT", '{"id": "A"}')],
        ),
    ],
)
def test_keys(
    shared: HubProcess, table: str, statements: list[str], expected: list[tuple[str, str]]
) -> None:
    """In the order of the table: each case goes on from the rows of the last."""
    found = changes_of(shared, table, *statements)
    assert [(change["type"], json.dumps(change["key"])) for change in found] == expected
    for change in found:
        assert (change["oldValue"] is None) == (change["type"] == "INSERT")
        assert (change["newValue"] is None) == (change["type"] == "DELETE")


def test_minus_zero_stays_in_the_row_but_not_in_the_key(shared: HubProcess) -> None:
    (change,) = changes_of(shared, "loose", "INSERT INTO loose VALUES (-1 * 0.0, 1)")
    assert math.copysign(1, change["key"]["id"]) == 1
    assert math.copysign(1, change["newValue"]["id"]) == -1


# What counts as a change.


def test_replace_tells_of_the_rows_it_evicts(shared: HubProcess) -> None:
    changes_of(shared, "uniq", "INSERT INTO uniq VALUES (1, 'a', 0), (2, 'b', 0)")
    found = changes_of(shared, "uniq", "REPLACE INTO uniq VALUES (3, 'a', 1)")
    assert sorted(map(brief, found)) == [
        ("DELETE", "uniq", '{"id": 1}'),
        ("INSERT", "uniq", '{"id": 3}'),
    ]
    found = changes_of(shared, "uniq", "UPDATE OR REPLACE uniq SET u = 'b' WHERE id = 3")
    assert sorted(map(brief, found)) == [
        ("DELETE", "uniq", '{"id": 2}'),
        ("UPDATE", "uniq", '{"id": 3}'),
    ]
    statement = "INSERT INTO uniq VALUES (4, 'b', 7) ON CONFLICT(u) DO UPDATE SET v = excluded.v"
    (change,) = changes_of(shared, "uniq", statement)
    assert (change["type"], change["newValue"]) == ("UPDATE", {"id": 3, "u": "b", "v": 7})


def test_foreign_keys_and_triggers(shared: HubProcess) -> None:
    found = changes_of(shared, "parent,child", "INSERT INTO parent VALUES (1)")
    assert sorted(change["table"] for change in found) == ["audit", "parent"]
    changes_of(shared, "parent,child", "INSERT INTO child VALUES (1, 1), (2, 1)")
    found = changes_of(shared, "parent,child", "PRAGMA foreign_keys = ON", "DELETE FROM parent")
    assert sorted(map(brief, found)) == [
        ("DELETE", "child", '{"id": 1}'),
        ("DELETE", "child", '{"id": 2}'),
        ("DELETE", "parent", '{"id": 1}'),
    ]
    assert len({change["txid"] for change in found}) == 1


def test_generated_columns_are_there_in_the_order_of_select_star(shared: HubProcess) -> None:
    inserted, updated = changes_of(
        shared, "made", "INSERT INTO made(id, v) VALUES (1, 5)", "UPDATE made SET v = 6"
    )
    assert list(inserted["newValue"].items()) == [("v", 5), ("twice", 10), ("id", 1), ("thrice", 15)]
    assert (updated["oldValue"], updated["newValue"]["thrice"]) == (inserted["newValue"], 18)


def test_a_table_with_a_weird_name_and_weird_columns(shared: HubProcess) -> None:
    name = 'we"ird 😀'
    (change,) = changes_of(
        shared, "we%22ird%20%F0%9F%98%80", """INSERT INTO "we""ird 😀" VALUES (1, 2, 3, 4)"""
    )
    assert (change["table"], change["key"]) == (name, {"$int": 1})
    assert list(change["newValue"].items()) == [("$int", 1), ('a"b', 2), ("select", 3), ("", 4)]


def test_work_that_is_rolled_back_is_never_seen(shared: HubProcess) -> None:
    found = changes_of(
        shared,
        "vals",
        "BEGIN",
        "INSERT INTO vals VALUES (900, 'gone')",
        "ROLLBACK",
        "BEGIN",
        "INSERT INTO vals VALUES (901, 'kept')",
        "SAVEPOINT s",
        "INSERT INTO vals VALUES (902, 'gone')",
        "ROLLBACK TO s",
        "COMMIT",
    )
    assert [change["key"]["id"] for change in found] == [901]


def test_a_transaction_is_contiguous_and_its_end_is_marked(shared: HubProcess) -> None:
    found = changes_of(
        shared,
        "vals,uniq",
        "BEGIN",
        "INSERT INTO vals VALUES (910, 1)",
        "INSERT INTO uniq VALUES (910, 'x', 1)",
        "UPDATE vals SET v = 2 WHERE id = 910",
        "COMMIT",
        "DELETE FROM vals WHERE id = 910",
    )
    first = found[0]["lsn"]
    assert [change["lsn"] for change in found] == [first + n for n in range(4)]
    assert [change["txid"] for change in found[:3]] == [first] * 3
    assert [change["commit"] for change in found[:3]] == [False, False, found[3]["txid"] != first]
    assert found[3]["txid"] in (first, first + 3)


def test_an_update_that_changes_nothing_is_still_a_change_of_the_row(shared: HubProcess) -> None:
    found = changes_of(
        shared, "vals", "INSERT INTO vals VALUES (920, 'same')", "UPDATE vals SET v = v WHERE id = 920"
    )
    assert all(change["newValue"] == {"id": 920, "v": "same"} for change in found)
    assert 1_600_000_000_000 < found[0]["timestamp"] <= found[-1]["timestamp"]


def test_applying_all_changes_gives_the_tables(shared: HubProcess) -> None:
    """The promise of §2, over everything that the tests above have done."""
    for table in ("vals", "loose", "nocase", "nokey", "pair", "uniq", "parent", "child", "made"):
        snapshot = shared.get(f"/cdc/snapshot?table={table}").json()
        state: dict[str, Any] = {}
        for change in shared.get(f"/cdc/changes?table={table}&limit=10000").json()["changes"]:
            if change["lsn"] > snapshot["lsn"]:
                break
            if change["type"] == "DELETE":
                state.pop(json.dumps(change["key"]), None)
            else:
                state[json.dumps(change["key"])] = json.dumps(change["newValue"])
        assert sorted(state.values()) == sorted(json.dumps(row) for row in snapshot["rows"]), table
