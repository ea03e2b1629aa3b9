"""The JSON endpoints under `/cdc`: changes, snapshot, tables and status; and the health checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cdchub.catalog import Selection, SnapshotFormat
from cdchub.change import ChangeType, Entry
from cdchub.config import HttpConfig
from cdchub.errors import (
    NotImplementedYet,
    Overloaded,
    PositionGone,
    ValidationFailed,
)
from cdchub.fanout import Core, EntryRows, Format, Gone, Matcher, SnapshotStream, encode, resolve
from cdchub.log.protocol import Cursor
from cdchub.position import Beginning, Position, parse_since

NDJSON = "application/x-ndjson"
CSV = "text/csv"
_NO_STORE = {"Cache-Control": "no-store"}
_PAGE_BYTES_MAX = 4 * 2**20
# Entries that are read in one go, however few of them are wanted: a filter may match few.
_READ_ROWS = 1_000
# Entries that one request looks at, half a second's work; `next` says how far that was.
_LOOKED_AT_MAX = 100_000

_encoder = msgspec.json.Encoder()


class SnapshotSource(Protocol):
    def open(
        self, selection: Selection, format: SnapshotFormat, *, at_least_lsn: int
    ) -> AbstractAsyncContextManager[SnapshotStream]: ...


class Endpoints:
    def __init__(
        self,
        core: Core,
        config: HttpConfig,
        *,
        snapshots: SnapshotSource,
        status: Callable[[], Mapping[str, object]],
        failing: Callable[[], str | None],
    ) -> None:
        self._core = core
        self._present = core.present
        self._config = config
        self._snapshots = snapshots
        self._status = status
        self._failing = failing
        self._long_polls = 0

    # GET /cdc/changes

    async def changes(self, request: Request) -> Response:
        selection = self._selection(request)
        limit = _number(request, "limit", self._config.limit_default, minimum=1)
        limit = int(min(limit, self._config.limit_max))
        wait_s = min(_number(request, "wait", 0, minimum=0), self._config.wait_s_max)
        query = request.query_params
        text = query.get("since", query.get("startLSN"))
        since = Beginning() if text is None else parse_since(text)
        # Taken before anything is awaited: a change that comes meanwhile ends the wait at once.
        head = self._present.head
        start = resolve(since, self._present.view)
        deadline_s = asyncio.get_running_loop().time() + wait_s
        while True:
            if isinstance(start, Gone):
                raise self._gone(start.reason, selection)
            found, scanned, has_more = await self._collect(start, selection, limit)
            left_s = deadline_s - asyncio.get_running_loop().time()
            if found or has_more or left_s <= 0 or self._core.draining:
                return self._page(request, scanned, found)
            start = scanned
            await self._long_poll(head, left_s)
            head = self._present.head

    async def _collect(
        self, start: Cursor, selection: Selection, limit: int
    ) -> tuple[list[bytes], Cursor, bool]:
        """Up to `limit` matching changes after `start`, how far that scanned, and whether it stopped
        before all was scanned."""
        matcher = Matcher(selection, self._present.catalog)
        found: list[bytes] = []
        sparse = bool(selection.conditions) or selection.room is not None
        size, looked_at, cursor = 0, 0, start
        while len(found) < limit and size < _PAGE_BYTES_MAX and looked_at < _LOOKED_AT_MAX:
            left = limit - len(found)
            page = await self._present.page(
                cursor,
                matcher.narrowing(),
                rows_max=max(left, _READ_ROWS) if sparse else left,
                bytes_max=_PAGE_BYTES_MAX,
            )
            if isinstance(page, Gone):
                if found or cursor != start:
                    return found, cursor, True
                raise self._gone(page.reason, selection)
            data, stopped_at = _matching(page.entries, matcher, left)
            found += data
            looked_at += len(page.entries)
            size += sum(map(len, data))
            if stopped_at is not None and stopped_at.type is ChangeType.BREAK:
                if not found:
                    at = Cursor(cursor.epoch, stopped_at.lsn)
                    raise self._gone("schema", selection, (stopped_at.table,), at)
                return found, Cursor(cursor.epoch, stopped_at.lsn - 1), True
            if stopped_at is not None:
                return found, Cursor(cursor.epoch, stopped_at.lsn), True
            if page.scanned_to == cursor.lsn:
                return found, cursor, False
            cursor = Cursor(cursor.epoch, page.scanned_to)
        return found, cursor, True

    async def _long_poll(self, head: Position, timeout_s: float) -> None:
        if self._long_polls >= self._config.long_polls_max:
            raise Overloaded("too many requests are waiting already")
        self._long_polls += 1
        try:
            await self._present.wait_beyond(head, timeout_s)
        finally:
            self._long_polls -= 1

    def _page(self, request: Request, scanned: Cursor, found: list[bytes]) -> Response:
        position = self._present.position(scanned)
        if position is None:
            raise PositionGone(
                "epoch", tables=(), position=str(self._present.head), oldest=str(self._present.oldest)
            )
        headers = {**_NO_STORE, "X-CDC-Position": str(position)}
        format = Format.asked_for(request.query_params.get("format"))
        found = [encode(format, position.epoch, data) for data in found]
        if NDJSON in request.headers.get("accept", ""):
            body = b"".join(line + b"\n" for line in found)
            return Response(body, media_type=NDJSON, headers=headers)
        document = {
            "epoch": position.epoch,
            "changes": [msgspec.Raw(data) for data in found],
            "next": str(position),
            "head": str(self._present.head),
            "upToDate": position == self._present.head,
        }
        return Response(_encoder.encode(document), media_type="application/json", headers=headers)

    def _gone(
        self,
        reason: str,
        selection: Selection,
        tables: Sequence[str] | None = None,
        at: Cursor | None = None,
    ) -> PositionGone:
        position = (at and self._present.position(at)) or self._present.head
        named = tables or [table.name for table in self._present.catalog.chosen(selection)]
        return PositionGone(
            reason, tables=named, position=str(position), oldest=str(self._present.oldest)
        )

    # GET /cdc/snapshot

    async def snapshot(self, request: Request) -> Response:
        selection = self._selection(request)
        if selection.tables is None or len(selection.tables) != 1:
            raise ValidationFailed({"table": "a snapshot request names exactly one table"})
        accept = request.headers.get("accept", "")
        if CSV in accept:
            media, format = CSV, SnapshotFormat.CSV
        else:
            media = NDJSON if NDJSON in accept else "application/json"
            format = SnapshotFormat.ROWS
        stack = AsyncExitStack()
        # Whoever comes here after a reset must not be shown less than the reset's own position.
        opened = self._snapshots.open(selection, format, at_least_lsn=self._present.head.lsn)
        snapshot = await stack.enter_async_context(opened)
        self._present.saw(snapshot.cursor)
        position = self._present.position(snapshot.cursor) or self._present.head
        return _SnapshotResponse(stack, snapshot, position, selection.tables[0], media)

    # The small ones.

    async def tables(self, request: Request) -> Response:
        return _json(
            [
                {
                    "table": table.name,
                    "key": list(table.key),
                    "room": table.room,
                    "columns": [{"name": c.name, "type": c.type} for c in table.columns],
                }
                for table in self._present.catalog.tables
            ]
        )

    async def status(self, request: Request) -> Response:
        return _json(self._status())

    async def healthz(self, request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        failing = self._failing()
        if self._core.draining:
            return _json({"status": "draining"}, 503)
        if failing is not None:
            return _json({"status": "failing", "error": failing}, 503)
        return _json({"status": "ready"})

    async def not_implemented(self, request: Request) -> Response:
        raise NotImplementedYet(request.url.path)

    def _selection(self, request: Request) -> Selection:
        query = request.query_params
        if "source" in query:
            raise NotImplementedYet("source=")
        return self._present.catalog.asked_for(query)


def _matching(
    entries: Sequence[Entry], matcher: Matcher, limit: int
) -> tuple[list[bytes], Entry | None]:
    """Up to `limit` matching changes, and the entry that ended that before the last one: a break of a
    covered table, or the change that filled the limit."""
    found: list[bytes] = []
    for entry in entries:
        if entry.type is ChangeType.BREAK:
            if matcher.covers(entry.table):
                return found, entry
        elif (data := matcher.data(EntryRows(entry))) is not None:
            found.append(data)
            if len(found) == limit and entry is not entries[-1]:
                return found, entry
    return found, None


class _SnapshotResponse(StreamingResponse):
    """A spool on its way to one client; the spool is let go however the response ends."""

    def __init__(
        self,
        stack: AsyncExitStack,
        snapshot: SnapshotStream,
        position: Position,
        table: str,
        media: str,
    ) -> None:
        headers = {**_NO_STORE, "X-CDC-Position": str(position)}
        body = _snapshot_body(snapshot, position, table, media)
        super().__init__(body, media_type=media, headers=headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def _snapshot_body(
    snapshot: SnapshotStream, position: Position, table: str, media: str
) -> AsyncIterator[bytes]:
    """The rows in the form that was asked for, a chunk at a time."""
    head = {"epoch": position.epoch, "lsn": position.lsn, "position": str(position), "table": table}
    if media == "application/json":
        yield _encoder.encode(head)[:-1] + b',"rows":['
        comma = b""
        async for lines in snapshot.lines():
            yield comma + lines[:-1].replace(b"\n", b",")
            comma = b","
        yield b"]}"
        return
    if media == NDJSON:
        yield _encoder.encode(head) + b"\n"
    async for lines in snapshot.lines():
        yield lines


def _json(document: object, status: int = 200) -> Response:
    return Response(_encoder.encode(document), status, _NO_STORE, "application/json")


def _number(request: Request, name: str, default: float, *, minimum: float) -> float:
    """A number from the query. Raises `ValidationFailed`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = minimum - 1
    if not number >= minimum:
        raise ValidationFailed({name: f"{name} must be a number of at least {minimum:g}"})
    return number
