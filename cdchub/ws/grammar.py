"""What a client may say over `/cdc/ws` (INTERFACE §5), as types. Pure.

Each message is one JSON object with a `type`. Members that a message does not know are passed over, so
that a newer client can talk to an older hub.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from cdchub.errors import RequestError

SUB_CHARS_MAX = 32
ROOM_CHARS_MAX = 128
MESSAGE_ID_CHARS_MAX = 64
USER_CHARS_MAX = 64
CONTENT_CHARS_MAX = 16_384
BROADCAST_BYTES_MAX = 8 * 2**10
HISTORY_MAX = 500
_ID_BYTES_MAX = 256

# Echoed in the answer, whatever the client counts with.
RequestId = int | str | None
Room = Annotated[str, msgspec.Meta(min_length=1, max_length=ROOM_CHARS_MAX)]
Sub = Annotated[str, msgspec.Meta(min_length=1, max_length=SUB_CHARS_MAX)]
MessageId = Annotated[str, msgspec.Meta(min_length=1, max_length=MESSAGE_ID_CHARS_MAX)]
Content = Annotated[str, msgspec.Meta(min_length=1, max_length=CONTENT_CHARS_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0)]
# As in a query: one, or several.
Texts = str | list[str] | None


class BadMessage(RequestError):
    """A message that can't be understood; `str(error)` says where and why."""

    code: ClassVar[str] = "bad_message"
    title: ClassVar[str] = "Malformed message"


class _Request(msgspec.Struct, tag_field="type", kw_only=True, rename="camel"):
    id: RequestId = None


class Subscribe(_Request, tag="subscribe"):
    sub: Sub
    table: Texts = None
    since: str | int | None = None
    snapshot: bool | int = False
    room: str | None = None
    filter: Texts = None
    columns: Texts = None
    conflate: bool | int = False
    format: str | None = None


class Unsubscribe(_Request, tag="unsubscribe"):
    sub: Sub


class Join(_Request, tag="join"):
    room: Room
    since: str | int | None = None
    history: Count = 0


class SendMessage(_Request, tag="message"):
    content: Content
    room: Room | None = None
    message_id: MessageId | None = None


class History(_Request, tag="history"):
    """`before_id` tells messages apart that are older than the log, whose LSN nobody knows."""

    room: Room | None = None
    before: Count | None = None
    before_id: MessageId | None = None
    limit: Count = 50


class Broadcast(_Request, tag="broadcast"):
    data: msgspec.Raw
    room: Room | None = None


class Leave(_Request, tag="leave"):
    room: Room | None = None


class Ping(_Request, tag="ping"):
    pass


Request = Subscribe | Unsubscribe | Join | SendMessage | History | Broadcast | Leave | Ping


class Addressed(msgspec.Struct, rename="camel"):
    """What an answer repeats of a request, so that its sender knows what it is about."""

    id: RequestId = None
    sub: str | None = None
    room: str | None = None
    message_id: str | None = None


_requests = msgspec.json.Decoder(Request)
_kind = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KINDS = [kind.__struct_config__.tag for kind in Request.__args__]


def parse(text: bytes) -> Request:
    """A client's message. Raises `BadMessage`."""
    try:
        request: Request = _requests.decode(text)
    except msgspec.ValidationError as error:
        raise BadMessage(_explained(text, str(error))) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadMessage(f"this is not JSON: {error}") from error
    if isinstance(request, Broadcast):
        if len(request.data) > BROADCAST_BYTES_MAX:
            raise BadMessage(f"data has more than {BROADCAST_BYTES_MAX} bytes")
        # The others get it as it was sent, and a line of theirs must stay one (`frames.line`).
        request.data = msgspec.Raw(msgspec.json.format(bytes(request.data), indent=-1))
    return request


def address_of(request: Request) -> Addressed:
    return Addressed(
        id=request.id,
        sub=getattr(request, "sub", None),
        room=getattr(request, "room", None),
        message_id=getattr(request, "message_id", None),
    )


def addressed(text: bytes) -> Addressed:
    """The address of a message, as far as it can be made out."""
    try:
        members = _kind.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Addressed()
    found = Addressed()
    for name in ("id", "sub", "room", "message_id"):
        raw = members.get("messageId" if name == "message_id" else name)
        if raw is None or len(raw) > _ID_BYTES_MAX:
            continue
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            # A number beyond all bounds, say.
            continue
        if isinstance(value, str) or (name == "id" and type(value) is int):
            setattr(found, name, value)
    return found


def _explained(text: bytes, why: str) -> str:
    """msgspec's words, which name the member (`$.room`), or which types there are."""
    try:
        kind = msgspec.json.decode(_kind.decode(text)["type"])
    except (KeyError, msgspec.DecodeError, RecursionError):
        return "send a JSON object with a type"
    if kind not in _KINDS:
        return f"type is one of {', '.join(map(str, _KINDS))}, not {str(kind)[:40]!r}"
    return f"{kind}: {why[:1].lower()}{why[1:]}"
