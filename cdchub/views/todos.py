"""The todo API. It writes rows and nothing else: the pages learn of them from the stream.

JSON in, JSON out; an HTML form gets a redirect back to the page (303), so that adding a todo works
without JavaScript too.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from cdchub.catalog import Catalog
from cdchub.change import SqliteValue
from cdchub.config import HttpConfig
from cdchub.errors import NotFound, PayloadTooLarge, Timeout, UnknownTable, ValidationFailed
from cdchub.writing import SourceWriter

TITLE_CHARS_MAX = 200
ID_CHARS_MAX = 64
POSITION_MAX = 2**53 - 1  # what JavaScript counts exactly
COLUMNS = ("id", "title", "completed", "position", "created_at", "updated_at")
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM todos"


class TodoApi:
    def __init__(
        self, writer: SourceWriter, config: HttpConfig, *, catalog: Callable[[], Catalog]
    ) -> None:
        self._writer = writer
        self._config = config
        self._catalog = catalog

    def missing(self) -> str | None:
        """What this database lacks for the todo page, in words for its reader; None if nothing."""
        try:
            table = self._catalog().find("todos")
        except UnknownTable:
            return "This database has no captured table called todos."
        have = {column.name for column in table.columns}
        lacking = [name for name in COLUMNS if name not in have]
        return f"The table todos lacks {', '.join(lacking)}." if lacking else None

    async def collection(self, request: Request) -> Response:
        """`GET` lists, `POST` adds: last and not completed, unless the body has its own place."""
        self._require_table()
        if request.method != "POST":
            rows = await self._writer.query(f"{_SELECT} ORDER BY position, created_at, id")
            return _json([_todo(row) for row in rows])
        body = await _body(request, self._config)
        title = _title(body)
        now_ms = _now_ms()
        identity = _identity(body)
        completed = _flag(body.get("completed", False))
        position = _position(body)
        async with self._writer.transaction() as tx:
            rows = await tx.execute(
                "INSERT INTO todos(id, title, completed, position, created_at, updated_at)"
                " VALUES (?, ?, ?, coalesce(?, (SELECT max(position) + 1 FROM todos), 0), ?, ?)"
                f" RETURNING {', '.join(COLUMNS)}",
                (identity, title, completed, position, now_ms, now_ms),
            )
        return _answer(request, _todo(rows[0]), 201)

    async def item(self, request: Request) -> Response:
        """`PATCH` changes title or completed, `DELETE` removes. A form's `POST` says which."""
        self._require_table()
        identity = request.path_params["id"]
        body = {} if request.method == "DELETE" else await _body(request, self._config)
        if request.method == "DELETE" or body.get("_method") == "DELETE":
            async with self._writer.transaction() as tx:
                gone = await tx.execute("DELETE FROM todos WHERE id = ? RETURNING id", (identity,))
            return _answer(request, {"id": _found(gone)[0]}, 200)
        changes: dict[str, SqliteValue] = {}
        if "title" in body:
            changes["title"] = _title(body)
        if "completed" in body:
            changes["completed"] = _flag(body["completed"])
        if not changes:
            raise ValidationFailed({"title": "Send title, completed, or both"})
        settings = ", ".join(f"{name} = ?" for name in changes)
        async with self._writer.transaction() as tx:
            rows = await tx.execute(
                f"UPDATE todos SET {settings}, updated_at = ? WHERE id = ?"
                f" RETURNING {', '.join(COLUMNS)}",
                (*changes.values(), _now_ms(), identity),
            )
        return _answer(request, _todo(_found(rows)), 200)

    async def reorder(self, request: Request) -> Response:
        """Sets all positions at once: `{"ids": [all ids, in order]}`."""
        self._require_table()
        body = await _body(request, self._config)
        ids = body.get("ids")
        if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
            raise ValidationFailed({"ids": "Send the ids of all todos, in order"})
        now_ms = _now_ms()
        async with self._writer.transaction() as tx:
            # A NULL id, which SQLite allows, can't be named; such a todo keeps its position.
            rows = await tx.execute("SELECT id FROM todos WHERE id IS NOT NULL")
            have = {row[0] for row in rows}
            if len(ids) != len(set(ids)) or set(ids) != have:
                raise ValidationFailed({"ids": "These are not the ids of all todos; load them again"})
            for position, identity in enumerate(ids):
                await tx.execute(
                    "UPDATE todos SET position = ?, updated_at = ? WHERE id = ? AND position <> ?",
                    (position, now_ms, identity, position),
                )
        return _answer(request, {"ids": ids}, 200)

    async def clear_completed(self, request: Request) -> Response:
        self._require_table()
        await _body(request, self._config)
        async with self._writer.transaction() as tx:
            rows = await tx.execute("DELETE FROM todos WHERE completed <> 0 RETURNING id")
        return _answer(request, {"deleted": len(rows)}, 200)

    def _require_table(self) -> None:
        missing = self.missing()
        if missing is not None:
            raise NotFound(missing)


async def _body(request: Request, config: HttpConfig) -> Mapping[str, Any]:
    """The request's JSON object, or its form. Raises `ValidationFailed` or `PayloadTooLarge`."""
    data = bytearray()
    try:
        async with asyncio.timeout(config.body_s_max):
            async for chunk in request.stream():
                data += chunk
                if len(data) > config.body_bytes_max:
                    raise PayloadTooLarge(f"at most {config.body_bytes_max} bytes are taken")
    except TimeoutError as error:
        raise Timeout("the request's body did not arrive in time") from error
    except ClientDisconnect as error:
        raise ValidationFailed({"body": "the request ended early"}) from error
    if _is_form(request):
        fields = parse_qs(data.decode("utf-8", "replace"), keep_blank_values=True)
        return {name: values[-1] for name, values in fields.items()}
    try:
        body = msgspec.json.decode(bytes(data)) if data else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValidationFailed({"body": f"this is not JSON: {error}"}) from error
    if not isinstance(body, dict):
        raise ValidationFailed({"body": "send a JSON object"})
    return body


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return kind.split(";")[0].strip().lower() == "application/x-www-form-urlencoded"


def _answer(request: Request, document: object, status: int) -> Response:
    if _is_form(request):
        return RedirectResponse("/todos", 303)
    return _json(document, status)


def _json(document: object, status: int = 200) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(document), status, headers, "application/json")


def _todo(row: Sequence[Any]) -> dict[str, Any]:
    todo = dict(zip(COLUMNS, row, strict=True))
    todo["completed"] = bool(todo["completed"])
    return todo


def _title(body: Mapping[str, Any]) -> str:
    title = body.get("title")
    title = title.strip() if isinstance(title, str) else ""
    if not title:
        raise ValidationFailed({"title": "Title is required"})
    if len(title) > TITLE_CHARS_MAX:
        raise ValidationFailed({"title": f"Title has more than {TITLE_CHARS_MAX} characters"})
    if any("\ud800" <= char <= "\udfff" for char in title):
        raise ValidationFailed({"title": "Title is not valid Unicode"})
    return title


def _identity(body: Mapping[str, Any]) -> str:
    """The client's own id, so that it recognises its todo in the stream, or a new one."""
    identity = body.get("id")
    if identity is None:
        return str(uuid.uuid4())
    if not isinstance(identity, str) or not 1 <= len(identity) <= ID_CHARS_MAX:
        raise ValidationFailed({"id": f"An id has 1 to {ID_CHARS_MAX} characters"})
    return identity


def _position(body: Mapping[str, Any]) -> int | None:
    """Where a todo comes back to that somebody deleted by mistake; None is the end."""
    position = body.get("position")
    if position is None or (type(position) is int and abs(position) <= POSITION_MAX):
        return position
    raise ValidationFailed({"position": "position is a whole number"})


def _flag(value: object) -> int:
    if value in (True, "1", "true", "on"):
        return 1
    if value in (False, "0", "false", "off"):
        return 0
    raise ValidationFailed({"completed": "completed is true or false"})


def _found(rows: Sequence[Sequence[Any]]) -> Sequence[Any]:
    if not rows:
        raise NotFound("there is no such todo; somebody may have deleted it")
    return rows[0]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
