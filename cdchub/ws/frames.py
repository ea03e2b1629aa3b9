"""What the hub says over `/cdc/ws`, as bytes that all who receive the same can share. Pure.

A server's frames are not masked (RFC 6455 §5.1), so one frame serves every subscriber of a feed that
gave its subscription the same name. On our own server a frame is written as it is; where another
server frames messages itself, it is one line of JSON. There is no compression: a deflated frame has
a context of its own for each connection and could not be shared (RFC 7692 §7), and would cost each
some 64 KiB.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from cdchub.change import from_wire
from cdchub.fanout import Item
from cdchub.position import Epoch, Position

_encode = msgspec.json.Encoder().encode

# A text message, whole, as a server sends it: FIN and opcode 1.
_TEXT = 0x81
_LENGTH_16, _LENGTH_64 = 126, 127

Wrap = Callable[[bytes], bytes]


def text_frame(payload: bytes) -> bytes:
    """One unmasked text frame (RFC 6455 §5.2)."""
    length = len(payload)
    if length < _LENGTH_16:
        return bytes((_TEXT, length)) + payload
    if length < 2**16:
        return b"%c%c%b%b" % (_TEXT, _LENGTH_16, length.to_bytes(2, "big"), payload)
    return b"%c%c%b%b" % (_TEXT, _LENGTH_64, length.to_bytes(8, "big"), payload)


def line(payload: bytes) -> bytes:
    """One message for a server that frames by itself. What we encode holds no raw line feed."""
    return payload + b"\n"


def encoded(type: str, **members: object) -> bytes:
    """A message of the hub; members that are None are left out, but for `position`."""
    present = {k: v for k, v in members.items() if v is not None or k == "position"}
    return _encode({"type": type, **present})


class _Framer:
    """What the framers of subscriptions and of rooms have in common: notices, under a name."""

    def __init__(self, wrap: Wrap, address: str, name: str) -> None:
        """`address` is the member that names it: `sub` or `room`."""
        self._wrap = wrap
        self._address = {address: name}

    def _notice(self, type: str, **members: object) -> bytes:
        return self._wrap(encoded(type, **self._address, **members))

    def opening(self, position: Position | None, *, retry_ms: int) -> bytes:
        return b""

    def heartbeat(self, position: Position | None) -> bytes:
        return b"" if position is None else self._notice("heartbeat", position=str(position))

    def transaction_end(self, position: Position) -> bytes:
        return self.heartbeat(position)

    def caught_up(self, position: Position) -> bytes:
        return self._notice("caught-up", position=str(position))

    def reset(
        self,
        *,
        reason: str,
        tables: Iterable[str],
        position: Position,
        oldest: Position,
        resumable: bool,
    ) -> bytes:
        return self._notice(
            "reset", reason=reason, tables=list(tables), position=str(position), oldest=str(oldest)
        )

    def closing(self, position: Position | None, *, retry_ms: int) -> bytes:
        shown = None if position is None else str(position)
        return self._notice("unsubscribed", reason="ended", position=shown, retryAfterMs=retry_ms)

    def fault(self, *, code: str, message: str, retry_ms: int) -> bytes:
        ended = self._notice("unsubscribed", reason=code, position=None, retryAfterMs=retry_ms)
        return self._notice("error", code=code, message=message) + ended

    def snapshot_begin(self, position: Position, tables: Iterable[str]) -> bytes:
        return self._notice("snapshot", position=str(position), tables=list(tables))

    def snapshot_end(self, position: Position) -> bytes:
        return self._notice("snapshot-end", position=str(position))


class SubscriptionFramer(_Framer):
    """The frames of subscriptions that are called `sub`."""

    def __init__(self, wrap: Wrap, sub: str) -> None:
        super().__init__(wrap, "sub", sub)
        self._prefix = b'{"type":"change","sub":%b,"change":' % _encode(sub)

    def changes(self, epoch: Epoch, items: Iterable[Item]) -> list[bytes]:
        wrap, prefix = self._wrap, self._prefix
        return [wrap(b"%b%b}" % (prefix, data)) for _, data in items]

    def changes_without_position(self, changes: Iterable[bytes]) -> bytes:
        return b"".join([self._wrap(b"%b%b}" % (self._prefix, data)) for data in changes])

    def snapshot_rows(self, lines: bytes) -> bytes:
        return self.changes_without_position(lines[:-1].split(b"\n"))


class ChatMessage(msgspec.Struct, rename="camel"):
    """A message as INTERFACE §5 shows it."""

    room: str
    user_id: str
    content: str
    timestamp: str | None
    lsn: int
    message_id: str


class MessageRow(msgspec.Struct):
    """A row of `messages`. Anybody may write there, so its values may be anything."""

    id: Any = None
    room: Any = None
    user_id: Any = None
    content: Any = None
    created_at: Any = None


class MessageChange(msgspec.Struct):
    """A change of the table `messages`."""

    type: str
    lsn: int
    oldValue: MessageRow | None = None
    newValue: MessageRow | None = None


decode_change = msgspec.json.Decoder(MessageChange).decode
_EARLIEST_MS, _LATEST_MS = 0, 253_402_300_799_999  # the years that ISO 8601 writes with four digits


def chat_message(row: MessageRow, lsn: int) -> ChatMessage:
    at_ms = row.created_at
    known = isinstance(at_ms, int) and _EARLIEST_MS <= at_ms <= _LATEST_MS
    return ChatMessage(
        room=_shown(row.room),
        user_id=_shown(row.user_id),
        content=_shown(row.content),
        timestamp=_iso(at_ms) if known else None,
        lsn=lsn,
        message_id=_shown(row.id),
    )


def message_of(values: tuple[Any, ...], lsn: int) -> ChatMessage:
    """A message from its columns id, room, user_id, content, created_at."""
    return chat_message(MessageRow(*values), lsn)


def _shown(value: Any) -> str:
    """A value as a person can read it, from the wire or from a row."""
    if isinstance(value, dict):
        value = from_wire(value)
    if isinstance(value, bytes):
        return bytes(value).decode("utf-8", "replace")
    return "" if value is None else str(value)


def _iso(at_ms: int) -> str:
    """Unix milliseconds as ISO 8601 in UTC."""
    whole_s, rest_ms = divmod(at_ms, 1000)
    return f"{datetime.fromtimestamp(whole_s, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ms:03d}Z"


class RoomFramer(_Framer):
    """The frames of a room: its changes are chat messages."""

    def __init__(self, wrap: Wrap, room: str) -> None:
        super().__init__(wrap, "room", room)

    def changes(self, epoch: Epoch, items: Iterable[Item]) -> list[bytes]:
        return [self._wrap(_told(decode_change(data))) for _, data in items]

    def changes_without_position(self, changes: Iterable[bytes]) -> bytes:
        return b"".join([self._wrap(_told(decode_change(data))) for data in changes])

    def snapshot_rows(self, lines: bytes) -> bytes:
        return self.changes_without_position(lines[:-1].split(b"\n"))


def _told(change: MessageChange) -> bytes:
    row = change.newValue or change.oldValue or MessageRow()
    message = chat_message(row, change.lsn)
    if change.type == "DELETE":
        return encoded(
            "message-deleted", room=message.room, messageId=message.message_id, lsn=message.lsn
        )
    kind = "message-updated" if change.type == "UPDATE" else "message"
    return encoded(kind, **msgspec.to_builtins(message))


class Framers:
    """One framer a name: framers are compared by identity, and those who share one share frames."""

    def __init__(self, wrap: Wrap) -> None:
        self.wrap = wrap
        self._subscriptions: weakref.WeakValueDictionary[str, SubscriptionFramer]
        self._subscriptions = weakref.WeakValueDictionary()
        self._rooms: weakref.WeakValueDictionary[str, RoomFramer] = weakref.WeakValueDictionary()

    def subscription(self, sub: str) -> SubscriptionFramer:
        found = self._subscriptions.get(sub)
        if found is None:
            found = self._subscriptions[sub] = SubscriptionFramer(self.wrap, sub)
        return found

    def room(self, room: str) -> RoomFramer:
        found = self._rooms.get(room)
        if found is None:
            found = self._rooms[room] = RoomFramer(self.wrap, room)
        return found
