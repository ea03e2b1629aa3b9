"""HTTP around a hub: the one place where routes, middleware and the hub's parts meet."""

from __future__ import annotations

import inspect
import os

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from cdchub import views
from cdchub.errors import CdchubError, Overloaded, RequestError, Unauthorized
from cdchub.fanout import Core
from cdchub.http import (
    BodyFirst,
    Endpoints,
    Faults,
    Guard,
    from_http_exception,
    is_loopback,
    problem,
    wants_html,
)
from cdchub.hub import Authenticate, Hub
from cdchub.sse import StreamEndpoint
from cdchub.ws import USER, WebSocketEndpoint, refuse_unauthorized


def create_app(hub: Hub, *, drains: bool = False, embedded: bool = False) -> Starlette:
    """The ASGI application of a running hub. It has no lifespan: the hub's owner starts and ends it.

    `drains`: that owner ends the open streams too (`Core.drain`) before its server stops.
    `embedded`: the listener is somebody else's, so which hosts it answers to is too.
    """
    config = hub.config
    endpoints = Endpoints(
        hub.core,
        config.http,
        snapshots=hub.spools,
        status=hub.status,
        failing=lambda: hub.failing,
    )
    todos = views.TodoApi(hub.writer, config.http, catalog=lambda: hub.core.present.catalog)
    dashboard = views.DashboardApi(
        catalog=lambda: hub.core.present.catalog,
        time_zone=views.local_time_zone(os.environ.get("TZ")),
    )
    socket = WebSocketEndpoint(hub.core, hub.rooms, hub.messages, config)
    cdc = [
        # First, because a crowd of them may come at once.
        Route("/stream", StreamEndpoint(hub.core, config.stream, drains=drains), methods=["GET"]),
        Route("/ws", socket, methods=["GET"]),
        WebSocketRoute("/ws", socket),
        Route("/changes", endpoints.changes),
        Route("/snapshot", endpoints.snapshot),
        Route("/tables", endpoints.tables),
        Route("/status", endpoints.status),
        Route("/client.js", views.client_library),
    ]
    return Starlette(
        routes=[
            # /cdc is version 1 of the protocol; the alias is for apps that keep all under /api.
            Mount("/cdc", routes=cdc),
            Mount("/api/cdc", routes=cdc),
            Route("/t/{tenant}/cdc/{rest:path}", endpoints.not_implemented),
            Route("/healthz", endpoints.healthz),
            Route("/readyz", endpoints.readyz),
            *views.routes(todos, dashboard),
        ],
        middleware=[
            Middleware(BodyFirst, outcomes=hub.core.outcomes, s_max=config.http.body_s_max),
            Middleware(
                Guard,
                page=views.error_page,
                only_loopback=is_loopback(config.http.host) and not embedded,
                allowed_hosts=config.http.allowed_hosts,
                cors_origins=config.http.cors_origins,
            ),
            Middleware(Faults, page=views.error_page),
        ],
        exception_handlers={RequestError: _request_error, HTTPException: _http_error},
    )


def mounted(hub: Hub, authenticate: Authenticate | None) -> ASGIApp:
    """`Hub.asgi`: the application of whatever run of the hub is going on."""
    present: tuple[Core, Starlette] | None = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal present
        if scope["type"] == "lifespan":
            await _lifespan(hub, receive, send)
            return
        core = hub.running_core
        if core is None:
            await problem(Overloaded("the hub is not running now"))(scope, receive, send)
            return
        if authenticate is not None:
            # A WebSocket begins with a GET, and so it is shown.
            user = authenticate(Request({"method": "GET", **scope, "type": "http"}, receive))
            if inspect.isawaitable(user):
                user = await user
            if user is None and scope["type"] == "websocket":
                await refuse_unauthorized(receive, send)
                return
            if user is None:
                await problem(Unauthorized("this needs a credential"))(scope, receive, send)
                return
            scope[USER] = user
        if present is None or present[0] is not core:
            present = (core, create_app(hub, embedded=True))
        await present[1](scope, receive, send)

    return app


async def _lifespan(hub: Hub, receive: Receive, send: Send) -> None:
    """The hub lives as long as the server (ASGI lifespan protocol 2.0)."""
    await receive()
    try:
        await hub.__aenter__()
    except CdchubError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await hub.drain()
    await hub.__aexit__(None, None, None)
    await send({"type": "lifespan.shutdown.complete"})


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    # A form that a person sent; /cdc is for programs, whatever they accept.
    if request.scope.get("method") == "POST" and wants_html(request):
        return views.error_page(error.status, error.detail, again="/todos")
    return problem(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = from_http_exception(error)
    page = views.error_page(known.status, known.detail)
    response = page if wants_html(request) else problem(known)
    # A 405 names the methods that are allowed (RFC 9110 §15.5.6).
    response.headers.update(error.headers or {})
    return response
