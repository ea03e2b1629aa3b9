"""Filters, as INTERFACE §3 has them: the notation by tables and by Hypothesis, and what a value meets
as SQLite itself says it."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdchub.capture.table import quote
from cdchub.catalog import Affinity, ColumnInfo, affinity_of
from cdchub.change import InvalidText, SqliteValue
from cdchub.errors import BadFilter
from cdchub.filter import (
    Condition,
    Operator,
    ParsedFilter,
    literals,
    make_test,
    narrow,
    parse_columns,
    parse_filter,
)

ONE_LITERAL = [each for each in Operator if each not in (Operator.IN, Operator.IS)]
COMPARING = {
    Operator.EQ: "=",
    Operator.NEQ: "<>",
    Operator.LT: "<",
    Operator.LTE: "<=",
    Operator.GT: ">",
    Operator.GTE: ">=",
}

# The notation.


@pytest.mark.parametrize("operator", ONE_LITERAL)
@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("1", "1"),
        ("", ""),
        ("a.b=c,d(e)", "a.b=c,d(e)"),
        (" a ", " a "),
        ('a"b', 'a"b'),
        ("a\\b", "a\\b"),
        ('"a"', "a"),
        ('""', ""),
        ('"a,b)."', "a,b)."),
        (r'"say \"hi\" \\ there"', r'say "hi" \ there'),
        ("é\N{GRINNING FACE}\x00\n", "é\N{GRINNING FACE}\x00\n"),
    ],
)
def test_one_literal(operator: Operator, written: str, text: str) -> None:
    assert parse_filter(f"a={operator.value}.{written}") == ParsedFilter(("a",), operator, (text,))


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        ("(a)", ("a",)),
        ("(a,b)", ("a", "b")),
        ('(a,"b,c")', ("a", "b,c")),
        (r'("\"",")","(")', ('"', ")", "(")),
        ("(a,)", ("a", "")),
        ('("")', ("",)),
        ('( a, b"c)', (" a", ' b"c')),
        ("(a.b,c=d)", ("a.b", "c=d")),
    ],
)
def test_a_list(written: str, texts: tuple[str, ...]) -> None:
    assert parse_filter(f"a=in.{written}") == ParsedFilter(("a",), Operator.IN, texts)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("a", ("a",)),
        ("t.a", ("t", "a")),
        ('"t.u".a', ("t.u", "a")),
        ('t."a=b"', ("t", "a=b")),
        (r'"a\"b"."c\\d"', ('a"b', "c\\d")),
        ("größe", ("größe",)),
        ("a b", ("a b",)),
        ('a"b', ('a"b',)),
        ("eq", ("eq",)),
    ],
)
def test_names(written: str, names: tuple[str, ...]) -> None:
    assert parse_filter(f"{written}=eq.1") == ParsedFilter(names, Operator.EQ, ("1",))
    assert parse_columns(f"{written},z,{written}") == [names, ("z",), names]


@pytest.mark.parametrize("value", ["null", "not_null"])
def test_is(value: str) -> None:
    assert parse_filter(f"a=is.{value}") == ParsedFilter(("a",), Operator.IS, (value,))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 0),
        ("=eq.1", 0),
        ("a", 1),
        ("a=", 2),
        ("a=eq", 2),
        ("a=EQ.1", 2),
        ("a=between.1", 2),
        ("a==eq.1", 2),
        ("a=.eq.1", 2),
        ("t.=eq.1", 2),
        (".a=eq.1", 0),
        ("s.t.a=eq.1", 3),
        ('"a=eq.1', 0),
        ('t."a=eq.1', 2),
        ('"a"b=eq.1', 3),
        ('""=eq.1', 0),
        ('t.""=eq.1', 2),
        ('a=eq."b', 5),
        ('a=eq."b"c', 8),
        ('a=eq."b\\', 5),
        ('a=eq."b\\"', 5),
        ("a=is.", 5),
        ("a=is.NULL", 5),
        ("a=is.true", 5),
        ("a=in.b", 5),
        ("a=in.", 5),
        ("a=in.(b", 7),
        ("a=in.(b,c", 9),
        ("a=in.(b)c", 8),
        ('a=in.("b)', 6),
        ('a=in.("b"c)', 9),
        ('a=in.(b,"c"', 11),
    ],
)
def test_a_malformed_filter_is_pointed_at(text: str, at: int) -> None:
    with pytest.raises(BadFilter) as raised:
        parse_filter(text)
    assert raised.value.at == at
    assert f"at character {at + 1}: " in str(raised.value)


@pytest.mark.parametrize(("text", "at"), [("", 0), ("a,", 2), (",a", 0), ("a,b.c.d", 5), ('"a', 0)])
def test_malformed_columns_are_pointed_at(text: str, at: int) -> None:
    with pytest.raises(BadFilter) as raised:
        parse_columns(text)
    assert raised.value.at == at


def test_what_is_too_much_is_refused() -> None:
    for text in ("a=eq." + "x" * 8_000, f"a=in.({','.join('x' * 501)})"):
        with pytest.raises(BadFilter):
            parse_filter(text)
    assert len(parse_filter(f"a=in.({','.join('x' * 500)})").texts) == 500


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def ways(text: str, plain: str) -> st.SearchStrategy[str]:
    """How a text can be written: quoted, and bare where it looks as `plain` says."""
    bare = re.fullmatch(plain, text, re.DOTALL) is not None
    return st.sampled_from([quoted(text), text] if bare else [quoted(text)])


@st.composite
def rendered(draw: st.DrawFn) -> tuple[str, ParsedFilter]:
    names = draw(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=2))
    operator = draw(st.sampled_from(Operator))
    written = ".".join(draw(ways(name, r'[^".=][^.=]*')) for name in names)
    if operator is Operator.IN:
        texts = draw(st.lists(st.text(max_size=9), min_size=1, max_size=4))
        listed = ",".join(draw(ways(text, r'([^",)][^,)]*)?')) for text in texts)
        return f"{written}=in.({listed})", ParsedFilter(tuple(names), operator, tuple(texts))
    text = draw(st.sampled_from(["null", "not_null"]) if operator is Operator.IS else st.text())
    value = draw(ways(text, r'([^"].*)?'))
    return f"{written}={operator.value}.{value}", ParsedFilter(tuple(names), operator, (text,))


@given(rendered())
def test_what_is_rendered_is_parsed_again(pair: tuple[str, ParsedFilter]) -> None:
    text, parsed = pair
    assert parse_filter(text) == parsed


@settings(max_examples=500)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet='ab=.,()"\\eqin\x00\ud800é'),
        st.text(alphabet='",()\\x').map(lambda rest: f"a=in.{rest}"),
        st.text(alphabet='".\\x').map(lambda rest: f"a=eq.{rest}"),
    )
)
def test_no_text_raises_anything_else(text: str) -> None:
    for parse in (parse_filter, parse_columns):
        with suppress(BadFilter):
            parse(text)


# What a value meets, judged by SQLite.

TYPES = ["INTEGER", "REAL", "NUMERIC", "TEXT", "BLOB", "", "VARCHAR(9)", "DATE", "TEXT COLLATE NOCASE"]

_ODD_NUMBERS = [
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "9007199254740993", "1.0",
    "-0.0", "1e3", "1e999", "-1e999", ".5", "5.", "+7", "0x10", "1e", "1_0", "Infinity", "nan", "--1",
    " 7 ", "7 7", "\t7\n", "\xa07", "\x1c7", "7\x00", "\N{ARABIC-INDIC DIGIT THREE}",
]  # fmt: skip
# Literals are compared as SQLite reads them, and it reads about 17 digits of a real.
_numbers = st.one_of(
    st.integers(min_value=-(2**70), max_value=2**70).map(str),
    st.sampled_from(_ODD_NUMBERS),
    st.floats(min_value=-1e12, max_value=1e12).map(lambda f: f"{f:.6f}"),
)
_texts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.text(alphabet="aAbB*.[]?%_^-é\x00\n\N{GRINNING FACE}\ufffd", max_size=6),
)
_written = st.one_of(_numbers, _texts)
_values: st.SearchStrategy[SqliteValue] = st.one_of(
    st.none(),
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    st.integers(min_value=-9, max_value=9),
    st.sampled_from([2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0, 7, 3]),
    st.sampled_from([2.0**53, 2.0**63, -0.0, 0.0, math.inf, -math.inf, 5e-324, 1000.0, 7.0]),
    st.floats(allow_nan=False),
    _written,
    st.binary(max_size=4),
    st.sampled_from([b"\xff", b"a\xffb", b"\xed\xa0\x80", b"\xc0\x80"]).map(InvalidText),
)


@pytest.fixture(scope="module")
def sqlite() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for number, type in enumerate(TYPES):
            db.execute(f"CREATE TABLE t{number}(id INTEGER PRIMARY KEY, v {type})")
        yield db


class _Stored:
    """Values as a column of some type holds them, and what SQLite says of them."""

    def __init__(self, db: sqlite3.Connection, type: str, values: Sequence[SqliteValue]) -> None:
        self._db = db
        self._table = f"t{TYPES.index(type)}"
        self.column = ColumnInfo("v", type, affinity_of(type))
        db.execute(f"DELETE FROM {self._table}")
        for value in values:
            mark = "CAST(? AS TEXT)" if isinstance(value, InvalidText) else "?"
            db.execute(f"INSERT INTO {self._table}(v) VALUES ({mark})", (value,))

    def values(self, where: str = "", parameters: Sequence[Any] = ()) -> dict[int, SqliteValue]:
        # Bytes tell text from blobs only with the storage class.
        rows = self._db.execute(
            "SELECT id, typeof(v), CASE typeof(v) WHEN 'text' THEN CAST(v AS BLOB) ELSE v END"
            f" FROM {self._table} {where}",
            parameters,
        )
        return {id: _text(value) if kind == "text" else value for id, kind, value in rows}

    def meeting(self, operator: Operator, texts: Sequence[str]) -> set[int]:
        """The rows that SQLite says meet the condition."""
        match operator:
            case Operator.IS:
                return set(self.values(f"WHERE v IS {texts[0].replace('_', ' ')}"))
            case Operator.IN:
                marks = " OR ".join("v = ? COLLATE BINARY" for _ in texts)
                return set(self.values(f"WHERE {marks}".replace("v =", "v COLLATE BINARY ="), texts))
            case Operator.LIKE:
                # GLOB has the same star; the other signs of it are taken literally.
                pattern = re.sub(r"[\[?]", r"[\g<0>]", texts[0])
                return set(self.values("WHERE typeof(v) = 'text' AND v GLOB ?", (pattern,)))
        return set(self.values(f"WHERE v COLLATE BINARY {COMPARING[operator]} ?", texts))


def _text(data: bytes) -> SqliteValue:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return InvalidText(data)


def _is_broken(value: SqliteValue) -> bool:
    return isinstance(value, bytes) and isinstance(_text(bytes(value)), InvalidText)


@st.composite
def _literals(draw: st.DrawFn, values: Sequence[SqliteValue]) -> tuple[Operator, tuple[str, ...]]:
    operator = draw(st.sampled_from(Operator))
    if operator is Operator.IS:
        return operator, (draw(st.sampled_from(["null", "not_null"])),)
    # What is compared should be equal now and then.
    near = [str(value) for value in values if isinstance(value, (int, str))]
    written = st.one_of(_written, st.sampled_from(near)) if near else _written
    if operator is Operator.IN:
        return operator, tuple(draw(st.lists(written, min_size=1, max_size=3)))
    text = draw(written)
    if operator is Operator.LIKE:
        # GLOB ends a pattern at a NUL.
        text = text.replace("\x00", "")
    return operator, (text,)


@settings(max_examples=1_500, deadline=None)
@given(st.data(), st.sampled_from(TYPES), st.lists(_values, min_size=1, max_size=6))
def test_a_value_meets_what_sqlite_says_it_meets(
    sqlite: sqlite3.Connection, data: st.DataObject, type: str, values: list[SqliteValue]
) -> None:
    operator, texts = data.draw(_literals(values))
    if operator is Operator.LIKE:
        values = [each.replace("\x00", "") if isinstance(each, str) else each for each in values]
        # GLOB reads bytes that are no UTF-8 as U+FFFD; they are like nothing here.
        values = [each for each in values if not _is_broken(each)] or [""]
    stored = _Stored(sqlite, type, values)
    condition = Condition("t", "v", operator, texts)
    test = make_test(condition, stored.column.literal)
    kept = {id for id, value in stored.values().items() if test(value)}
    assert kept == stored.meeting(operator, texts), (stored.values(), condition)
    # What SQL leaves out must be nothing that the test keeps.
    narrowed = narrow([(condition, literals(condition, stored.column.literal))], quote)
    assert kept <= set(stored.values(narrowed.sql, narrowed.values))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(TYPES), st.lists(_values, min_size=1, max_size=6))
def test_several_conditions_narrow_to_no_less_than_all_of_them_keep(
    sqlite: sqlite3.Connection, data: st.DataObject, type: str, values: list[SqliteValue]
) -> None:
    stored = _Stored(sqlite, type, values)
    drawn = data.draw(st.lists(_literals(values), min_size=2, max_size=3))
    conditions = [Condition("t", "v", operator, texts) for operator, texts in drawn]
    convert = stored.column.literal
    tests = [make_test(condition, convert) for condition in conditions]
    narrowed = narrow([(each, literals(each, convert)) for each in conditions], quote)
    kept = {id for id, value in stored.values().items() if all(test(value) for test in tests)}
    assert kept <= set(stored.values(narrowed.sql, narrowed.values))


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("operator", Operator)
def test_narrowing_in_utf_16_leaves_out_nothing_that_is_kept(encoding: str, operator: Operator) -> None:
    """There SQLite orders texts by other bytes than the contract does."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute(f"PRAGMA encoding = '{encoding}'")
        db.execute("CREATE TABLE t(v TEXT)")
        db.executemany(
            "INSERT INTO t VALUES (?)", [("\ue000",), ("\N{GRINNING FACE}",), ("a",), (None,)]
        )
        column = ColumnInfo("v", "TEXT", Affinity.TEXT)
        texts = ("not_null",) if operator is Operator.IS else ("\N{GRINNING FACE}",)
        condition = Condition("t", "v", operator, texts)
        narrowed = narrow([(condition, literals(condition, column.literal))], quote)
        test = make_test(condition, column.literal)
        left = {value for (value,) in db.execute(f"SELECT v FROM t {narrowed.sql}", narrowed.values)}
        kept = {value for (value,) in db.execute("SELECT v FROM t") if test(value)}
        assert kept <= left


@given(st.text(alphabet="ab*", max_size=8), st.text(alphabet="abc", max_size=8))
@example("a*b", "ab")
@example("*", "")
def test_like_has_stars_for_any_characters(pattern: str, text: str) -> None:
    test = make_test(Condition("t", "v", Operator.LIKE, (pattern,)), str)
    expected = re.fullmatch(pattern.replace("*", ".*"), text, re.DOTALL) is not None
    assert test(text) is expected
    assert not test(None)


def test_a_pattern_of_many_stars_costs_no_more_than_its_text_is_long() -> None:
    """Everybody may send one, and it is looked at for each change on the loop."""
    test = make_test(Condition("t", "v", Operator.LIKE, ("*a" * 1_000 + "*b",)), str)
    assert not test("a" * 20_000)
    assert test("a" * 20_000 + "b")
