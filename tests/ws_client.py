"""A peer of `/cdc/ws` frame by frame, which can also say what no browser would."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.harness import HubProcess, quote
from tests.wire import Wire, request

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
SUBPROTOCOL = "cdchub.v1.json"
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Message = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def code(self) -> int:
        """Of a close frame; 1005 where it names none (RFC 6455 §7.1.5)."""
        return int.from_bytes(self.payload[:2], "big") if self.payload else 1005


class Closed(Exception):
    """The connection has ended: with a close frame of this code, or without (1006)."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\1\2\3\4",
) -> bytes:
    """The bytes of a frame (RFC 6455 §5.2); `mask=None` leaves it unmasked."""
    bit = 0 if mask is None else 0x80
    head = bytes([fin << 7 | rsv << 4 | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([bit | size])
    elif size < 2**16:
        head += bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([bit | 127]) + size.to_bytes(8, "big")
    return head + payload if mask is None else head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    pad = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def text(**members: object) -> bytes:
    """The frame of a message."""
    return frame(TEXT, json.dumps(members).encode())


def handshake(
    path: str = "/cdc/ws", *headers: str, version: str = "13", key: str | None = None
) -> bytes:
    """The bytes of a request to upgrade. A `Host` among `headers` takes the place of ours."""
    key = key or base64.b64encode(os.urandom(16)).decode()
    data = request(
        path,
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Key: {key}",
        f"Sec-WebSocket-Version: {version}",
        *headers,
    )
    if any(header.startswith("Host:") for header in headers):
        data = data.replace(b"Host: localhost\r\n", b"")
    return data


class Peer:
    """One connection. It answers pings and close frames, unless it is told not to."""

    def __init__(
        self,
        hub: HubProcess,
        *headers: str,
        user: str | None = None,
        path: str = "/cdc/ws",
        receive_bytes: int | None = None,
        pipelined: bytes = b"",
        polite: bool = True,
    ) -> None:
        """`pipelined` is sent together with the handshake."""
        self.wire = Wire(hub.port, receive_bytes=receive_bytes)
        self.polite = polite
        self.passed: list[Message] = []
        query = "" if user is None else f"?user={quote(user)}"
        key = base64.b64encode(os.urandom(16)).decode()
        self.wire.send(handshake(path + query, *headers, key=key) + pipelined)
        try:
            self.head = self.wire.read_until(b"\r\n\r\n").decode("latin-1")
            assert self.head.startswith("HTTP/1.1 101 "), self.head
            accept = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
            assert self.header("sec-websocket-accept") == accept
        except BaseException:
            self.wire.close()
            raise

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            found, _, value = line.partition(":")
            if found.lower() == name:
                return value.strip()
        return None

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wire.close()

    # Saying.

    def say(self, type: str, **members: object) -> None:
        self.wire.send(text(type=type, **members))

    def send(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        self.wire.send(frame(opcode, payload, **how))

    def ask(self, type: str, **members: object) -> Message:
        """Says it under an id, and returns the answer; what comes before is in `passed`."""
        id = os.urandom(6).hex()
        self.say(type, **members, id=id)
        return self.until(id=id)

    def join(self, room: str, **members: object) -> Message:
        answer = self.ask("join", room=room, **members)
        assert answer["type"] == "joined", answer
        return answer

    # Hearing.

    def frame(self) -> Frame | None:
        """The next frame, whatever it is; None at the end of the connection."""
        while (found := self._cut()) is None:
            if not self.wire.read():
                return None
        if self.polite and found.opcode == PING:
            self.send(PONG, found.payload)
        if self.polite and found.opcode == CLOSE:
            # Whoever has said goodbye need not have waited for this one.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send(CLOSE, found.payload[:2])
        return found

    def _cut(self) -> Frame | None:
        data = self.wire.data
        if len(data) < 2:
            return None
        first, second = data[0], data[1]
        assert not first & 0x70, "reserved bits without an extension"
        assert not second & 0x80, "a server masks nothing"
        start, size = 2, second
        if second >= 126:
            start = 4 if second == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
            assert size >= (126 if second == 126 else 2**16), "a length is as short as it can be"
        if len(data) < start + size:
            return None
        found = Frame(first & 15, data[start : start + size], bool(first & 0x80))
        if found.opcode >= CLOSE:
            assert found.fin, "control frames are whole"
            assert size < 126, "control frames are short"
        self.wire.data = data[start + size :]
        return found

    def next(self) -> Message:
        """The next message; raises `Closed`."""
        while True:
            found = self.frame()
            if found is None:
                raise Closed(1006)
            if found.opcode == CLOSE:
                raise Closed(found.code, found.payload[2:].decode())
            if found.opcode in (PING, PONG):
                continue
            assert found.opcode == TEXT
            assert found.fin
            message: Message = json.loads(found.payload)
            return message

    def until(self, type: str | None = None, **members: object) -> Message:
        """The next message of this type with these members; those before it go to `passed`."""
        while True:
            message = self.next()
            if type in (None, message["type"]) and members.items() <= message.items():
                return message
            self.passed.append(message)

    def find(self, type: str, **members: object) -> Message:
        """Such a message, which may have been passed by."""
        for message in self.passed:
            if message["type"] == type and members.items() <= message.items():
                self.passed.remove(message)
                return message
        return self.until(type, **members)

    def upto(self, type: str, **members: object) -> list[Message]:
        """All messages up to that one, and it."""
        first = len(self.passed)
        last = self.until(type, **members)
        found = [*self.passed[first:], last]
        del self.passed[first:]
        return found

    def several(self, count: int, *types: str) -> list[Message]:
        """The next `count` messages of these types."""
        found: list[Message] = []
        while len(found) < count:
            message = self.next()
            (found if message["type"] in types else self.passed).append(message)
        return found

    def so_far(self) -> list[Message]:
        """All that the hub said before it answered a ping, which is now."""
        id = os.urandom(6).hex()
        self.say("ping", id=id)
        return self.upto("pong", id=id)[:-1]

    def changes(self, count: int, sub: str | None = None) -> list[Message]:
        """The next `count` changes, of one subscription where it is named."""
        found: list[Message] = []
        while len(found) < count:
            message = self.next()
            if message["type"] == "change" and sub in (None, message["sub"]):
                found.append(message["change"])
            else:
                self.passed.append(message)
        return found

    def close_code(self) -> int:
        """Reads on to the end of the connection."""
        try:
            while True:
                self.passed.append(self.next())
        except Closed as closed:
            # Whoever failed a connection reads no answer to its close frame, but sees the end.
            with contextlib.suppress(OSError):
                self.wire.half_close()
            self.wire.rest()
            return closed.code


def opened(hub: HubProcess, *headers: str, **how: Any) -> Peer:
    """A peer that was told `connected`."""
    peer = Peer(hub, *headers, **how)
    assert peer.next()["type"] == "connected"
    return peer


def error_of(message: Message) -> str:
    assert message["type"] == "error", message
    code: str = message["code"]
    return code
