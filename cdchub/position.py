"""Where a reader stands: LSN, epoch and position, and the `since` that a request carries.

A position is `<epoch>:<lsn>` and means "I have everything up to and including this LSN". LSNs of
different epochs don't compare: the epoch names one unbroken history, and a restore starts another.
This module does *not* know whether a position can still be served; `fanout.seam` decides that.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import NewType

from cdchub.errors import BadPosition

Lsn = NewType("Lsn", int)
Epoch = NewType("Epoch", str)

EPOCH_PATTERN = re.compile(r"[A-Za-z0-9_-]{6,32}")
# SQLite's rowids end at 2^63 - 1 (sqlite.org/autoinc.html), so no LSN is larger.
LSN_MAX = 2**63 - 1
_LSN_DIGITS_MAX = len(str(LSN_MAX))


@dataclass(frozen=True, slots=True)
class Position:
    """A place in one history: everything up to and including `lsn` of `epoch` is known."""

    epoch: Epoch
    lsn: Lsn

    def __str__(self) -> str:
        return f"{self.epoch}:{self.lsn}"


@dataclass(frozen=True, slots=True)
class Now:
    """`since=now`: only what is committed from here on."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """`since=beginning`: the oldest retained change of the present epoch."""


@dataclass(frozen=True, slots=True)
class AtLsn:
    """`since=<lsn>`: a bare LSN, of the present epoch."""

    lsn: Lsn


Since = Now | Beginning | AtLsn | Position


def new_epoch() -> Epoch:
    """A fresh epoch name, 48 random bits: enough that two lives of one database never meet. It does
    not begin like an option on a command line."""
    while (name := secrets.token_urlsafe(6)).startswith("-"):
        pass
    return Epoch(name)


def parse_lsn(text: str) -> Lsn | None:
    """An LSN from its decimal digits, or None where `text` is anything else or too large."""
    if not (text.isascii() and text.isdigit()) or len(text) > _LSN_DIGITS_MAX:
        return None
    number = int(text)
    return Lsn(number) if number <= LSN_MAX else None


def parse_position(text: str) -> Position | None:
    """`<epoch>:<lsn>`, or None where `text` is anything else."""
    epoch, colon, digits = text.rpartition(":")
    lsn = parse_lsn(digits)
    if not colon or lsn is None or EPOCH_PATTERN.fullmatch(epoch) is None:
        return None
    return Position(Epoch(epoch), lsn)


def parse_since(text: str) -> Since:
    """The `since` (or `startLSN`) parameter. A bare `0` means `beginning`.

    Raises `BadPosition` (400 `bad_position`) for everything that is none of the four forms.
    """
    if text == "now":
        return Now()
    if text == "beginning":
        return Beginning()
    if (lsn := parse_lsn(text)) is not None:
        return AtLsn(lsn) if lsn else Beginning()
    if (position := parse_position(text)) is not None:
        return position
    raise BadPosition(text)
