"""A TCP relay between browser and hub, which notes the streams it carries and can hold or cut them."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_CHUNK_BYTES = 65_536


@dataclass
class CarriedStream:
    """One `GET /cdc/stream` as it was on the wire."""

    request: str
    sockets: tuple[socket.socket, socket.socket]
    answer: bytearray = field(default_factory=bytearray)
    bytes_max: int | None = None

    @property
    def last_event_id(self) -> str | None:
        """What the browser says it has."""
        found = re.search(r"^last-event-id: *(.*?)\r?$", self.request, re.IGNORECASE | re.MULTILINE)
        return found[1] if found else None

    @property
    def text(self) -> str:
        return self.answer.decode("utf-8", "replace")


class Relay:
    def __init__(self, port: int, *, websockets: bool = True) -> None:
        """`websockets`: whether they get through; some proxies cut them."""
        self._hub_port = port
        self._websockets = websockets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.streams: list[CarriedStream] = []
        self.sockets_opened = 0
        # How many requests were answered in the hub's place.
        self.answered = 0
        self._bytes_max: int | None = None
        self._answer: bytes | None = None
        self._always: bytes | None = None
        self._swallowing = threading.Event()
        self._deafening = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._stall_before: bytes | None = None
        self.is_stalled = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = self._run(self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Requests for a stream wait here from now on."""
        self._flowing.clear()

    def swallow(self) -> None:
        """From now on nothing arrives, in either direction, and nothing is closed."""
        self._flowing.clear()
        self._swallowing.set()

    def hold_answers(self) -> None:
        """What the hub says gets lost; requests still arrive."""
        self._deafening.set()

    def stall_before(self, words: bytes) -> None:
        """The next stream's bytes with these words stop before them."""
        self._flowing.clear()
        self._stall_before = words

    def release(self) -> None:
        self.is_stalled = False
        self._swallowing.clear()
        self._deafening.clear()
        self._flowing.set()

    def cut(self) -> None:
        """Breaks the streams that are open."""
        for stream in self.streams:
            for end in stream.sockets:
                _shut(end)

    def cut_last(self, is_it: Callable[[str], bool]) -> None:
        """Breaks the last stream with such a request."""
        stream = next(each for each in reversed(self.streams) if is_it(each.request))
        for end in stream.sockets:
            _shut(end)

    def let_websockets_through(self) -> None:
        self._websockets = True

    def answer_next_stream(self, answer: bytes) -> None:
        """In the place of the hub, which is not asked."""
        self._answer = answer

    def answer_all(self, answer: bytes | None) -> None:
        """Every request, in the place of the hub, until it is told None."""
        self._always = answer

    def cut_next_after(self, bytes_max: int) -> None:
        """Breaks the next stream, and only that, in the middle of its answer."""
        self._bytes_max = bytes_max

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        # Closing alone would not wake a thread that waits in accept() or recv().
        _shut(self._listener)
        # Only then are the sockets all there are.
        self._accepting.join()
        for each in self._sockets:
            _shut(each)
        # The list grows while a thread on it starts the other direction.
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _run(self, function: Any, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        # Started first: whoever reads the list joins it.
        thread.start()
        self._threads.append(thread)
        return thread

    def _accept(self) -> None:
        while True:
            try:
                browser, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(browser)
            try:
                hub = socket.create_connection(("127.0.0.1", self._hub_port))
            except OSError:
                _shut(browser)
                continue
            self._sockets.add(hub)
            self._run(self._upward, browser, hub)

    def _upward(self, browser: socket.socket, hub: socket.socket) -> None:
        """Requests. The way back starts with the first one, so that it knows what it carries."""
        carried: list[CarriedStream] = []
        self._run(self._downward, browser, hub, carried)
        with contextlib.suppress(OSError):
            while data := browser.recv(_CHUNK_BYTES):
                if self._always is not None:
                    self.answered += 1
                    browser.sendall(self._always)
                    break
                if data.startswith(b"GET /cdc/ws"):
                    self.sockets_opened += 1
                    if not self._websockets:
                        break
                if data.startswith((b"GET /cdc/stream", b"GET /cdc/ws")):
                    stream = CarriedStream(data.decode(), (browser, hub), bytes_max=self._bytes_max)
                    self._bytes_max = None
                    carried.append(stream)
                    self.streams.append(stream)
                    self._flowing.wait()
                    if self._answer is not None:
                        browser.sendall(self._answer)
                        self._answer = None
                        break
                if not self._swallowing.is_set():
                    hub.sendall(data)
        _shut(browser)
        _shut(hub)

    def _downward(
        self, browser: socket.socket, hub: socket.socket, carried: list[CarriedStream]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := hub.recv(_CHUNK_BYTES):
                if self._swallowing.is_set() or self._deafening.is_set():
                    continue
                if carried:
                    stream = carried[-1]
                    if self._stall_before is not None and self._stall_before in data:
                        before = data.index(self._stall_before)
                        self._stall_before = None
                        browser.sendall(data[:before])
                        stream.answer += data[:before]
                        data = data[before:]
                        self.is_stalled = True
                        self._flowing.wait()
                    if stream.bytes_max is not None:
                        data = data[: stream.bytes_max - len(stream.answer)]
                    stream.answer += data
                    browser.sendall(data)
                    if len(stream.answer) == stream.bytes_max:
                        break
                else:
                    browser.sendall(data)
        _shut(browser)
        _shut(hub)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
