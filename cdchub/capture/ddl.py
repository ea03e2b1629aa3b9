"""What a CREATE statement says that no pragma tells, cut from its text. Pure.

SQLite has accepted the text already: only names, brackets, quotes and comments need to be understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from cdchub.catalog import fold_name

_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
        | --[^\n]*(?:\n|$) | /\*.*?(?:\*/|$) | [\w$\x80-\U0010ffff]+ | .""",
    re.VERBOSE | re.DOTALL,
)


def _tokens(sql: str) -> list[str]:
    """SQL in pieces, by the rules of its names (sqlite.org/tokenreq.html); comments are spaces."""
    return [" " if t.startswith(("--", "/*")) else t for t in _TOKEN.findall(sql)]


def _name_in(token: str) -> str:
    """What a token names, folded."""
    first = token[:1]
    if first in ('"', "`", "'"):
        return fold_name(token[1:-1].replace(2 * first, first))
    return fold_name(token[1:-1] if first == "[" else token)


def _lists(tokens: Sequence[str], start: int) -> tuple[list[list[str]], int]:
    """The items of a list in brackets that opens at `start`, and the place where it closes."""
    items: list[list[str]] = [[]]
    depth = 0
    for place in range(start, len(tokens)):
        token = tokens[place]
        depth += (token == "(") - (token == ")")
        if depth == 0:
            return items, place
        if depth == 1 and token == ",":
            items.append([])
        elif place > start:
            items[-1].append(token)
    return items, len(tokens) - 1


def names_in(texts: Sequence[str]) -> set[str]:
    """Everything that may be a name in these texts, folded; strings too."""
    return {_name_in(token) for text in texts for token in _tokens(text)}


def _definitions(sql: str) -> list[list[str]]:
    """The columns and constraints in a CREATE TABLE statement, as tokens."""
    tokens = _tokens(sql)
    return _lists(tokens, tokens.index("("))[0]


def _clauses(definition: Sequence[str], keyword: str) -> Iterator[tuple[str, int]]:
    """Where a column's definition has this keyword: the column, folded, and the place of what comes
    next."""
    places = [place for place, token in enumerate(definition) if not token.isspace()]
    depth = 0
    for place, following in pairwise(places):
        token = definition[place]
        depth += (token == "(") - (token == ")")
        if depth == 0 and token.lower() == keyword and place != places[0]:
            yield _name_in(definition[places[0]]), following


def parse_collations(sql: str) -> dict[str, str]:
    """The collations that a CREATE TABLE statement declares, by folded column name."""
    return {
        column: _name_in(definition[place])
        for definition in _definitions(sql)
        for column, place in _clauses(definition, "collate")
    }


def parse_generated(sql: str) -> dict[str, str]:
    """The expressions of a CREATE TABLE statement's generated columns, by folded column name."""
    found = {}
    for definition in _definitions(sql):
        for column, place in _clauses(definition, "as"):
            if definition[place] == "(":
                _, end = _lists(definition, place)
                found[column] = "".join(definition[place + 1 : end])
    return found


def parse_index(sql: str, table: str) -> tuple[list[str], str | None]:
    """The indexed terms and the WHERE text of a CREATE INDEX statement, as the user wrote them."""
    tokens = _tokens(sql)
    on = next(i for i, token in enumerate(tokens) if token.lower() == "on")
    terms, end = _lists(tokens, tokens.index("(", on))
    rest = tokens[end + 1 :]
    where = next((i for i, token in enumerate(rest) if token.lower() == "where"), None)
    predicate = None if where is None else _unqualified(rest[where + 1 :], table).rstrip(";")
    return ["".join(_unsorted(term)).strip() for term in terms], predicate


def _unsorted(term: Sequence[str]) -> Sequence[str]:
    """A term without its ASC or DESC."""
    last = next((i for i in reversed(range(len(term))) if not term[i].isspace()), 0)
    return term[:last] if term and term[last].lower() in ("asc", "desc") else term


def _unqualified(tokens: Sequence[str], table: str) -> str:
    """The text of a predicate, in which columns may be called by the table's name too: it is to be
    evaluated where the table has another one."""
    kept: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        gap = next((i for i, each in enumerate(rest) if not each.isspace()), None)
        if gap is not None and rest[gap] == "." and _name_in(token) == fold_name(table):
            del rest[: gap + 1]
        else:
            kept.append(token)
    return "".join(kept).strip()
