"""Locust's users: readers of /cdc/stream that check every LSN, and a writer of the database.

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

from locust import User, constant, events, task

from loadtest.row_writer import MARKER, STAMP_DIGITS
from loadtest.wire import PATIENCE_S, Event, EventReader

PATH = "/cdc/stream?table=bench"
_RECEIVED = "commit to receive"
_STAMP = MARKER.decode()
# A reader that was refused comes back after so long at most; a browser would wait 5 s ± 50 %.
_RETRY_S = 1.0


class StreamFaultError(Exception):
    """A reader has seen what the contract excludes."""


@events.init_command_line_parser.add_listener
def _add_options(parser: Any) -> None:
    parser.add_argument("--database", default="", help="the database that the writer writes")
    parser.add_argument("--rate", type=float, default=20.0, help="commits a second")
    parser.add_argument(
        "--cut-every-s", type=float, default=20.0, help="a reader cuts its stream so often, in the mean"
    )


@events.quitting.add_listener
def _judge(environment: Any, **_: object) -> None:
    """A run in which nothing arrived has shown nothing."""
    total = environment.stats.total
    received = environment.stats.get(_RECEIVED, "SSE").num_requests
    if total.num_failures or not received:
        print(f"{received:,} events received, {total.num_failures:,} failures", file=sys.stderr)
        environment.process_exit_code = 1


class Measured(User):
    """A user that reports to Locust by itself; Locust knows no event streams."""

    abstract = True
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
        self.report("SSE", name, 0, fault=StreamFaultError(reason))


class SseReader(Measured):
    """An EventSource that comes back where it was cut, and keeps account of the LSNs."""

    def on_start(self) -> None:
        self._last_id = ""
        # The last LSN seen; None before the first.
        self._lsn: int | None = None

    @task
    def read(self) -> None:
        """One connection, until it is cut by us or by the hub."""
        cut_at_s = time.monotonic() + random.expovariate(1 / self._options.cut_every_s)
        address, began_s = urlsplit(self.host), time.monotonic()
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
            name = "resume" if self._last_id else "connect"
            self.report("SSE", name, 1e3 * (time.monotonic() - began_s))
            while time.monotonic() < cut_at_s and (data := response.read1(65_536)):
                self._take(reader.feed(data), time.monotonic_ns())
                self._last_id = reader.last_id
        except (OSError, http.client.HTTPException) as error:
            self.report("SSE", "connect", 1e3 * (time.monotonic() - began_s), fault=error)
            # Everybody fails together when the hub is down; so they don't come back together.
            time.sleep(random.uniform(0, _RETRY_S))
        finally:
            connection.close()

    @property
    def _options(self) -> Any:
        return self.environment.parsed_options

    def _take(self, found: list[Event], now_ns: int) -> None:
        for event in found:
            match event.name:
                case "message":
                    self._arrive(event, now_ns)
                case "caught-up":
                    position = _lsn_of(json.loads(event.data)["position"])
                    if self._lsn is not None and position != self._lsn:
                        self.fault("gap", f"caught up at {position}, but the last was {self._lsn}")
                    self._lsn = position
                case other:
                    self.fault("unexpected event", f"{other}: {event.data[:200]}")

    def _arrive(self, event: Event, now_ns: int) -> None:
        lsn = _lsn_of(event.last_id)
        if self._lsn is not None and lsn != self._lsn + 1:
            kind = "gap" if lsn > self._lsn else "repeat" if lsn == self._lsn else "disorder"
            self.fault(kind, f"LSN {lsn} came after {self._lsn}")
        self._lsn = lsn
        at = event.data.find(_STAMP) + len(_STAMP)
        late_ns = now_ns - int(event.data[at : at + STAMP_DIGITS])
        self.report("SSE", _RECEIVED, late_ns / 1e6, len(event.data))


def _lsn_of(position: str) -> int:
    return int(position.rpartition(":")[2])


class SqliteWriter(Measured):
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
        time.sleep(_RETRY_S)

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None, "it was started with a pipe"
        yield from self._process.stdout

    def on_stop(self) -> None:
        self._process.terminate()
        self._process.wait()
