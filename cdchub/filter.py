"""Filters: `column=op.value`, parsed and evaluated. Pure, and the one evaluator of snapshot, stream
and log alike (INTERFACE §3); what SQL narrows is looked at here again.

Values compare as SQLite compares them with BINARY collation: NULL equals nothing, numbers by value
and below every text, texts by their UTF-8 bytes and below every blob (sqlite.org/datatype3.html §4.1).
The notation is PostgREST's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from cdchub.change import InvalidText, SqliteValue
from cdchub.errors import BadFilter


class Operator(Enum):
    EQ = "eq"
    NEQ = "neq"
    LT = "lt"
    LTE = "lte"
    GT = "gt"
    GTE = "gte"
    IN = "in"
    LIKE = "like"
    IS = "is"


# Bounds of one filter: every subscriber can send one, and each change is compared with all of it.
_TEXT_CHARS_MAX = 8_000
_LIST_MAX = 500
_OPERATORS = {operator.value: operator for operator in Operator}
_IS = ("null", "not_null")


@dataclass(frozen=True, slots=True)
class Condition:
    """What a column of a table must hold. `texts` are the literals, as they were written."""

    table: str
    column: str
    operator: Operator
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParsedFilter:
    """A condition whose names are not looked up yet: `(column,)` or `(table, column)`."""

    names: tuple[str, ...]
    operator: Operator
    texts: tuple[str, ...]


Test = Callable[[SqliteValue], bool]


# Parsing.


def parse_filter(text: str) -> ParsedFilter:
    """`[table.]column=op.value`. Raises `BadFilter`, which points at the character."""
    if len(text) > _TEXT_CHARS_MAX:
        raise BadFilter(text[:80], _TEXT_CHARS_MAX, f"is longer than {_TEXT_CHARS_MAX} characters")
    names, at = _names(text)
    dot = text.find(".", at)
    name = text[at : dot if dot >= 0 else len(text)]
    operator = _OPERATORS.get(name)
    if operator is None or dot < 0:
        known = ", ".join(_OPERATORS)
        raise BadFilter(text, at, f"needs an operator and a dot here; operators are {known}")
    at = dot + 1
    if operator is Operator.IN:
        return ParsedFilter(names, operator, tuple(_list(text, at)))
    value, end = _quoted(text, at) if text.startswith('"', at) else (text[at:], len(text))
    if end != len(text):
        raise BadFilter(text, end, "goes on behind the closing quote")
    if operator is Operator.IS and value not in _IS:
        raise BadFilter(text, at, "is only compares with null or not_null")
    return ParsedFilter(names, operator, (value,))


def parse_columns(text: str) -> list[tuple[str, ...]]:
    """`column,table.column,"a name"`, each as its one or two names. Raises `BadFilter`."""
    found: list[tuple[str, ...]] = []
    at = 0
    while at <= len(text):
        names, at = _path(text, at, end=",")
        found.append(names)
        at += 1
    return found


def _names(text: str) -> tuple[tuple[str, ...], int]:
    """The names before the equals sign, and where the operator begins."""
    names, at = _path(text, 0, end="=")
    if at == len(text):
        raise BadFilter(text, at, "needs an equals sign here: column=op.value")
    return names, at + 1


def _path(text: str, at: int, *, end: str) -> tuple[tuple[str, ...], int]:
    """`column` or `table.column` up to `end` or the end of the text, and where that is."""
    names: list[str] = []
    while True:
        start = at
        if text.startswith('"', at):
            name, at = _quoted(text, at)
        else:
            at = _find(text, at, f".{end}")
            name = text[start:at]
        if not name:
            raise BadFilter(text, start, "needs the name of a column here")
        names.append(name)
        if at == len(text) or text[at] == end:
            return tuple(names), at
        if text[at] != "." or len(names) > 1:
            raise BadFilter(text, at, f"needs {end!r} here; names with dots or quotes go in quotes")
        at += 1


def _find(text: str, at: int, characters: str) -> int:
    """The place of the next of these characters, or of the text's end."""
    return min((i for c in characters if (i := text.find(c, at)) >= 0), default=len(text))


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The text between double quotes, a backslash before a quote or a backslash, and its end."""
    found: list[str] = []
    place = at + 1
    while place < len(text):
        if text[place] == '"':
            return "".join(found), place + 1
        if text[place] == "\\":
            place += 1
        found.append(text[place : place + 1])
        place += 1
    raise BadFilter(text, at, "opens a quote here that nothing closes")


def _list(text: str, at: int) -> Iterator[str]:
    if not text.startswith("(", at):
        raise BadFilter(text, at, "needs a list here: in.(a,b)")
    count = 0
    at += 1
    while True:
        if text.startswith('"', at):
            value, at = _quoted(text, at)
        else:
            start, at = at, _find(text, at, ",)")
            value = text[start:at]
        count += 1
        if count > _LIST_MAX:
            raise BadFilter(text, at, f"lists more than {_LIST_MAX} values")
        yield value
        if text.startswith(")", at):
            break
        if not text.startswith(",", at):
            raise BadFilter(text, at, "needs a comma or the closing parenthesis here")
        at += 1
    if at + 1 != len(text):
        raise BadFilter(text, at + 1, "goes on behind the closing parenthesis")


# Evaluating.


def literals(condition: Condition, convert: Callable[[str], SqliteValue]) -> tuple[SqliteValue, ...]:
    """The condition's literals as its column compares them."""
    return tuple(map(convert, condition.texts))


def make_test(condition: Condition, convert: Callable[[str], SqliteValue]) -> Test:
    """Whether a value meets the condition. `convert` gives a literal the column's affinity."""
    if condition.operator is Operator.IS:
        wants_null = condition.texts[0] == "null"
        return lambda value: (value is None) is wants_null
    if condition.operator is Operator.LIKE:
        return _like(condition.texts[0])
    values = literals(condition, convert)
    if condition.operator is Operator.IN:
        wanted = frozenset(values)
        return lambda value: value in wanted and not isinstance(value, bytes)
    (literal,) = values
    if condition.operator is Operator.EQ:
        return lambda value: value == literal
    if condition.operator is Operator.NEQ:
        return lambda value: value is not None and value != literal
    return _ordered(condition.operator, _rank(literal))


def _ordered(operator: Operator, than: tuple[int, object]) -> Test:
    compare: Callable[[tuple[int, object], tuple[int, object]], bool] = {
        Operator.LT: lambda a, b: a < b,
        Operator.LTE: lambda a, b: a <= b,
        Operator.GT: lambda a, b: a > b,
        Operator.GTE: lambda a, b: a >= b,
    }[operator]
    return lambda value: value is not None and compare(_rank(value), than)


def _rank(value: SqliteValue) -> tuple[int, object]:
    """Sorts as SQLite does: by storage class, then by value."""
    match value:
        case str() | InvalidText():
            return 2, _text_bytes(value)
        case bytes():
            return 3, value
    return 1, value


def _like(pattern: str) -> Test:
    """`*` stands for any characters; only texts are like anything."""
    first, *others = (_text_bytes(part) for part in pattern.split("*"))

    def test(value: SqliteValue) -> bool:
        if not isinstance(value, (str, InvalidText)):
            return False
        text = _text_bytes(value)
        if not others:
            return text == first
        *between, last = others
        end = len(text) - len(last)
        if not text.startswith(first) or not text.endswith(last) or end < len(first):
            return False
        # The first place of each part is as good as any: many stars cost no more than one.
        place = len(first)
        for part in between:
            place = text.find(part, place, end)
            if place < 0:
                return False
            place += len(part)
        return True

    return test


def _text_bytes(text: str | InvalidText) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)


# Narrowing.


@dataclass(frozen=True, slots=True)
class Narrow:
    """A WHERE clause that leaves out only rows which no evaluator would keep. Columns are quoted by
    `quote`, values bound."""

    sql: str = ""
    values: tuple[SqliteValue, ...] = ()


EVERYTHING = Narrow()


def narrow(
    conditions: Sequence[tuple[Condition, tuple[SqliteValue, ...]]], quote: Callable[[str], str]
) -> Narrow:
    """What SQL can leave out, of conditions and their literals: order between texts and `like` are the
    evaluator's, since a database in UTF-16 compares texts otherwise."""
    parts: list[str] = []
    bound: list[SqliteValue] = []
    for condition, values in conditions:
        column = f"{quote(condition.column)} COLLATE BINARY"
        match condition.operator:
            case Operator.IS:
                parts.append(f"{column} IS {'' if condition.texts[0] == 'null' else 'NOT '}NULL")
            case Operator.EQ | Operator.IN:
                parts.append(f"{column} IN ({', '.join('?' * len(values))})")
                bound += values
            case Operator.LT | Operator.LTE | Operator.GT | Operator.GTE if not isinstance(
                values[0], str
            ):
                parts.append(f"{column} {_SQL[condition.operator]} ?")
                bound += values
            case _:
                parts.append(f"{column} IS NOT NULL")
    return Narrow(f"WHERE {' AND '.join(parts)}" if parts else "", tuple(bound))


_SQL = {Operator.LT: "<", Operator.LTE: "<=", Operator.GT: ">", Operator.GTE: ">="}
