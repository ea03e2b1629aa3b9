"""Members of chat rooms, for Locust.

Each says something now and then, hears what the others say, and cuts its connection sometimes. In the
end every member of a room must have heard the same messages in the same order, from its first one to
the last, and who is present must be who is there.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import count
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

from locust import task
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from loadtest.locust_users import RETRY_S, Measured
from loadtest.wire import PATIENCE_S

HEARD = "said to heard"
# Whoever speaks in the last moments is not waited for by those who listen: so nobody does.
_QUIET_S = 3.0


class Chatter(Measured):
    """One member of one room."""

    transport = "WebSocket"
    numbers: ClassVar[count[int]] = count()
    # All of this run, by room.
    members: ClassVar[dict[str, list[Chatter]]] = defaultdict(list)
    # When a message was said, by its text.
    said_ns: ClassVar[dict[str, int]] = {}
    ending: ClassVar[bool] = False

    def on_start(self) -> None:
        number = next(self.numbers)
        self.name = f"user-{number}"
        self.room = f"room-{number % self.options.chat_rooms}"
        # What was heard: LSN and messageId.
        self.heard: list[tuple[int, str]] = []
        self.said: set[str] = set()
        self.acknowledged: set[str] = set()
        self._position = ""
        self.members[self.room].append(self)

    @task
    def take_part(self) -> None:
        """One connection, until it is cut."""
        cut_at_s = time.monotonic() + random.expovariate(1 / self.options.cut_every_s)
        began_s = time.monotonic()
        try:
            with open_socket(self.host, self.name) as socket:
                join = {"type": "join", "room": self.room}
                socket.send(json.dumps(join | ({"since": self._position} if self._position else {})))
                # What may not have arrived is said again, under its own id.
                for message_id in self.said - self.acknowledged:
                    self._say(socket, message_id)
                self._listen(socket, cut_at_s, began_s)
        except (OSError, WebSocketException) as error:
            ms = 1e3 * (time.monotonic() - began_s)
            self.report(self.transport, "join", ms, fault=error)
            time.sleep(random.uniform(0, RETRY_S))

    def _listen(self, socket: ClientConnection, cut_at_s: float, began_s: float) -> None:
        speak_at_s = time.monotonic() + self._pause_s()
        while self.ending or time.monotonic() < cut_at_s:
            if not self.ending and time.monotonic() >= speak_at_s:
                speak_at_s = time.monotonic() + self._pause_s()
                message_id = uuid.uuid4().hex
                self.said.add(message_id)
                self.said_ns[message_id] = time.monotonic_ns()
                self._say(socket, message_id)
            try:
                text = socket.recv(max(0.001, min(speak_at_s, cut_at_s) - time.monotonic()))
            except TimeoutError:
                continue
            self._take(json.loads(text), began_s)
        socket.socket.close()

    def _pause_s(self) -> float:
        return random.expovariate(1 / self.options.said_every_s)

    def _say(self, socket: ClientConnection, message_id: str) -> None:
        request = {"type": "message", "room": self.room, "content": f"this is {message_id}"}
        socket.send(json.dumps(request | {"messageId": message_id, "id": message_id}))

    def _take(self, found: dict[str, Any], began_s: float) -> None:
        match found["type"]:
            case "joined":
                name = "rejoin" if self._position else "join"
                self.report(self.transport, name, 1e3 * (time.monotonic() - began_s))
                self._position = self._position or found["position"]
                if self.name not in found["members"]:
                    self.fault("presence", f"{self.name} has joined, and is no member")
            case "message":
                epoch = self._position.partition(":")[0]
                self._position = f"{epoch}:{found['lsn']}"
                self.heard.append((found["lsn"], found["messageId"]))
                late_ns = time.monotonic_ns() - self.said_ns[found["messageId"]]
                self.report(self.transport, HEARD, late_ns / 1e6, len(found["content"]))
            case "ack":
                self.acknowledged.add(found["messageId"])
            case "heartbeat" | "caught-up" if "room" in found:
                self._position = found["position"]
            case "connected" | "heartbeat" | "user-joined" | "user-left" | "members":
                pass
            case _:
                self.fault("unexpected message", json.dumps(found)[:200])


def open_socket(host: str | None, name: str) -> ClientConnection:
    url = f"ws://{urlsplit(host or '').netloc}/cdc/ws?user={quote(name)}"
    return connect(url, open_timeout=PATIENCE_S, compression=None, ping_interval=None)


def judge_rooms(environment: Any) -> None:
    """Called before the members are stopped: nobody speaks any more, and all is heard soon."""
    if not Chatter.members:
        return
    Chatter.ending = True
    deadline_s = time.monotonic() + PATIENCE_S
    everybody = [member for members in Chatter.members.values() for member in members]
    while time.monotonic() < deadline_s and any(m.said - m.acknowledged for m in everybody):
        time.sleep(0.1)
    time.sleep(_QUIET_S)
    for room, members in Chatter.members.items():
        _judge_messages(members)
        _judge_presence(environment.host, room, members)


def _judge_messages(members: list[Chatter]) -> None:
    """Every member's account must be the room's, from its first message to its last."""
    told = sorted({each for member in members for each in member.heard})
    lost = {i for m in members for i in m.said} - {message_id for _, message_id in told}
    for member in members:
        heard = member.heard
        lost_here = member.said & lost
        if lost_here:
            member.fault("lost", f"{member.name} said {len(lost_here)} messages that nobody has heard")
        if not heard:
            continue
        expected = told[bisect_left(told, heard[0]) : bisect_right(told, told[-1])]
        if heard != expected:
            member.fault(
                "disorder", f"{member.name} heard {len(heard)} messages where {len(expected)} were said"
            )


def _judge_presence(host: str | None, room: str, members: list[Chatter]) -> None:
    expected = sorted(member.name for member in members)
    with open_socket(host, members[0].name) as socket:
        socket.send(json.dumps({"type": "join", "room": room}))
        while (found := json.loads(socket.recv(PATIENCE_S)))["type"] != "joined":
            pass
    if found["members"] != expected:
        missing = set(expected) ^ set(found["members"])
        members[0].fault("presence", f"{room}: {sorted(missing)[:10]} are not as they should be")
