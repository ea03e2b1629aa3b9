"""Finding the outbox and its sequence in pages of the -wal: the parser on its own. Pure."""

from __future__ import annotations

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdchub.capture.commits import (
    Wal,
    last_outbox_lsn,
    outbox_sequence,
    parse_header,
    parse_varint,
)
from cdchub.capture.triggers import OUTBOX


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\x00", 0),
        (b"\x7f", 127),
        (b"\x81\x00", 128),
        (b"\xff\x7f", 16383),
        (b"\x81\x80\x00", 16384),
        (b"\xff" * 7 + b"\x7f", 2**56 - 1),
    ],
)
def test_varints(data: bytes, value: int) -> None:
    assert parse_varint(data) == value


def header(magic: int = 0x377F0682, version: int = 3007000, page: int = 4096) -> bytes:
    numbers = (magic, version, page, 7)
    return b"".join(n.to_bytes(4, "big") for n in numbers) + b"saltSALT" + bytes(8)


@pytest.mark.parametrize(
    ("data", "wal"),
    [
        (header(), Wal(4096, int.from_bytes(b"saltSALT", "big"))),
        (header(magic=0x377F0683, page=512), Wal(512, int.from_bytes(b"saltSALT", "big"))),
        (header(page=65536), Wal(65536, int.from_bytes(b"saltSALT", "big"))),
        (header(magic=0x377F0684), None),
        (header(version=3007001), None),
        (header(page=1), None),
        (header(page=4095), None),
        (header()[:31], None),
        (b"", None),
    ],
)
def test_headers(data: bytes, wal: Wal | None) -> None:
    assert parse_header(data) == wal


def page_of(*cells: bytes, deleted: bytes = b"", size: int = 512) -> tuple[bytes, int]:
    """A table leaf with these cells, behind a frame's header; `deleted` has no pointer."""
    body, pointers, at = bytearray(size), [], size
    for cell in (*cells, deleted):
        at -= len(cell)
        body[at : at + len(cell)] = cell
        pointers.append(at)
    body[0], body[3:5] = 0x0D, len(cells).to_bytes(2, "big")
    for place, pointer in enumerate(pointers[: len(cells)]):
        body[8 + 2 * place : 10 + 2 * place] = pointer.to_bytes(2, "big")
    return b"\xaa" * 24 + bytes(body), len(cells)


def sequence_cell(name: bytes, type: int, value: bytes, rowid: bytes = b"\x01") -> bytes:
    record = bytes((3, 13 + 2 * len(name), type)) + name + value
    return bytes((len(record),)) + rowid + record


NAME = OUTBOX.encode()


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        ([sequence_cell(NAME, 1, b"\x05")], 5),
        ([sequence_cell(NAME, 2, b"\x01\x00")], 256),
        ([sequence_cell(NAME, 5, bytes(5) + b"\x09")], 9),
        ([sequence_cell(NAME, 6, bytes(6) + b"\x01\x00")], 256),
        ([sequence_cell(NAME, 8, b"")], 0),
        ([sequence_cell(NAME, 9, b"")], 1),
        ([sequence_cell(NAME, 1, b"\x05", rowid=b"\x81\x80\x00")], 5),
        ([sequence_cell(b"other", 1, b"\x07"), sequence_cell(NAME, 1, b"\x05")], 5),
        ([sequence_cell(NAME + b"2", 1, b"\x07")], None),
        ([sequence_cell(b"x" + NAME, 1, b"\x07")], None),
        ([sequence_cell(NAME, 7, bytes(8))], None),
        ([], None),
        ([sequence_cell("_cdchub_outbox".encode("utf-16-le"), 1, b"\x05")], 5),
        ([sequence_cell("_cdchub_outbox".encode("utf-16-be"), 1, b"\x05")], 5),
    ],
)
def test_the_outboxs_row_of_sqlite_sequence(cells: list[bytes], value: int | None) -> None:
    data, count = page_of(*cells)
    assert outbox_sequence(data, len(data), count, 512) == value
    # What was deleted, by update or drop, is not read though it is still there.
    data, count = page_of(*cells, deleted=sequence_cell(NAME, 1, b"\x63"))
    assert outbox_sequence(data, len(data), count, 512) == value


def outbox_cell(lsn: int, types: bytes, body: bytes) -> bytes:
    record = bytes((1 + len(types),)) + types + body
    return bytes((len(record), lsn)) + record


ROW = bytes((0, 1, 15, 1, 5, 6))


@pytest.mark.parametrize(
    ("types", "body", "lsn"),
    [
        (ROW, b"\x01c\x09" + bytes(14), 77),
        (bytes((0, 9, 15, 0, 5, 6)), b"b" + bytes(14), 77),
        (bytes((0, 9, 17, 0, 5, 6)), b"c\x00" + bytes(14), 77),
        (bytes((0, 9, 17, 0, 5, 6)), b"\x00c" + bytes(14), 77),
        (ROW + bytes(30), b"\x01c\x09" + bytes(14), 77),
        (ROW, b"\x01x\x09" + bytes(14), 0),
        (bytes((1, 1, 15, 1, 5, 6)), b"\x01\x01c" + bytes(15), 0),
        (bytes((0, 1, 19, 1, 5, 6)), b"\x01cud\x01" + bytes(14), 0),
        (bytes((0, 1, 15, 1, 7, 6)), b"\x01c\x09" + bytes(16), 0),
        (b"\x00\x01\x0f", b"\x01c", 0),
    ],
)
def test_a_row_that_looks_like_the_outboxs(types: bytes, body: bytes, lsn: int) -> None:
    data, count = page_of(outbox_cell(76, ROW, b"\x01c" + bytes(15)), outbox_cell(77, types, body))
    assert last_outbox_lsn(data, 24, count, 512) == lsn


@given(st.binary(min_size=512, max_size=512), st.integers(0, 65535))
def test_any_bytes_are_read_without_a_fault(page: bytes, cells: int) -> None:
    for data in (b"\xff" * 24 + page, b"\xff" * 24 + page + NAME):
        last_outbox_lsn(data, 24, cells, 512)
        outbox_sequence(data, 24 + 512, cells, 512)


@settings(max_examples=40, deadline=None)
@given(
    seqs=st.lists(st.integers(0, 2**62), min_size=1, max_size=4),
    others=st.integers(0, 8),
    encoding=st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"]),
)
def test_pages_that_sqlite_made(seqs: list[int], others: int, encoding: str) -> None:
    db = apsw.Connection(":memory:")
    db.execute(f"PRAGMA encoding = '{encoding}'; PRAGMA page_size = 1024")
    db.execute("CREATE TABLE a(i INTEGER PRIMARY KEY AUTOINCREMENT)")
    for other in range(others):
        db.execute("INSERT INTO sqlite_sequence VALUES(?, ?)", (f"{OUTBOX}{other}", other))
    for seq in seqs:
        db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (OUTBOX,))
        db.execute("INSERT INTO sqlite_sequence VALUES(?, ?)", (OUTBOX, seq // 2))
        db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (seq, OUTBOX))
    root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_sequence'").get
    size = db.pragma("page_size")
    start = (root - 1) * size
    page = db.serialize("main")[start : start + size]
    assert outbox_sequence(page, size, int.from_bytes(page[3:5], "big"), size) == seqs[-1]
    db.close()
