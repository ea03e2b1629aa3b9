"""One session in rooms: joining, messages, history, broadcasts, and what others do.

A joined room is a subscription to the table `messages`; presence and broadcasts are told beside it.
What reads or writes the database is done in order.
"""

from __future__ import annotations

from typing import Protocol, assert_never

import msgspec

from cdchub.catalog import Selection
from cdchub.errors import RequestError, TooManyRequests
from cdchub.fanout import Framer, Start
from cdchub.log.protocol import Cursor
from cdchub.ws.frames import ChatMessage
from cdchub.ws.grammar import HISTORY_MAX, Broadcast, History, Join, Leave, Request, SendMessage
from cdchub.ws.parts import Part
from cdchub.ws.rate import Rate
from cdchub.ws.shared import Shared
from cdchub.ws.starts import position_shown, start_of
from cdchub.ws.turns import Turns

RoomRequest = Join | SendMessage | History | Broadcast | Leave


class NotJoined(RequestError):
    code = "not_joined"
    title = "Not in this room"


class RoomRequired(RequestError):
    code = "room_required"
    title = "No room was named"


class ChatOwner(Protocol):
    """The session."""

    @property
    def user_id(self) -> str: ...

    @property
    def is_closed(self) -> bool: ...

    @property
    def is_lagging(self) -> bool:
        """Whether its connection holds too much."""
        ...

    def check_room_for_more(self) -> None:
        """Raises `TooManyRequests`."""
        ...

    def begin_part(self, part: Part, selection: Selection, framer: Framer, start: Start) -> None: ...

    def new_part(self, name: str, among: dict[str, Part]) -> Part: ...

    def end_part(self, part: Part) -> None: ...

    def send(self, type: str, **members: object) -> None: ...

    def send_payload(self, payload: bytes) -> None: ...

    async def drained(self) -> None:
        """Returns when its connection holds too much no longer."""
        ...

    def failed(self, request: Request, error: Exception) -> None: ...


class Chat:
    __slots__ = ("_members_owed", "_owner", "_rate", "_shared", "_turns", "rooms", "user_id")

    def __init__(self, shared: Shared, owner: ChatOwner) -> None:
        self._shared = shared
        self._owner = owner
        config = shared.config
        self._rate = Rate(per_s=config.messages_per_s, burst=config.messages_burst)
        self._turns = Turns(
            shared.core.start,
            ready=owner.drained,
            failed=owner.failed,
            waiting_max=config.messages_burst,
        )
        # Rooms that were told less than happened in them, while the connection held too much.
        self._members_owed: set[str] = set()
        # The joined ones.
        self.rooms: dict[str, Part] = {}
        self.user_id = owner.user_id

    def handle(self, request: RoomRequest) -> None:
        """Raises `RequestError`, unless that comes later: then the owner is told."""
        match request:
            case Join():
                self._turns.take_waiting(request, lambda: self._join(request))
            case SendMessage():
                self._take_one()
                self._turns.take_waiting(request, lambda: self._store(request))
            case History():
                self._turns.take_waiting(request, lambda: self._history(request))
            case Broadcast():
                self._take_one()
                self._turns.take(request, lambda: self._broadcast(request))
            case Leave():
                self._turns.take(request, lambda: self._leave(request))
            case _:
                assert_never(request)

    def tell(self, room: str, payload: bytes) -> None:
        """What others do."""
        if self._owner.is_lagging:
            # Whoever lags gets the present members when it has caught up; the rest is fleeting.
            self._members_owed.add(room)
        else:
            self._owner.send_payload(payload)

    def has_drained(self) -> None:
        owed, self._members_owed = self._members_owed, set()
        for room in owed & self.rooms.keys():
            self._owner.send("members", room=room, members=self._shared.rooms.members(room))

    def part_has_ended(self, part: Part) -> None:
        """The hub has ended the subscription of a room."""
        self._shared.rooms.leave(part.name, self, at_once=False)

    def stop(self) -> None:
        """The connection is gone. Its user may come back; what was said before is said."""
        self._turns.stop(keep=lambda request: isinstance(request, SendMessage | Leave))
        for room in self.rooms:
            self._shared.rooms.leave(room, self, at_once=False)

    async def _join(self, request: Join) -> None:
        shared, owner, room = self._shared, self._owner, request.room
        core = shared.core
        await shared.messages.check()
        start = start_of(request.since, core, snapshot=False)
        history: list[ChatMessage] = []
        more: bool | None = None
        if request.history and request.since is None and isinstance(start, Cursor):
            history, more = await shared.messages.history(
                room, upto=start.lsn, limit=min(request.history, HISTORY_MAX)
            )
        if owner.is_closed:
            return
        is_new = room not in self.rooms
        if is_new:
            owner.check_room_for_more()
            core.admit()
            shared.rooms.join(room, self)
        owner.send(
            "joined",
            room=room,
            position=position_shown(start, core, since=request.since, snapshot=False),
            members=shared.rooms.members(room),
            history=len(history),
            more=more,
            id=request.id,
        )
        for message in history:
            owner.send("message", **msgspec.to_builtins(message), history=True)
        if is_new:
            part = owner.new_part(room, self.rooms)
            owner.begin_part(part, shared.messages.selection(room), shared.framers.room(room), start)

    async def _store(self, request: SendMessage) -> None:
        room = request.room
        if room is None or not self._owner.is_closed:
            # Otherwise it was said behind a join that the end of the connection overtook.
            room = self._joined(room)
        stored = await self._shared.messages.add(
            self.user_id, room, request.content, request.message_id
        )
        if request.id is not None:
            self._owner.send(
                "ack",
                id=request.id,
                messageId=stored.message_id,
                lsn=stored.lsn,
                duplicate=stored.duplicate,
            )

    async def _history(self, request: History) -> None:
        room = self._joined(request.room)
        head = self._shared.core.present.cursor.lsn
        upto = head if request.before is None else min(head, max(0, request.before - 1))
        messages, more = await self._shared.messages.history(
            room, upto=upto, limit=min(request.limit, HISTORY_MAX), before_id=request.before_id
        )
        self._owner.send("history", room=room, messages=messages, more=more, id=request.id)

    def _broadcast(self, request: Broadcast) -> None:
        self._shared.rooms.tell_others(
            self._joined(request.room),
            self.user_id,
            "broadcast",
            userId=self.user_id,
            data=request.data,
        )

    def _leave(self, request: Leave) -> None:
        room = self._joined(request.room)
        self._owner.end_part(self.rooms[room])
        self._shared.rooms.leave(room, self, at_once=True)
        self._owner.send("left", room=room, id=request.id)

    def _joined(self, room: str | None) -> str:
        """The room that a request is about."""
        if room is None:
            if len(self.rooms) != 1:
                raise RoomRequired(f"name the room: {len(self.rooms)} are joined on this connection")
            return next(iter(self.rooms))
        if room not in self.rooms:
            raise NotJoined(f"join {room[:80]!r} first")
        return room

    def _take_one(self) -> None:
        """Counts a message or broadcast."""
        if not self._rate.take(self._shared.now_s()):
            config = self._shared.config
            raise TooManyRequests(
                f"at most {config.messages_per_s:g} messages a second, "
                f"{config.messages_burst} at once: wait a moment and send it again"
            )
