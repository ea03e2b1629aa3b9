"""Locust's users: readers over SSE and WebSocket that check every LSN, and a writer of the database.

The database has one table and the streams no filter, so every reader must see every LSN from its first
one on, once and in order, also over connections that it cuts itself. Whatever else comes is a failure
in Locust's statistics, and makes `make loadtest` fail. `commit to receive` counts from the moment when
a row's commit was due to the moment when a reader had its event: the clock is the machine's own, so
hub, writer and Locust have to run on one machine.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, ClassVar
from urllib.parse import urlsplit

from locust import User, constant, task
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from loadtest.row_writer import MARKER, STAMP_DIGITS
from loadtest.wire import PATIENCE_S, EventReader

PATH = "/cdc/stream?table=bench"
RECEIVED = "commit to receive"
_STAMP = MARKER.decode()
# A reader that was refused comes back after so long at most; a browser would wait 5 s ± 50 %.
RETRY_S = 1.0


class StreamFaultError(Exception):
    """A reader has seen what the contract excludes."""


class Measured(User):
    """A user that reports to Locust by itself; Locust knows no event streams."""

    abstract = True
    transport: ClassVar[str]
    wait_time = constant(0)

    def report(
        self, kind: str, name: str, ms: float, size: int = 0, fault: Exception | None = None
    ) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=ms,
            response_length=size,
            exception=fault,
            context={},
        )

    def fault(self, name: str, reason: str) -> None:
        self.report(self.transport, name, 0, fault=StreamFaultError(reason))

    @property
    def options(self) -> Any:
        return self.environment.parsed_options


class Reader(Measured):
    """It comes back where it was cut, and keeps account of the LSNs."""

    abstract = True

    def on_start(self) -> None:
        self._last_id = ""
        # The last LSN seen; None before the first.
        self._lsn: int | None = None

    @task
    def read(self) -> None:
        """One connection, until it is cut by us or by the hub."""
        cut_at_s = time.monotonic() + random.expovariate(1 / self.options.cut_every_s)
        began_s = time.monotonic()
        try:
            for _ in self.connection(cut_at_s):
                name = "resume" if self._last_id else "connect"
                self.report(self.transport, name, 1e3 * (time.monotonic() - began_s))
        except (OSError, http.client.HTTPException, WebSocketException) as error:
            ms = 1e3 * (time.monotonic() - began_s)
            self.report(self.transport, "connect", ms, fault=error)
            # Everybody fails together when the hub is down; so they don't come back together.
            time.sleep(random.uniform(0, RETRY_S))

    def connection(self, cut_at_s: float) -> Iterator[None]:
        """Yields once, when it is open; then reads until it is cut."""
        raise NotImplementedError

    def caught_up(self, position: str) -> None:
        lsn = _lsn_of(position)
        if self._lsn is not None and lsn != self._lsn:
            self.fault("gap", f"caught up at {lsn}, but the last was {self._lsn}")
        self._lsn = lsn

    def arrive(self, position: str, data: str, now_ns: int) -> None:
        lsn = _lsn_of(position)
        if self._lsn is not None and lsn != self._lsn + 1:
            kind = "gap" if lsn > self._lsn else "repeat" if lsn == self._lsn else "disorder"
            self.fault(kind, f"LSN {lsn} came after {self._lsn}")
        self._lsn = lsn
        at = data.find(_STAMP) + len(_STAMP)
        late_ns = now_ns - int(data[at : at + STAMP_DIGITS])
        self.report(self.transport, RECEIVED, late_ns / 1e6, len(data))


class SseReader(Reader):
    """An EventSource."""

    transport = "SSE"

    def connection(self, cut_at_s: float) -> Iterator[None]:
        address = urlsplit(self.host)
        connection = http.client.HTTPConnection(
            address.hostname or "", address.port, timeout=PATIENCE_S
        )
        reader = EventReader(self._last_id)
        try:
            headers = {"Accept": "text/event-stream"}
            if self._last_id:
                headers["Last-Event-ID"] = self._last_id
            connection.request("GET", PATH, headers=headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise http.client.HTTPException(f"the hub answered {response.status}")
            yield
            while time.monotonic() < cut_at_s and (data := response.read1(65_536)):
                now_ns = time.monotonic_ns()
                for event in reader.feed(data):
                    match event.name:
                        case "message":
                            self.arrive(event.last_id, event.data, now_ns)
                        case "caught-up":
                            self.caught_up(json.loads(event.data)["position"])
                        case other:
                            self.fault("unexpected event", f"{other}: {event.data[:200]}")
                self._last_id = reader.last_id
        finally:
            connection.close()


class WsReader(Reader):
    """A subscription over WebSocket."""

    transport = "WebSocket"

    def connection(self, cut_at_s: float) -> Iterator[None]:
        request = {"type": "subscribe", "sub": "bench", "table": "bench"}
        if self._last_id:
            request["since"] = self._last_id
        url = f"ws://{urlsplit(self.host).netloc}/cdc/ws"
        with connect(url, open_timeout=PATIENCE_S, compression=None, max_size=None) as socket:
            socket.send(json.dumps(request))
            while time.monotonic() < cut_at_s:
                text = socket.recv(PATIENCE_S)
                now_ns = time.monotonic_ns()
                found = json.loads(text)
                match found["type"]:
                    case "connected":
                        pass
                    case "subscribed":
                        yield
                        self._last_id = found["position"]
                    case "change":
                        epoch = self._last_id.partition(":")[0]
                        self._last_id = f"{epoch}:{found['change']['lsn']}"
                        self.arrive(self._last_id, str(text), now_ns)
                    case "caught-up" | "heartbeat" if "sub" in found:
                        self._last_id = found["position"]
                        self.caught_up(found["position"])
                    case "heartbeat":
                        pass
                    case _:
                        self.fault("unexpected message", str(text)[:200])
            # Cut as a network does it, without a close frame.
            socket.socket.close()


def _lsn_of(position: str) -> int:
    return int(position.rpartition(":")[2])


class SqliteWriter(Measured):
    transport = "SQLite"
    """A process of its own that commits rows; its reports become Locust's."""

    fixed_count: ClassVar[int] = 1

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self._written = 0
        module = [sys.executable, "-m", "loadtest.row_writer"]
        limits = ["--rate", str(options.rate), "--report-s", "1"]
        self._process = Popen(
            [*module, options.database, *limits],
            stdout=PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    @task
    def report_commits(self) -> None:
        for line in self._lines():
            found = json.loads(line)
            self._written = found["published"]
            # Once a second: the slowest commit of that second.
            self.report("SQLite", "slowest commit of a second", found["slowestCommitMs"])
        self.fault("writer", "the writer has ended by itself")
        time.sleep(RETRY_S)

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None, "it was started with a pipe"
        yield from self._process.stdout

    def on_stop(self) -> None:
        self._process.terminate()
        self._process.wait()
