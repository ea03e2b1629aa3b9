"""The Python client of a hub: one stream of events that reconnects and resumes by itself.

It keeps the last event id as a browser does, sends it when it comes back, waits as long as the hub's
`retry` says, and takes silence for a broken connection: a hub sends a heartbeat every 15 s.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from cdchub.errors import CdchubError
from cdchub.sse import Event, EventParser

_READ_BYTES = 256 * 2**10
# Three heartbeats of 15 s: a line that is quiet for so long is dead (INTERFACE §3).
_SILENCE_S = 45.0
_RETRY_FIRST_MS = 1_000


class HubRefused(CdchubError):
    """The hub won't serve this request as it is: `code` and `status` say why (INTERFACE §4)."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code


class HubUnreachable(CdchubError):
    """Nobody answers at this address."""

    retryable = True


class Client:
    """A connection to a hub at `url`, to be used as an async context manager.

    `timeout_s` bounds every connection attempt and every request that is not a stream.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self._url = url.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=_SILENCE_S)
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=timeout, read_bufsize=_READ_BYTES
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> dict[str, Any]:
        """What `/cdc/status` says. Raises `HubRefused` or `HubUnreachable`."""
        return msgspec.json.decode(await self._get("/cdc/status", []))  # type: ignore[no-any-return]

    async def tables(self) -> list[dict[str, Any]]:
        """What `/cdc/tables` says. Raises `HubRefused` or `HubUnreachable`."""
        return msgspec.json.decode(await self._get("/cdc/tables", []))  # type: ignore[no-any-return]

    async def snapshot(
        self,
        table: str,
        *,
        room: str | None = None,
        filters: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> tuple[str, list[bytes]]:
        """The present rows of one table as JSON lines, and their position.

        Raises `HubRefused` or `HubUnreachable`.
        """
        parameters = _parameters([table], room=room, filters=filters, columns=columns)
        body = await self._get("/cdc/snapshot", parameters, accept="application/x-ndjson")
        head, *rows = body.splitlines()
        return str(msgspec.json.decode(head)["position"]), rows

    async def _get(
        self, path: str, parameters: Sequence[tuple[str, str]], *, accept: str = "application/json"
    ) -> bytes:
        assert self._session is not None, "use the client as an async context manager"
        bound = aiohttp.ClientTimeout(total=self._timeout_s)
        request = self._session.get(
            f"{self._url}{path}", params=parameters, headers={"Accept": accept}, timeout=bound
        )
        try:
            async with request as response:
                await _check(response)
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise HubUnreachable(f"{self._url}: {error or type(error).__name__}") from error

    async def stream(
        self,
        *tables: str,
        room: str | None = None,
        since: str | None = None,
        snapshot: bool = False,
        filters: Sequence[str] = (),
        columns: Sequence[str] = (),
        conflate: bool = False,
    ) -> AsyncIterator[dict[str, Any]]:
        """Changes as INTERFACE §2 shows them, without end. Raises `HubRefused`.

        `filters` are such as `"completed=eq.0"`, all of which must hold; `conflate`: while this reader
        lags, only the last state of each key. A `reset` without `snapshot` is passed over here: use
        `events` to see it.
        """
        events = self.events(
            tables,
            room=room,
            since=since,
            snapshot=snapshot,
            filters=filters,
            columns=columns,
            conflate=conflate,
        )
        async for event in events:
            if event.name == "message":
                yield msgspec.json.decode(event.data)

    async def events(
        self,
        tables: Sequence[str],
        *,
        room: str | None = None,
        since: str | None = None,
        snapshot: bool = False,
        filters: Sequence[str] = (),
        columns: Sequence[str] = (),
        conflate: bool = False,
        format: str | None = None,
        follow: bool = True,
        positions: bool = False,
    ) -> AsyncIterator[Event]:
        """Every event of the stream, also `snapshot`, `reset` and `caught-up`.

        `positions`: also an event `position` without data whenever something has arrived, be it a
        heartbeat.

        With `follow=False` it ends at the first `caught-up`, and a broken connection is an error
        (`HubUnreachable`). Raises `HubRefused` for what a retry won't mend.
        """
        parameters = _parameters(tables or ("*",), room=room, filters=filters, columns=columns)
        parameters += [("since", since)] if since is not None else []
        parameters += [("snapshot", "1")] if snapshot else []
        parameters += [("conflate", "1")] if conflate else []
        parameters += [("format", format)] if format is not None else []
        parser = EventParser()
        while True:
            try:
                async for event in self._connection(parameters, parser):
                    if positions or event.name != "position":
                        yield event
                    if event.name == "caught-up" and not follow:
                        return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not follow:
                    raise HubUnreachable(f"{self._url}: {error or type(error).__name__}") from error
            retry_ms = parser.retry_ms if parser.retry_ms is not None else _RETRY_FIRST_MS
            await asyncio.sleep(retry_ms / 1000 * random.uniform(0.5, 1.0))
            # What was cut off in mid-event is not part of the next connection.
            retry_ms_known, parser = parser.retry_ms, EventParser(parser.last_id)
            parser.retry_ms = retry_ms_known

    async def _connection(
        self, parameters: list[tuple[str, str]], parser: EventParser
    ) -> AsyncIterator[Event]:
        assert self._session is not None, "use the client as an async context manager"
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if parser.last_id:
            headers["Last-Event-ID"] = parser.last_id
        url = f"{self._url}/cdc/stream"
        async with self._session.get(url, params=parameters, headers=headers) as response:
            await _check(response)
            async for chunk in response.content.iter_any():
                for event in parser.feed(chunk):
                    yield event
                yield Event("position", "", parser.last_id)


def _parameters(
    tables: Sequence[str], *, room: str | None, filters: Sequence[str], columns: Sequence[str]
) -> list[tuple[str, str]]:
    parameters = [("table", table) for table in tables]
    parameters += [("room", room)] if room is not None else []
    parameters += [("filter", text) for text in filters]
    parameters += [("columns", name) for name in columns]
    return parameters


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raises `HubRefused` for a lasting refusal; a passing one is an error to retry after."""
    if response.status == 200:
        return
    body = await response.read()
    try:
        problem = msgspec.json.decode(body)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (msgspec.DecodeError, KeyError, TypeError):
        code, detail = "not_a_hub", f"{response.url} answered {response.status}, which is no hub's"
    if response.status in (429, 502, 503, 504):
        response.raise_for_status()
    raise HubRefused(response.status, code, detail)
