"""Reading an event stream, as a browser does it (WHATWG HTML §9.2.6). Pure: bytes in, events out."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

# A line longer than this is no change of ours, and must not fill the memory.
LINE_BYTES_MAX = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event. `last_id` is the last event id as it stands after it."""

    name: str
    data: str
    last_id: str


class StreamTooWide(Exception):
    """A line has no end within `LINE_BYTES_MAX`: this is no event stream of ours."""


class EventParser:
    """Feeds on bytes cut anywhere. `last_id` also moves by blocks that dispatch nothing."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._first = True
        self._after_cr = False
        self._name = ""
        self._data: list[str] = []
        self._id = last_id

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. Raises `StreamTooWide`."""
        text = self._decoder.decode(data)
        if self._first and text:
            text = text.removeprefix("\ufeff")
            self._first = False
        if self._after_cr and text:
            # A CR LF pair that was cut in two is one line end.
            text = text.removeprefix("\n")
            self._after_cr = False
        if text.endswith("\r"):
            self._after_cr = True
        lines = (self._rest + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES_MAX:
            raise StreamTooWide
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)
            case _:
                pass  # a comment, or a field that nobody knows
        return None

    def _dispatch(self) -> Event | None:
        self.last_id = self._id
        name, self._name = self._name, ""
        data, self._data = self._data, []
        if not data:
            return None
        return Event(name or "message", "\n".join(data), self.last_id)
