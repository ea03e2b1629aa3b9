"""Changes and notices as server-sent events: pure text (WHATWG HTML §9.2, "Server-sent events").

`id` is a position, so that a browser's own reconnection resumes. A block that has only an `id` moves
the browser's last event id and fires nothing (§9.2.6, dispatch); an empty `id` clears it. JSON never
holds a raw line feed, so one `data` line is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cdchub.fanout import Item
from cdchub.position import Epoch, Position

_encoder = msgspec.json.Encoder()


class SseFramer:
    """INTERFACE §3 as bytes. It has no state; one object serves all streams that want the same."""

    def __init__(self, *, heartbeat_s: float | None = None) -> None:
        """`heartbeat_s`: heartbeats are events, which say how often they come. A page hears nothing of
        the others, and so not that there are none any more."""
        self._heartbeat_s = heartbeat_s

    def changes(self, epoch: Epoch, items: Iterable[Item]) -> list[bytes]:
        prefix = b"id: %s:" % epoch.encode()
        return [b"%s%d\ndata: %s\n\n" % (prefix, lsn, data) for lsn, data in items]

    def changes_without_position(self, changes: Iterable[bytes]) -> bytes:
        return b"".join([b"data: %s\n\n" % data for data in changes])

    def opening(self, position: Position | None, *, retry_ms: int) -> bytes:
        opening = f": connected\nretry: {retry_ms}\n{_id_line(position)}\n".encode()
        return opening if self._heartbeat_s is None else opening + self.heartbeat(position)

    def heartbeat(self, position: Position | None) -> bytes:
        if self._heartbeat_s is None:
            return f": ping\n{_id_line(position)}\n".encode()
        shown = None if position is None else str(position)
        return _event("heartbeat", {"position": shown, "heartbeat": self._heartbeat_s}, id=shown)

    def transaction_end(self, position: Position) -> bytes:
        # An event, because a browser shows its page no id that comes without one.
        return _event("transaction-end", {"position": str(position)}, id=str(position))

    def caught_up(self, position: Position) -> bytes:
        return _event("caught-up", {"position": str(position)}, id=str(position))

    def reset(
        self,
        *,
        reason: str,
        tables: Iterable[str],
        position: Position,
        oldest: Position,
        resumable: bool,
    ) -> bytes:
        data = {
            "reason": reason,
            "tables": list(tables),
            "position": str(position),
            "oldest": str(oldest),
        }
        return _event("reset", data, id=str(position) if resumable else "")

    def snapshot_begin(self, position: Position, tables: Iterable[str]) -> bytes:
        data = {"position": str(position), "tables": list(tables)}
        # The empty id: whoever is cut before the last row must start the snapshot again.
        return _event("snapshot", data, id="")

    def snapshot_rows(self, lines: bytes) -> bytes:
        return b"data: " + lines[:-1].replace(b"\n", b"\n\ndata: ") + b"\n\n"

    def snapshot_end(self, position: Position) -> bytes:
        return f"id: {position}\n\n".encode()

    def closing(self, position: Position | None, *, retry_ms: int) -> bytes:
        return f"{_id_line(position)}retry: {retry_ms}\n\n".encode()

    def fault(self, *, code: str, message: str, retry_ms: int) -> bytes:
        return f"retry: {retry_ms}\n".encode() + _event("error", {"code": code, "message": message})


def refusal(*, code: str, message: str, retry_after_ms: int) -> bytes:
    """The whole body of a passing refusal: a native EventSource retries only after a 200."""
    data = {"code": code, "message": message, "retryAfterMs": retry_after_ms}
    return f"retry: {retry_after_ms}\n".encode() + _event("refused", data)


def _id_line(position: Position | None) -> str:
    return "" if position is None else f"id: {position}\n"


def _event(name: str, data: Mapping[str, object], *, id: str | None = None) -> bytes:
    id_line = b"" if id is None else f"id: {id}\n".encode()
    return b"%sevent: %s\ndata: %s\n\n" % (id_line, name.encode(), _encoder.encode(data))
