"""What the bytes of a stream say, and how far a follower has come by them; no socket in sight.

A piece of a stream becomes a few steps: a thousand changes in a row are one. A `Progress` walks along
them over all connections of its follower, and counts what the contract excludes.
"""

from __future__ import annotations

from typing import NamedTuple

from loadtest.row_writer import MARKER, STAMP_DIGITS


class Step(NamedTuple):
    """Something that a stream says: LSNs from `first` to `last`, so many rows, an event at an LSN."""

    kind: str
    first: int
    last: int


class Piece(NamedTuple):
    steps: list[Step]
    # The whole id of the last block that has one, for Last-Event-ID.
    last_id: bytes
    changes: int
    stamps_ns: list[int]


def parse(data: bytes) -> Piece:
    """Whole blocks, each ended by an empty line, as steps; neighbours of a kind become one step."""
    steps: list[Step] = []
    last_id, changes = b"", 0
    # The LSNs of changes, one after the other, that are no step yet.
    first, last, rows = 0, -1, 0
    for block in data.split(b"\n\n"):
        at = 0 if block.startswith(b"id: ") else block.find(b"\nid: ") + 1 or -1
        id_, _, rest = block[at + 4 :].partition(b"\n") if at >= 0 else (b"", b"", block)
        lsn = int(id_.rpartition(b":")[2]) if id_ else -1
        last_id = id_ or last_id
        if id_ and rest.startswith(b"data: "):
            changes += 1
            if lsn == last + 1 and last >= first:
                last = lsn
                continue
            if last >= first:
                steps.append(Step("changes", first, last))
            if rows:
                steps.append(Step("rows", rows, rows))
                rows = 0
            first = last = lsn
            continue
        if last >= first:
            steps.append(Step("changes", first, last))
            first, last = 0, -1
        if rest.startswith(b"data: "):
            rows += 1
            continue
        if rows:
            steps.append(Step("rows", rows, rows))
            rows = 0
        if rest.startswith(b"event: "):
            steps.append(Step(rest[7:].partition(b"\n")[0].decode(), lsn, lsn))
        elif id_:
            steps.append(Step("cursor", lsn, lsn))
    if rows:
        steps.append(Step("rows", rows, rows))
    stamps = data.split(MARKER)[1:]
    ends = [stamps[0], stamps[-1]] if len(stamps) > 1 else stamps
    return Piece(steps, last_id, changes, [int(end[:STAMP_DIGITS]) for end in ends])


class Progress:
    """Where one follower is, over all its connections, and whatever was wrong on the way."""

    __slots__ = (
        "caughtUp",
        "changes",
        "cuts",
        "dense",
        "disorder",
        "gaps",
        "last_id",
        "lsn",
        "refused",
        "repeats",
        "resets",
        "rows",
        "snapshots",
        "unexpected",
    )

    def __init__(self, *, dense: bool) -> None:
        # Whether it must see every LSN: one table in the database, and no filter.
        self.dense = dense
        self.last_id = b""
        self.lsn = -1
        self.changes = self.gaps = self.repeats = self.disorder = 0
        self.resets = self.snapshots = self.rows = self.caughtUp = 0
        self.cuts = self.refused = self.unexpected = 0

    def follow(self, piece: Piece) -> None:
        self.changes += piece.changes
        self.last_id = piece.last_id or self.last_id
        for step in piece.steps:
            match step.kind:
                case "changes":
                    self._arrive(step)
                case "rows":
                    self.rows += step.last
                case "caught-up" | "cursor":
                    # It promises that everything up to here was written before.
                    if self.dense and self.lsn >= 0 and step.last != self.lsn:
                        self.gaps += step.last > self.lsn
                        self.disorder += step.last < self.lsn
                    self.caughtUp += step.kind == "caught-up"
                    self.lsn = step.last
                case "snapshot":
                    self.snapshots += 1
                    self.lsn = -1
                case "reset":
                    self.resets += 1
                    self.lsn = step.last
                case "refused":
                    self.refused += 1
                case _:
                    # `error`, or an event that this program has never heard of.
                    self.unexpected += 1

    def _arrive(self, step: Step) -> None:
        if step.first <= self.lsn:
            self.repeats += 1
        elif self.dense and self.lsn >= 0 and step.first != self.lsn + 1:
            self.gaps += 1
        self.lsn = step.last
