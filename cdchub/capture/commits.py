"""Where each writer's commit ended, as LSNs of the outbox, read from the source's `-wal`.

Two pages of every commit that writes to the outbox tell where it ended, and only where both say the
same is it believed: the outbox's last leaf, whose last rowid is the last LSN (found by what a row of
the outbox looks like, since its page number changes), and the leaf of `sqlite_sequence` with the
outbox's row. One alone would not do. `INSERT OR FAIL` that fails midway keeps its rows and leaves the
sequence behind, so that the next commit would seem to have written them; and a user's table may look
like the outbox. Where the two differ there is no answer, and a snapshot is one commit to the caller.

Parsing is pure (bytes in, values out); `CommitEnds` reads the file. Format: sqlite.org/fileformat2.html
§1.6 (b-tree pages), §2.1 (records), §4.1 (WAL file). Checksums are not verified: they tell a
recovery which frames are whole, but what a reader sees was written before the writer published it in
the `-shm` (sqlite.org/walformat.html §2), and only frames up to the commit of a visible LSN are
believed. What follows them may be torn, or rolled back and about to be overwritten; but LSNs there
are above every visible one, so no commit of theirs is taken for one that was asked for.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cdchub.capture.triggers import OUTBOX

# From an offset of the -wal this many bytes, or as many as there are.
Read = Callable[[int, int], bytes]

_HEADER = struct.Struct(">III4xQ8x")
_HEADER_BYTES = _HEADER.size
_FRAME_HEADER_BYTES = 24
_MAGICS, _VERSION = (0x377F0682, 0x377F0683), 3007000
_PAGE_SIZES = frozenset(1 << n for n in range(9, 17))
_TABLE_INTERIOR, _TABLE_LEAF = 0x05, 0x0D
_LEAF_HEADER_BYTES = 8

# A first look is for one small commit; one that does not find its end reads on in larger pieces.
_READ_BYTES_MIN, _READ_BYTES_MAX = 32 << 10, 1 << 20

# Serial types of integers and NULL, and how many bytes their values take (§2.1).
_INTEGER_BYTES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}
_VARINT = rb"[\x80-\xff]{0,8}[\x00-\x7f]"
_INTEGER = rb"[\x00-\x06\x08\x09]"
# A cell that starts as every row of the outbox does: length, rowid, length of the record's header,
# and the types of lsn (NULL, since it is the rowid), tbl, op (one character, in UTF-8 or UTF-16),
# rid, ts and nonce. These bytes are never on an overflow page: at least 35 of a record stay (§1.6).
_OUTBOX_CELL = re.compile(
    rb"%b(%b)(%b)\x00(%b)[\x0f\x11]%b{3}" % (_VARINT, _VARINT, _VARINT, _INTEGER, _INTEGER),
    re.DOTALL,
)
# So is the value of op, if no more than this many bytes and an integer stand before it.
_SHORT_HEADER_BYTES_MAX = 25
_OPS = frozenset((b"c", b"u", b"d", b"b"))

# The outbox's name as a database of each encoding has it, with the first bytes of its record in
# sqlite_sequence: the header's length, and the type of text of that length.
_NAMES = tuple(
    (name, bytes((3, 13 + 2 * len(name))))
    for name in (OUTBOX.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be"))
)


class Wal(NamedTuple):
    """What the -wal's header says. A WAL that was restarted has other salts."""

    page_bytes: int
    salts: int


@functools.cache
def _frame(page_bytes: int) -> struct.Struct:
    """Page number, pages after a commit (else 0), salts; of the page type, cells, last child."""
    return struct.Struct(f">IIQ8xB2xH3xI{page_bytes - 12}x")


def parse_header(header: bytes) -> Wal | None:
    """None where no WAL begins: the file is empty, or this is none that we know."""
    if len(header) < _HEADER_BYTES:
        return None
    magic, version, page_bytes, salts = _HEADER.unpack_from(header)
    if magic not in _MAGICS or version != _VERSION or page_bytes not in _PAGE_SIZES:
        return None
    return Wal(page_bytes, salts)


def parse_varint(data: bytes) -> int:
    """A varint of at most 8 bytes, which is all that an LSN or a length will ever need."""
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
    return value


def last_outbox_lsn(data: bytes, page: int, cells: int, page_bytes: int) -> int:
    """The last rowid of the leaf at `page` if that row looks like one of the outbox, or 0."""
    pointer = page + _LEAF_HEADER_BYTES + 2 * cells - 2
    if not cells or pointer + 2 > page + page_bytes:
        return 0
    found = _OUTBOX_CELL.match(data, page + (data[pointer] << 8 | data[pointer + 1]))
    if found is None:
        return 0
    rowid, header, table = found.groups()
    if header[0] <= _SHORT_HEADER_BYTES_MAX:
        op = found.start(2) + header[0] + _INTEGER_BYTES[table[0]]
        if data[op : op + 2].lstrip(b"\x00")[:1] not in _OPS:
            return 0
    return parse_varint(rowid)


def outbox_sequence(data: bytes, end: int, cells: int, page_bytes: int) -> int | None:
    """The outbox's `seq` in the leaf of sqlite_sequence that ends at `end`; None without that row."""
    page = end - page_bytes
    for name, head in _NAMES:
        at = data.find(name, page, end)
        while at >= 0:
            size = _INTEGER_BYTES.get(data[at - 1]) if data[at - 3 : at - 1] == head else None
            if size is not None and _is_cell(data, page, cells, at - 3, 3 + len(name) + size):
                value = int.from_bytes(data[at + len(name) : at + len(name) + size], "big", signed=True)
                # Types 8 and 9 are the numbers 0 and 1 themselves; type 0 is NULL, which is no LSN.
                return value if size else max(0, data[at - 1] - 8)
            at = data.find(name, at + 1, end)
    return None


def _is_cell(data: bytes, page: int, cells: int, record: int, record_bytes: int) -> bool:
    """Whether the record at `record` is a cell's: deleted ones may still lie in the page.

    Before it stand its length, in one byte, and the rowid in one to nine; a pointer leads there.
    """
    pointers = page + _LEAF_HEADER_BYTES
    for start in range(record - 2, max(pointers, record - 11), -1):
        if data[start] == record_bytes:
            pointer = (start - page).to_bytes(2, "big")
            at = data.find(pointer, pointers, pointers + 2 * cells)
            while at >= 0 and (at - pointers) % 2:
                at = data.find(pointer, at + 1, pointers + 2 * cells)
            if at >= 0:
                return True
    return False


class Commit(NamedTuple):
    """One transaction in the -wal, from `begin` to `end`, and what its pages say of the outbox.

    `lsns` has the last LSN of each leaf that looks like the outbox's, `children` the last child of
    each interior page, `sequence` what the page that was asked for holds (None: no such page or row).
    """

    begin: int
    end: int
    lsns: dict[int, int]
    children: set[int]
    sequence: int | None

    def unproved(self, last: int, head: int, tails: frozenset[int]) -> int:
        """The last LSN in (last, head] in what may be the outbox's last leaf; 0 if there is none.

        That leaf was in `tails` before, or it is new, and then its parent is here too. Any other is
        free: ROLLBACK TO leaves rows in pages that were free before (their content is not kept).
        """
        pages = self.children | tails if tails else self.lsns.keys()
        lsns = (lsn for page, lsn in self.lsns.items() if page in pages)
        return max((lsn for lsn in lsns if last < lsn <= head), default=0)

    def leaves(self, lsn: int) -> frozenset[int]:
        return frozenset(page for page, last in self.lsns.items() if last == lsn)


def commits(read: Read, wal: Wal, offset: int, *, page: int) -> Iterator[Commit]:
    """The transactions from `offset` on. If one wrote a page twice, the later frame holds."""
    (page_bytes, salts), frame, read_bytes = wal, _frame(wal.page_bytes), _READ_BYTES_MIN
    frame_bytes = frame.size
    lsns: dict[int, int] = {}
    children: set[int] = set()
    begin, sequence = offset, None
    while True:
        wanted = max(1, read_bytes // frame_bytes) * frame_bytes
        data = read(offset, wanted)
        whole = len(data) // frame_bytes * frame_bytes
        image = _FRAME_HEADER_BYTES
        frames = frame.iter_unpack(memoryview(data)[:whole])
        for number, commit, frame_salts, kind, cells, child in frames:
            if frame_salts != salts:
                return
            lsn = 0
            if kind == _TABLE_LEAF:
                lsn = last_outbox_lsn(data, image, cells, page_bytes)
                if number == page:
                    sequence = outbox_sequence(data, image + page_bytes, cells, page_bytes)
            elif kind == _TABLE_INTERIOR:
                children.add(child)
            if lsn:
                lsns[number] = lsn
            elif lsns:
                lsns.pop(number, None)
            image += frame_bytes
            if commit:
                end = offset + image - _FRAME_HEADER_BYTES
                yield Commit(begin, end, lsns, children, sequence)
                begin, sequence, lsns, children = end, None, {}, set()
        if whole < wanted:
            return
        offset += whole
        read_bytes = min(4 * read_bytes, _READ_BYTES_MAX)


def find_sequence(read: Read, wal: Wal, commit: Commit, last: int) -> tuple[int, int] | None:
    """The leaf in which this commit set the outbox's row of sqlite_sequence above `last`, and to what.

    For when it is not where it was: sqlite_sequence is more than one page if many tables have
    AUTOINCREMENT, and a VACUUM moves it. That the outbox has such a last LSN is proof enough.
    """
    found: dict[int, int] = {}
    frame = _frame(wal.page_bytes)
    for offset in range(commit.begin, commit.end, frame.size):
        data = read(offset, frame.size)
        if len(data) < frame.size:
            return None
        number, _, _, kind, cells, _ = frame.unpack(data)
        leaf = kind == _TABLE_LEAF
        found[number] = outbox_sequence(data, len(data), cells, wal.page_bytes) or 0 if leaf else 0
    proved = [item for item in found.items() if item[1] > last and commit.leaves(item[1])]
    return proved[0] if proved else None


@dataclass(slots=True)
class _Place:
    """How far one WAL was read: `offset` is after a commit that was visible, or at its first frame.

    `ends` has the ends above `floor` of the commits before `offset`. `floor` is None as long as
    commits of earlier WALs may have ended above any LSN we know.
    """

    wal: Wal
    offset: int = _HEADER_BYTES
    sequence: int | None = None
    floor: int | None = None
    ends: list[int] = field(default_factory=list)
    # The outbox's last leaf at `last`, or several pages that may be it; none if it is not known.
    tails: frozenset[int] = frozenset()

    @property
    def last(self) -> int:
        return self.ends[-1] if self.ends else self.floor or 0

    def forget(self) -> None:
        self.floor, self.sequence, self.tails = None, None, frozenset()
        self.ends.clear()

    def drop(self, after: int) -> None:
        """Nobody asks for ends up to `after` any more."""
        if self.floor is not None and self.floor < after:
            if self.last < after:
                self.tails = frozenset()
            self.floor = after
            del self.ends[: bisect_right(self.ends, after)]

    def add(self, lsn: int, after: int) -> None:
        """A commit ended at `lsn`. The first in a WAL only tells that all later ones are in it."""
        if self.floor is None:
            self.floor = max(lsn, after)
        else:
            self.ends.append(lsn)


class CommitEnds:
    """Where commits end, read from the -wal, and only from there.

    A descriptor of the database or its -shm would drop SQLite's locks when it is closed
    (sqlite.org/howtocorrupt.html §2.2); the -wal has none. Each call reads on where the last one
    found a visible commit, and reads no further than the commit of `head`.

    Where the WAL was restarted, replaced or truncated since the last call, or is looked at for the
    first time, the first end may stand for several commits. The answer is None where

    - the outbox's last leaf and sqlite_sequence differ (see above), or its LSNs went back;
    - it can't be read.

    Even then an only change is an end: nothing else lies between `after` and `head`.
    """

    def __init__(self, wal: Path) -> None:
        self._path = wal
        self._descriptor: int | None = None
        self._file = (0, 0)
        self._place: _Place | None = None
        self._page = 0

    def upto(self, *, after: int, head: int, root_page: int, held: bool = False) -> list[int] | None:
        """The LSNs in (after, head] at which a commit ended, ascending; the last one is `head`.

        `head` is the last LSN in a read transaction that began after the last call. `held` says that
        it is still open: then no commit after it can be in another WAL than the present one, so that
        the next call has an answer even if this one has none. `root_page` is sqlite_sequence's.
        """
        try:
            known = self._look()
            ends = self._ends(after, head, root_page, sure=known or held)
        except OSError:
            self.close()
            ends = None
        return [head] if head == after + 1 else ends

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._place = None

    def _look(self) -> bool:
        """Finds out which WAL there is. True if it is the one of the last call."""
        status = self._path.stat()
        if self._descriptor is not None and self._file != (status.st_dev, status.st_ino):
            self.close()
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._descriptor)
            self._file = (status.st_dev, status.st_ino)
        wal, place = parse_header(self._read(0, _HEADER_BYTES)), self._place
        if place is not None and place.wal == wal and status.st_size >= place.offset:
            return True
        self._place = None if wal is None else _Place(wal)
        return False

    def _read(self, offset: int, size: int) -> bytes:
        assert self._descriptor is not None
        return os.pread(self._descriptor, size, offset)

    def _ends(self, after: int, head: int, root_page: int, *, sure: bool) -> list[int] | None:
        place = self._place
        if place is None:
            return [] if after == head else None
        if place.last > head:
            # The source was restored: LSNs are given out a second time.
            place.forget()
        place.drop(after)
        whole, within = self._advance(place, after, head, root_page)
        if parse_header(self._read(0, _HEADER_BYTES)) != place.wal:
            # A restart writes the header first; so what we read may have been overwritten meanwhile.
            self._place = None
            return None
        if place.floor is None and sure and within:
            # The WAL was this one when the snapshot was taken, so all that follows it is in here.
            place.floor = head
        if after == head:
            return []
        if not whole or place.floor is None or place.last != head:
            return None
        ends = place.ends[bisect_right(place.ends, after) :]
        # What was committed up to the first end in this WAL may be several commits.
        return [place.floor, *ends] if after < place.floor else ends

    def _advance(self, place: _Place, after: int, head: int, root_page: int) -> tuple[bool, bool]:
        """Reads on to the commit of `head`. Is what was read coherent, and no LSN above `head`?"""
        whole, within, sequence, tails = True, True, place.sequence, place.tails
        offset: int | None = place.offset
        while offset is not None and (place.floor is None or place.last < head):
            start, offset = offset, None
            for commit in commits(self._read, place.wal, start, page=self._page or root_page):
                seen, last = commit.sequence, place.last
                newest = max(commit.lsns.values(), default=0)
                within = within and newest <= head
                if seen is not None:
                    if seen > head:
                        return whole, False
                    if sequence is not None and seen < sequence:
                        place.forget()
                        whole, last, tails = False, 0, frozenset()
                    sequence = seen
                ended, doubt = seen if seen is not None and seen > last else 0, 0
                if newest != ended and (ended or newest > last):
                    if not commit.leaves(ended) and commit.unproved(last, head, tails):
                        found = find_sequence(self._read, place.wal, commit, last)
                        if found is not None and found[1] <= head:
                            # From the next commit on, look for the row where it is now.
                            self._page, ended = found
                            sequence, offset = ended, commit.end
                    doubt = commit.unproved(max(last, ended), head, tails)
                    if ended and not commit.leaves(ended):
                        doubt = max(doubt, ended)
                if doubt > after:
                    # No answer this time; the next commit that is certain is a new beginning.
                    place.forget()
                    whole, tails = False, frozenset()
                elif ended and not doubt:
                    place.add(ended, after)
                    place.offset, place.sequence = commit.end, sequence
                    place.tails = tails = commit.leaves(place.last)
                    if place.last >= head:
                        return whole, within
                else:
                    tails = commit.leaves(last) or tails
                if offset is not None:
                    break
        return whole, within
