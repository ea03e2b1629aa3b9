"""What a session says and hears in rooms: joining, messages, history, broadcasts.

A joined room is a subscription to the table `messages`; presence and broadcasts are told beside it.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from cdchub.errors import RequestError, TooManyRequests
from cdchub.fanout import Core, Start
from cdchub.log.protocol import Cursor
from cdchub.ws.frames import ChatMessage
from cdchub.ws.grammar import HISTORY_MAX, Broadcast, History, Join, Leave, SendMessage
from cdchub.ws.parts import Part
from cdchub.ws.rate import Rate
from cdchub.ws.rooms import Member
from cdchub.ws.shared import Shared
from cdchub.ws.starts import position_shown, start_of


class NotJoined(RequestError):
    code = "not_joined"
    title = "Not in this room"


class RoomRequired(RequestError):
    code = "room_required"
    title = "No room was named"


class ChatOwner(Member, Protocol):
    """The session."""

    @property
    def is_closed(self) -> bool: ...

    def rooms(self) -> dict[str, Part]:
        """The joined ones."""
        ...

    def check_room_for_more(self) -> None:
        """Raises `TooManyRequests`."""
        ...

    def begin_room(self, room: str, start: Start) -> None: ...

    def end_part(self, part: Part) -> None: ...

    def send(self, type: str, **members: object) -> None: ...


class Chat:
    def __init__(self, shared: Shared, owner: ChatOwner) -> None:
        self._shared = shared
        self._owner = owner
        config = shared.config
        self._rate = Rate(per_s=config.messages_per_s, burst=config.messages_burst)

    def take_one(self) -> None:
        """Counts a message or broadcast. Raises `TooManyRequests`."""
        if not self._rate.take(self._shared.now_s()):
            config = self._shared.config
            raise TooManyRequests(
                f"at most {config.messages_per_s:g} messages a second, "
                f"{config.messages_burst} at once: wait a moment and send it again"
            )

    async def join(self, request: Join) -> None:
        shared, owner, room = self._shared, self._owner, request.room
        core: Core = shared.core
        await shared.messages.check()
        start = start_of(request.since, core, snapshot=False)
        history: list[ChatMessage] = []
        if request.history and request.since is None and isinstance(start, Cursor):
            history, _ = await shared.messages.history(
                room, upto=start.lsn, limit=min(request.history, HISTORY_MAX)
            )
        if owner.is_closed:
            return
        is_new = room not in owner.rooms()
        if is_new:
            owner.check_room_for_more()
            core.admit()
            shared.rooms.join(room, owner)
        owner.send(
            "joined",
            room=room,
            position=position_shown(start, core, snapshot=False),
            members=shared.rooms.members(room),
            history=len(history),
            id=request.id,
        )
        for message in history:
            owner.send("message", **msgspec.to_builtins(message), history=True)
        if is_new:
            owner.begin_room(room, start)

    async def store(self, request: SendMessage) -> None:
        room = self._joined(request.room)
        stored = await self._shared.messages.add(
            self._owner.user_id, room, request.content, request.message_id
        )
        if request.id is not None:
            self._owner.send(
                "ack",
                id=request.id,
                messageId=stored.message_id,
                lsn=stored.lsn,
                duplicate=stored.duplicate,
            )

    async def history(self, request: History) -> None:
        room = self._joined(request.room)
        head = self._shared.core.present.cursor.lsn
        upto = head if request.before is None else min(head, max(0, request.before - 1))
        messages, more = await self._shared.messages.history(
            room, upto=upto, limit=min(request.limit, HISTORY_MAX), before_id=request.before_id
        )
        self._owner.send("history", room=room, messages=messages, more=more, id=request.id)

    def broadcast(self, request: Broadcast) -> None:
        user_id = self._owner.user_id
        self._shared.rooms.tell_others(
            self._joined(request.room), user_id, "broadcast", userId=user_id, data=request.data
        )

    def leave(self, request: Leave) -> None:
        room = self._joined(request.room)
        self._owner.end_part(self._owner.rooms()[room])
        self._shared.rooms.leave(room, self._owner, at_once=True)
        self._owner.send("left", room=room, id=request.id)

    def _joined(self, room: str | None) -> str:
        """The room that a request is about."""
        rooms = self._owner.rooms()
        if room is None:
            if len(rooms) != 1:
                raise RoomRequired(f"name the room: {len(rooms)} are joined on this connection")
            return next(iter(rooms))
        if room not in rooms:
            raise NotJoined(f"join {room[:80]!r} first")
        return room
