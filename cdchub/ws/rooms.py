"""Rooms and who is present in them.

A user is present from the first of their connections that joins until the last has left: by saying so
at once, or by closing and not coming back within the grace. A reload of a page is no departure.

Presence belongs to this process, and nothing of it is stored.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from cdchub.ws.frames import encoded


class Member(Protocol):
    """One connection of a user, as a room sees it."""

    @property
    def user_id(self) -> str: ...

    def tell(self, room: str, payload: bytes) -> None: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


# Calls back after so many seconds.
CallLater = Callable[[float, Callable[[], None]], Timer]


class _Room:
    __slots__ = ("connections", "leaving")

    def __init__(self) -> None:
        self.connections: dict[str, set[Member]] = {}
        # Users without a connection, who are present until their timer ends.
        self.leaving: dict[str, Timer] = {}

    def members(self) -> list[str]:
        return sorted({*self.connections, *self.leaving})


class Rooms:
    def __init__(self, call_later: CallLater, *, grace_s: float) -> None:
        self._call_later = call_later
        self._grace_s = grace_s
        self._rooms: dict[str, _Room] = {}

    def counts(self, *, most: int) -> dict[str, int]:
        """How many users are present in the `most` largest rooms."""
        counts = {n: len(room.connections) + len(room.leaving) for n, room in self._rooms.items()}
        return dict(heapq.nlargest(most, counts.items(), key=lambda room: room[1]))

    def members(self, room: str) -> list[str]:
        """The users that are present, sorted."""
        return self._rooms[room].members() if room in self._rooms else []

    def join(self, room: str, member: Member) -> None:
        """Tells the others, unless this user is present already."""
        here = self._rooms.setdefault(room, _Room())
        timer = here.leaving.pop(member.user_id, None)
        if timer is not None:
            timer.cancel()
        elif member.user_id not in here.connections:
            self.tell_others(room, member.user_id, "user-joined", userId=member.user_id)
        here.connections.setdefault(member.user_id, set()).add(member)

    def leave(self, room: str, member: Member, *, at_once: bool) -> None:
        """`at_once`: the member has said so; otherwise its connection is gone, and it may come back."""
        here, user_id = self._rooms.get(room), member.user_id
        if here is None:
            return
        if at_once and user_id in here.leaving:
            # It was said before the connection ended, and is heard only now.
            here.leaving.pop(user_id).cancel()
            self._left(room, user_id)
            return
        connections = here.connections.get(user_id, set())
        if member not in connections:
            return
        connections.discard(member)
        if connections:
            return
        del here.connections[user_id]
        if at_once:
            self._left(room, user_id)
        else:
            here.leaving[user_id] = self._call_later(
                self._grace_s, lambda: self._has_not_returned(room, user_id)
            )

    def tell_others(self, room: str, user_id: str, type: str, **members: object) -> None:
        """Tells everybody in a room but one user."""
        here = self._rooms.get(room)
        if here is not None:
            payload = encoded(type, room=room, **members)
            for other, connections in here.connections.items():
                if other != user_id:
                    for connection in connections:
                        connection.tell(room, payload)

    def _has_not_returned(self, room: str, user_id: str) -> None:
        del self._rooms[room].leaving[user_id]
        self._left(room, user_id)

    def _left(self, room: str, user_id: str) -> None:
        self.tell_others(room, user_id, "user-left", userId=user_id)
        here = self._rooms[room]
        if not here.connections and not here.leaving:
            del self._rooms[room]
