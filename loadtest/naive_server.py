"""The hub that one writes in an afternoon: sse-starlette, and one asyncio.Queue a subscriber.

A peer of `loadtest.compare`. POST /publish sends the body to everyone who has GET /stream open.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_queues: set[asyncio.Queue[str]] = set()


async def stream(_request: Request) -> Response:
    queue: asyncio.Queue[str] = asyncio.Queue()
    # Before the answer begins: whoever has its head misses nothing.
    _queues.add(queue)

    async def events() -> AsyncIterator[dict[str, str]]:
        try:
            while True:
                yield {"data": await queue.get()}
        finally:
            _queues.discard(queue)

    return EventSourceResponse(events())


async def publish(request: Request) -> Response:
    text = (await request.body()).decode()
    for queue in _queues:
        queue.put_nowait(text)
    return Response(status_code=204)


app = Starlette(routes=[Route("/stream", stream), Route("/publish", publish, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=4096,
        loop="uvloop",
        http="httptools",
        log_level="warning",
    )
