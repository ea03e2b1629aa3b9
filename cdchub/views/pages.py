"""The pages themselves: static files beside this module, and the pages that errors get."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cdchub.views.dashboard import DashboardApi
from cdchub.views.todos import TodoApi

STATIC = Path(__file__).parent / "static"

# Everything a page needs comes from this hub; nothing inline, nothing from elsewhere.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    # Not "no-referrer": a form would then be sent with `Origin: null`, which the guard refuses.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def routes(todos: TodoApi, dashboard: DashboardApi) -> Sequence[BaseRoute]:
    return [
        Route("/", _page("index.html")),
        Route("/todos", _page("todos.html")),
        Route("/dashboard", _page("dashboard.html")),
        Route("/api/dashboard", dashboard.settings),
        Route("/chat", _page("chat.html")),
        Route("/console", _page("console.html")),
        Route("/api/todos", todos.collection, methods=["GET", "POST"]),
        Route("/api/todos/reorder", todos.reorder, methods=["POST"]),
        Route("/api/todos/clear-completed", todos.clear_completed, methods=["POST"]),
        Route("/api/todos/{id:path}", todos.item, methods=["PATCH", "DELETE", "POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return FileResponse(STATIC / name, headers=_HEADERS)

    return page


_STATIC_FILES = StaticFiles(directory=STATIC)


async def client_library(request: Request) -> Response:
    """The browser library. Its address has no version, so a browser asks each time whether its copy
    is the present one."""
    response = await _STATIC_FILES.get_response("client.js", request.scope)
    response.headers["Cache-Control"] = "no-cache"
    if response.status_code == 200:
        # What a system calls .js differs, and browsers refuse a module that is called otherwise.
        response.headers["Content-Type"] = "text/javascript; charset=utf-8"
    return response


def error_page(status: int, explanation: str, *, again: str = "") -> Response:
    """What a person's browser gets for an error: what happened, and the way on.

    `again` is where "Try again" leads, by default to the same address.
    """
    heading = {404: "Not found"}.get(status, "That didn't work")
    if status >= 500:
        heading = "Something went wrong"
    # The same request would meet a 404 or a 405 again.
    home = status in (404, 405)
    way_on = '<a href="/">Go home</a>' if home else f'<a href="{html.escape(again)}">Try again</a>'
    sentence = explanation[:1].upper() + explanation[1:]
    if sentence[-1:] not in ".!?":
        sentence += "."
    body = _ERROR.format(heading=heading, explanation=html.escape(sentence), way_on=way_on)
    return HTMLResponse(body, status, _HEADERS)


_ERROR = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>{heading} - cdchub</title>
  <link rel="icon" href="/static/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/static/app.css">
  <script src="/static/theme.js"></script>
</head>
<body>
  <header class="site">
    <a class="brand" href="/"><img src="/static/icon.svg" alt="" width="24" height="24">cdchub</a>
    <nav class="nav" aria-label="Pages">
      <a href="/todos">Todos</a>
      <a href="/dashboard">Dashboard</a>
      <a href="/chat">Chat</a>
      <a href="/console">Console</a>
    </nav>
  </header>
  <main class="column"><h1>{heading}</h1><p>{explanation}</p><p>{way_on}</p></main>
</body>
</html>
"""
