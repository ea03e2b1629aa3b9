"""RFC 6455 frame by frame, by the numbers of Autobahn's test suite where it has the case.

The endpoint speaks JSON, so `{"type":"ping","id":…}` and its pong stand for Autobahn's echo.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.harness import HubProcess, make_database
from tests.ws_client import BINARY, CLOSE, CONT, PING, PONG, TEXT, Peer, frame, opened, text

# The longest message that a client may send.
MOST = 128 * 2**10


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("frames") / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)"
    )
    with HubProcess(database) as process:
        yield process


@pytest.fixture
def peer(hub: HubProcess) -> Iterator[Peer]:
    with opened(hub) as found:
        yield found


def padded(size: int, *, id: str = "i") -> bytes:
    """A ping message of exactly so many bytes."""
    bare = len(json.dumps({"type": "ping", "id": id, "pad": ""}))
    return json.dumps({"type": "ping", "id": id, "pad": "x" * (size - bare)}).encode()


def answered(peer: Peer, id: str = "i") -> None:
    assert peer.next() == {"type": "pong", "id": id}


def lives(peer: Peer) -> None:
    assert peer.ask("ping")["type"] == "pong"


# 1: messages.


@pytest.mark.parametrize("size", [125, 126, 127, 128, 65_535, 65_536, MOST])
def test_1_1_text_messages_of_any_length(peer: Peer, size: int) -> None:
    peer.send(TEXT, padded(size))
    answered(peer)


def test_1_1_1_an_empty_message(peer: Peer) -> None:
    """It is no JSON, and no fault of the connection."""
    peer.send(TEXT)
    assert peer.next()["code"] == "bad_message"
    lives(peer)


@pytest.mark.parametrize("chop", [1, 997])
def test_1_1_8_messages_in_chops(peer: Peer, chop: int) -> None:
    data = frame(TEXT, padded(2_000 if chop == 1 else MOST))
    for start in range(0, len(data), chop):
        peer.wire.send(data[start : start + chop])
    answered(peer)


@pytest.mark.parametrize("size", [0, 125, 65_536])
def test_1_2_binary_messages_are_not_taken(peer: Peer, size: int) -> None:
    peer.send(BINARY, b"\xfe" * size)
    assert peer.close_code() == 1003


def test_1_2_nothing_behind_a_binary_message_is_done(peer: Peer) -> None:
    """RFC 6455 §7.1.7: who fails a connection processes nothing more of it."""
    peer.wire.send(frame(BINARY, b"x") + text(type="ping", id="behind"))
    assert peer.close_code() == 1003
    assert peer.passed == []


@pytest.mark.parametrize("size", [MOST + 1, 10 * 2**20])
def test_9_messages_that_are_too_big(hub: HubProcess, size: int) -> None:
    """1009, and the peer, which sends on, can read that."""
    with opened(hub) as peer:
        peer.send(TEXT, b"x" * size)
        assert peer.close_code() == 1009


@pytest.mark.parametrize("pieces", [2, 1_000])
def test_9_fragments_that_are_too_big_together(peer: Peer, pieces: int) -> None:
    piece = b"x" * (MOST // pieces + 200)
    data = frame(TEXT, piece, fin=False) + frame(CONT, piece, fin=False) * (pieces - 1)
    peer.wire.send(data + frame(CONT, piece))
    assert peer.close_code() == 1009


# 2: pings and pongs.


@pytest.mark.parametrize("payload", [b"", b"hello", b"\x00\xff\xfe\xfd", b"\xfe" * 125])
def test_2_pings_are_answered(peer: Peer, payload: bytes) -> None:
    peer.send(PING, payload)
    found = peer.frame()
    assert found is not None
    assert (found.opcode, found.payload) == (PONG, payload)


def test_2_5_a_ping_that_is_too_long(peer: Peer) -> None:
    peer.send(PING, b"\xfe" * 126)
    assert peer.close_code() == 1002


def test_2_6_a_ping_byte_by_byte(peer: Peer) -> None:
    for byte in frame(PING, b"\xfe" * 125):
        peer.wire.send(bytes([byte]))
    found = peer.frame()
    assert found is not None
    assert found.payload == b"\xfe" * 125


@pytest.mark.parametrize("payload", [b"", b"unasked for"])
def test_2_7_pongs_that_nobody_asked_for(peer: Peer, payload: bytes) -> None:
    peer.send(PONG, payload)
    peer.send(PING, b"after")
    found = peer.frame()
    assert found is not None
    assert (found.opcode, found.payload) == (PONG, b"after")


@pytest.mark.parametrize("chopped", [False, True])
def test_2_10_ten_pings_are_answered_in_order(peer: Peer, chopped: bool) -> None:
    data = b"".join(frame(PING, b"payload-%d" % n) for n in range(10))
    for part in [bytes([byte]) for byte in data] if chopped else [data]:
        peer.wire.send(part)
    found = [peer.frame() for _ in range(10)]
    assert [f and f.payload for f in found] == [b"payload-%d" % n for n in range(10)]


# 3: reserved bits.


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
def test_3_reserved_bits(peer: Peer, rsv: int, opcode: int) -> None:
    peer.send(opcode, b"" if opcode == CLOSE else padded(100), rsv=rsv)
    assert peer.close_code() == 1002


def test_3_2_what_came_before_is_answered(peer: Peer) -> None:
    peer.wire.send(frame(TEXT, padded(80)) + frame(TEXT, padded(80, id="j"), rsv=2) + frame(PING))
    answered(peer)
    assert peer.close_code() == 1002
    assert peer.passed == []


# 4: opcodes.


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_4_reserved_opcodes(peer: Peer, opcode: int) -> None:
    peer.wire.send(frame(TEXT, padded(80)) + frame(opcode, b"x") + frame(PING))
    answered(peer)
    assert peer.close_code() == 1002


# 5: fragments.


@pytest.mark.parametrize("opcode", [PING, PONG])
def test_5_1_control_frames_are_not_fragmented(peer: Peer, opcode: int) -> None:
    peer.wire.send(frame(opcode, b"a", fin=False) + frame(CONT, b"b"))
    assert peer.close_code() == 1002


@pytest.mark.parametrize("chopped", [False, True])
def test_5_3_a_message_in_fragments(peer: Peer, chopped: bool) -> None:
    whole = padded(90)
    data = frame(TEXT, whole[:50], fin=False) + frame(CONT, whole[50:])
    for part in [bytes([byte]) for byte in data] if chopped else [data]:
        peer.wire.send(part)
    answered(peer)


def test_5_6_a_ping_between_fragments_is_answered_at_once(peer: Peer) -> None:
    whole = padded(90)
    peer.send(TEXT, whole[:50], fin=False)
    peer.send(PING, b"between")
    found = peer.frame()
    assert found is not None
    assert (found.opcode, found.payload) == (PONG, b"between")
    peer.send(CONT, whole[50:])
    answered(peer)


@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("before", [b"", frame(TEXT, padded(80))])
def test_5_9_nothing_to_continue(peer: Peer, fin: bool, before: bytes) -> None:
    peer.wire.send(before + frame(CONT, b"x", fin=fin) + frame(TEXT, padded(80, id="j")))
    if before:
        answered(peer)
    assert peer.close_code() == 1002
    assert peer.passed == []


def test_5_18_a_message_within_a_message(peer: Peer) -> None:
    peer.wire.send(frame(TEXT, b"x", fin=False) + frame(TEXT, padded(80)))
    assert peer.close_code() == 1002
    assert peer.passed == []


def test_5_19_many_fragments_with_pings_between(peer: Peer) -> None:
    whole = padded(100)
    data = frame(TEXT, fin=False)
    for n, byte in enumerate(whole):
        data += frame(CONT, bytes([byte]), fin=False) + frame(CONT, fin=False)
        data += frame(PING, b"%d" % n)
    peer.wire.send(data + frame(CONT))
    pongs = [peer.frame() for _ in range(len(whole))]
    assert [f and f.payload for f in pongs] == [b"%d" % n for n in range(len(whole))]
    answered(peer)


# 6: UTF-8.

GOOD = [
    "κόσμε",
    "\ufeff",
    "\u0000",
    "\u07ff\u0800\uffff\U00010000\U0010ffff",
    "\ufdd0\ufffe",
    "😀" * 99,
]
BAD = [
    b"\xce\xba\xed\xa0\x80edited",
    b"\xf4\x90\x80\x80",
    b"\x80",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xc2",
    b"\xf0\x9f\x98",
    b"\xed\xbf\xbf",
    b"\xfe\xfe\xff\xff",
]


@pytest.mark.parametrize("id", GOOD, ids=ascii)
def test_6_5_text_in_fragments_within_a_character(peer: Peer, id: str) -> None:
    whole = json.dumps({"type": "ping", "id": id}, ensure_ascii=False).encode()
    if id == "\u0000":
        whole = b'{"type":"ping","id":"\\u0000"}'
    data = frame(TEXT, fin=False) + b"".join(frame(CONT, bytes([b]), fin=False) for b in whole)
    peer.wire.send(data + frame(CONT))
    answered(peer, id)


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("split", [None, 1, 20])
def test_6_3_text_that_is_not_utf_8(peer: Peer, bad: bytes, split: int | None) -> None:
    whole = b'{"type":"ping","id":"' + bad + b'"}'
    if split is None:
        peer.send(TEXT, whole)
    else:
        peer.wire.send(frame(TEXT, whole[:split], fin=False) + frame(CONT, whole[split:]))
    assert peer.close_code() == 1007
    assert peer.passed == []


def test_6_nothing_behind_bad_text_is_done(peer: Peer) -> None:
    peer.wire.send(frame(TEXT, b"\xff") + text(type="ping", id="behind") + frame(PING, b"behind"))
    found = [peer.frame(), peer.frame()]
    assert [f and f.opcode for f in found] == [CLOSE, None]


# 7: closing.


def test_7_1_the_close_handshake(peer: Peer) -> None:
    peer.polite = False
    peer.send(CLOSE, (1000).to_bytes(2, "big") + b"bye")
    found = peer.frame()
    assert found is not None
    assert (found.opcode, found.code) == (CLOSE, 1000)
    assert peer.frame() is None


def test_7_1_2_nothing_is_done_behind_a_close_frame(peer: Peer) -> None:
    peer.polite = False
    close = frame(CLOSE, (1000).to_bytes(2, "big"))
    peer.wire.send(close + close + frame(PING, b"x") + text(type="ping", id="late"))
    found = [peer.frame(), peer.frame()]
    assert [f and f.opcode for f in found] == [CLOSE, None]


def test_7_3_1_a_close_frame_without_a_code(peer: Peer) -> None:
    peer.polite = False
    peer.send(CLOSE)
    found = peer.frame()
    assert found is not None
    assert (found.opcode, found.payload) == (CLOSE, b"")
    assert peer.frame() is None


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x03", 1002),
        (b"\x03\xe8" + b"x" * 124, 1002),
        (b"\x03\xe8\xff", 1007),
    ],
)
def test_7_3_close_frames_that_are_wrong(peer: Peer, payload: bytes, code: int) -> None:
    peer.send(CLOSE, payload)
    assert peer.close_code() == code


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
def test_7_7_codes_that_a_peer_may_send(peer: Peer, code: int) -> None:
    peer.polite = False
    peer.send(CLOSE, code.to_bytes(2, "big"))
    assert peer.close_code() == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_7_9_codes_that_nobody_may_send(peer: Peer, code: int) -> None:
    peer.polite = False
    peer.send(CLOSE, code.to_bytes(2, "big"))
    assert peer.close_code() == 1002


# 10, and masks.


def test_10_1_a_message_in_large_pieces(peer: Peer) -> None:
    whole = padded(65_536)
    peer.wire.send(
        frame(TEXT, whole[:1_300], fin=False)
        + b"".join(
            frame(CONT, whole[n : n + 1_300], fin=False) for n in range(1_300, len(whole), 1_300)
        )
        + frame(CONT)
    )
    answered(peer)


@pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
def test_a_peer_has_to_mask(peer: Peer, opcode: int) -> None:
    """RFC 6455 §5.1."""
    peer.send(opcode, b"", mask=None)
    assert peer.close_code() == 1002


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1\2\3"])
def test_any_mask_will_do(peer: Peer, mask: bytes) -> None:
    peer.send(TEXT, padded(77), mask=mask)
    answered(peer)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**40])
def test_a_length_beyond_all_bounds(peer: Peer, size: int) -> None:
    peer.wire.send(b"\x81\xff" + size.to_bytes(8, "big") + b"\1\2\3\4")
    assert peer.close_code() in (1002, 1009)


def test_the_file_of_this_hub_is_unharmed(hub: HubProcess) -> None:
    """After all that: no traceback, and nobody left over."""
    assert "Traceback" not in hub.log, hub.log[-2_000:]
    assert hub.get("/readyz").status == 200
