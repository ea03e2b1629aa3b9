"""A change in one line that a person reads at a glance. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

_COLOURS = {"INSERT": "32", "SNAPSHOT": "36", "UPDATE": "33", "DELETE": "31"}
_VALUE_CHARS_MAX = 60


def pretty(data: bytes, *, colour: bool) -> str:
    """`12:00:01.123     1042  UPDATE    todos  id=a1  completed: 0 → 1`, in local time."""
    change = msgspec.json.decode(data)
    seconds, milliseconds = divmod(change["timestamp"], 1000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    kind = f"{change['type']:<8}"
    if colour:
        kind = f"\x1b[{_COLOURS[change['type']]}m{kind}\x1b[0m"
    key = " ".join(f"{name}={_value(value)}" for name, value in change["key"].items())
    what = _difference(change["oldValue"] or {}, change["newValue"] or {}, set(change["key"]))
    head = f"{clock}.{milliseconds:03d} {change['lsn']:>8}  {kind}"
    return f"{head}  {_clean(change['table'])}  {key}  {what}".rstrip()


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], key: set[str]) -> str:
    if not new:
        return ""
    if not old:
        return "  ".join(f"{_clean(n)}: {_value(v)}" for n, v in new.items() if n not in key)
    return "  ".join(
        f"{_clean(name)}: {_value(old.get(name))} → {_value(value)}"
        for name, value in new.items()
        if _differs(old.get(name), value)
    )


def _differs(old: object, new: object) -> bool:
    # 1 and 1.0 are equal in Python, but a change in SQLite.
    return type(old) is not type(new) or old != new


def _value(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = _clean(text)
    return text if len(text) <= _VALUE_CHARS_MAX else text[: _VALUE_CHARS_MAX - 1] + "…"


def _clean(text: str) -> str:
    """Without control characters: data must not move the cursor of a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
