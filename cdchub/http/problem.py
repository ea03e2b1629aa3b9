"""Errors as RFC 9457 problem documents with the stable codes of INTERFACE §4."""

from __future__ import annotations

import logging
import secrets
from typing import Protocol

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdchub.errors import (
    InternalError,
    MethodNotAllowed,
    NotFound,
    PassingRefusal,
    PositionGone,
    RequestError,
)

logger = logging.getLogger("cdchub.http")

MEDIA_TYPE = "application/problem+json"


def problem(error: RequestError) -> Response:
    """The answer to a request that can't be served."""
    code = error.gone_code if isinstance(error, PositionGone) else error.code
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, PassingRefusal):
        headers["Retry-After"] = str(max(1, -(-error.retry_after_ms // 1000)))
    return _document(error.status, code, error.title, error.detail, dict(error.fields), headers)


def internal(error: Exception) -> tuple[Response, str]:
    """The answer to a request that met a fault of the hub, and the id under which the log has it."""
    fault = InternalError(secrets.token_hex(4))
    logger.error("request failed with error %s", fault.error_id, exc_info=error)
    detail = "the hub failed at this request; its log says why under this errorId"
    fields: dict[str, object] = {"errorId": fault.error_id}
    return _document(500, "internal", "Internal error", detail, fields, {}), fault.error_id


class ErrorPage(Protocol):
    """Makes the page for a person's browser."""

    def __call__(self, status: int, explanation: str, *, again: str = "") -> Response: ...


def way_back(scope: Scope) -> str:
    """Where a person tries again: a form's address answers no GET with a page."""
    return "/todos" if scope.get("method") == "POST" else ""


class Faults:
    """ASGI middleware: an exception that nobody expected becomes a 500 with an `errorId`."""

    def __init__(self, app: ASGIApp, page: ErrorPage) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception as error:
            response, error_id = internal(error)
            if scope["type"] != "http" or started:
                raise
            if wants_html(Request(scope)):
                told = f"the hub failed at this request; its log says why under error {error_id}"
                response = self._page(500, told, again=way_back(scope))
            await response(scope, receive, send)


def from_http_exception(error: HTTPException) -> RequestError:
    """Starlette's own 404 and 405 in our words."""
    if error.status_code == 405:
        return MethodNotAllowed("this path doesn't take that method")
    return NotFound("there is nothing at this path")


def wants_html(request: Request) -> bool:
    """Whether a person's browser asks, which gets a page instead of a problem document."""
    return "text/html" in request.headers.get("accept", "")


def _document(
    status: int,
    code: str,
    title: str,
    detail: str,
    fields: dict[str, object],
    headers: dict[str, str],
) -> Response:
    body = {"title": title, "status": status, "code": code, "detail": detail, **fields}
    return Response(msgspec.json.encode(body), status, headers, MEDIA_TYPE)
