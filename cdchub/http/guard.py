"""Who may ask, before anything else is looked at: Host, Origin and CORS (INTERFACE §4).

A page on another site can make a browser send requests to a server on loopback, and with a DNS name
of its own that points there (DNS rebinding) even read the answers. So, bound to loopback, only
loopback names are answered; and a change is refused where its Origin is not the page's own host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdchub.errors import Forbidden
from cdchub.http.problem import ErrorPage, problem, wants_html, way_back

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_LOOPBACK_NAMES = {"localhost", "ip6-localhost"}
_PREFLIGHT_AGE_S = 600
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\s@/?#\[\]:]+)(?::(?P<port>\d{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[^/]+)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only (RFC 6761 §6.3, RFC 5735)."""
    name = host.strip("[]").lower()
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def split_host(text: str) -> tuple[str, int | None] | None:
    """Name and port of a `Host` value (RFC 9110 §7.2), or None where it is none."""
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    return found["name"].lower(), int(found["port"]) if found["port"] else None


class Guard:
    """ASGI middleware. `only_loopback`: the listener is bound to loopback."""

    def __init__(
        self,
        app: ASGIApp,
        page: ErrorPage,
        *,
        only_loopback: bool,
        allowed_hosts: Sequence[str],
        cors_origins: Sequence[str],
    ) -> None:
        self._app = app
        self._page = page
        self._only_loopback = only_loopback
        self._allowed_hosts = {host.lower() for host in allowed_hosts}
        self._cors_origins = {origin.rstrip("/") for origin in cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        listed = origin is not None and origin in self._cors_origins

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Nobody further in sets these; a list is what every stream's head costs the least with.
                more = _HEADERS_OF_CDC if "/cdc/" in scope["path"] else _HEADERS
                message["headers"] = [*message.get("headers", ()), *more]
                if listed:
                    _add_cors(MutableHeaders(scope=message), str(origin))
            await send(message)

        try:
            self._check_host(headers.get("host", ""))
            if _changes_something(scope, headers):
                self._check_origin(origin, headers.get("host", ""), listed=listed)
        except Forbidden as error:
            answer = problem(error)
            if scope["type"] == "http" and wants_html(Request(scope)):
                answer = self._page(error.status, error.detail, again=way_back(scope))
            await answer(scope, receive, send_with_headers)
            return
        if listed and scope["type"] == "http" and scope["method"] == "OPTIONS":
            await _preflight(send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check_host(self, host: str) -> None:
        if not self._only_loopback:
            return
        found = split_host(host)
        if found is not None and (is_loopback(found[0]) or found[0] in self._allowed_hosts):
            return
        if host.lower() not in self._allowed_hosts:
            raise Forbidden(
                f"this hub listens on loopback and doesn't answer to {host[:80]!r}; "
                "allow the name with --allow-host"
            )

    def _check_origin(self, origin: str | None, host: str, *, listed: bool) -> None:
        if origin is None or listed:
            return
        if not _same_host(origin, host):
            raise Forbidden(
                f"a page of {origin[:80]!r} may not change anything here; allow it with --cors-origin"
            )


def _changes_something(scope: Scope, headers: Headers) -> bool:
    """A WebSocket counts too: no CORS rule keeps a foreign page from reading it (RFC 6455 §10.2)."""
    if scope["type"] == "websocket" or headers.get("upgrade", "").lower() == "websocket":
        return True
    return scope["method"] not in _SAFE_METHODS


def is_origin(text: str) -> bool:
    """Whether `text` is a web origin: scheme, host and perhaps a port (RFC 6454 §6.1)."""
    found = _ORIGIN.fullmatch(text)
    return found is not None and split_host(found["host"]) is not None


def _same_host(origin: str, host: str) -> bool:
    """Whether an origin's host and port are those of a `Host` value; a missing port is the default."""
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None:
        return False
    theirs, ours = split_host(found["host"]), split_host(host)
    if theirs is None or ours is None:
        return False
    default = _DEFAULT_PORTS[found["scheme"]]
    return (theirs[0], theirs[1] or default) == (ours[0], ours[1] or default)


_HEADERS = [(b"x-content-type-options", b"nosniff")]
_HEADERS_OF_CDC = [(b"x-cdc-version", b"1"), *_HEADERS]


def _add_cors(answer: MutableHeaders, origin: str) -> None:
    answer["Access-Control-Allow-Origin"] = origin
    answer["Access-Control-Allow-Credentials"] = "true"
    answer["Access-Control-Expose-Headers"] = "X-CDC-Position, X-CDC-Version, Retry-After"
    answer.add_vary_header("Origin")


async def _preflight(send: Send) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": 204,
            "headers": [
                (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
                (b"access-control-allow-headers", b"content-type, last-event-id, authorization"),
                (b"access-control-max-age", str(_PREFLIGHT_AGE_S).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": b""})
