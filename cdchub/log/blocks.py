"""Entries packed into blocks, and back. Pure.

A block is what one append brought, cut at a bound: its entries' JSON as lines, and beside it one
small index with what is needed to route them. So a thousand changes cost one row of SQLite's, their
JSON takes no more room than its bytes, and a page is read without decoding a single change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from cdchub.change import ChangeType, Entry, SqliteValue

# A block is read whole, so its bounds are those of a page that catching up sends in one write.
ENTRIES_MAX = 500
BYTES_MAX = 256 * 2**10

# Epoch number and LSN as one integer key: sorted as they were lived, and SQLite's own rowid.
_LSN_BITS = 48
LSN_MAX = 2**_LSN_BITS - 1


def key_of(epoch_number: int, lsn: int) -> int:
    """The key of a place in the log. 48 bits of LSN last for 59 years of 150,000 changes a second."""
    return epoch_number << _LSN_BITS | lsn


class _Index(msgspec.Struct, array_like=True):
    """By entry: its type's number and its table, as a place in `names`; rooms only where one is."""

    types: bytes
    tables: bytes | list[int]
    # Values as SQLite has them; msgspec has no type for text or bytes.
    rooms_old: list[Any] | None
    rooms_new: list[Any] | None


class Block(msgspec.Struct):
    """One block. `tables` are the log's table ids in it, `breaks` those of them with a break, and
    `rooms` the (table id, room) pairs."""

    first_lsn: int
    last_lsn: int
    tables: frozenset[int]
    breaks: frozenset[int]
    rooms: frozenset[tuple[int, SqliteValue]]
    index: bytes
    data: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Index)
_TYPES = {kind.value: kind for kind in ChangeType}


def pack(entries: Sequence[Entry], table_ids: dict[str, int]) -> Iterator[Block]:
    """The entries as blocks, in order. Every table must have an id."""
    start = size = 0
    for place, entry in enumerate(entries):
        size += len(entry.data)
        if place + 1 - start >= ENTRIES_MAX or size >= BYTES_MAX or place + 1 == len(entries):
            yield _pack(entries[start : place + 1], table_ids)
            start, size = place + 1, 0


def _pack(entries: Sequence[Entry], table_ids: dict[str, int]) -> Block:
    ids = [table_ids[entry.table] for entry in entries]
    tables = frozenset(ids)
    types = bytes([entry.type.value for entry in entries])
    breaks: frozenset[int] = frozenset()
    if ChangeType.BREAK.value in types:
        breaks = frozenset(table_ids[e.table] for e in entries if e.type is ChangeType.BREAK)
    olds = [_storable(entry.room_old) for entry in entries]
    news = [_storable(entry.room_new) for entry in entries]
    rooms: frozenset[tuple[int, SqliteValue]] = frozenset()
    has_rooms = any(room is not None for room in olds) or any(room is not None for room in news)
    if has_rooms:
        pairs = [*zip(ids, olds, strict=True), *zip(ids, news, strict=True)]
        rooms = frozenset((table, room) for table, room in pairs if room is not None)
    index = _Index(
        types,
        bytes(ids) if max(tables) < 256 else ids,
        olds if has_rooms else None,
        news if has_rooms else None,
    )
    return Block(
        entries[0].lsn,
        entries[-1].lsn,
        tables,
        breaks,
        rooms,
        _encoder.encode(index),
        b"\n".join([entry.data for entry in entries]),
    )


def _storable(room: SqliteValue) -> SqliteValue:
    return bytes(room) if isinstance(room, bytes) else room


def unpack(first_lsn: int, index: bytes, data: bytes, names: dict[int, str]) -> list[Entry]:
    """The entries of a block. `names` are the tables by id."""
    told = _decoder.decode(index)
    lines = data.split(b"\n")
    nothing: list[SqliteValue] = [None] * len(lines)
    return [
        Entry(lsn, _TYPES[kind], names[table], room_old, room_new, line)
        for lsn, (kind, table, room_old, room_new, line) in enumerate(
            zip(
                told.types,
                told.tables,
                told.rooms_old or nothing,
                told.rooms_new or nothing,
                lines,
                strict=True,
            ),
            first_lsn,
        )
    ]


def routes(index: bytes) -> tuple[frozenset[int], frozenset[tuple[int, SqliteValue]]]:
    """The table ids and the (table id, room) pairs in a block's index, as `pack` gave them."""
    told = _decoder.decode(index)
    ids = list(told.tables)
    pairs = [
        *zip(ids, told.rooms_old or (), strict=False),
        *zip(ids, told.rooms_new or (), strict=False),
    ]
    return frozenset(ids), frozenset((table, room) for table, room in pairs if room is not None)
