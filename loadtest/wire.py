"""What the load tests share: a hub as a process, its HTTP answers, and a reader of event streams."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HOST = "127.0.0.1"
# How long anything may take before a run is given up. Nothing that works comes near it.
PATIENCE_S = 60.0


class LoadTestError(Exception):
    """The run can't go on; the text says why, in one line or with the hub's own log."""


def wait_for(
    condition: Callable[[], bool], what: str, *, within_s: float = PATIENCE_S, every_s: float = 0.002
) -> None:
    """Returns when `condition` holds. Raises `LoadTestError` when it never does."""
    pause = threading.Event()
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise LoadTestError(f"waited {within_s:g} s for {what}")
        pause.wait(every_s)


def free_port() -> int:
    """A port that nobody has.

    It lies below the range that outgoing connections take theirs from: while the hub is down, no
    connection of a subscriber that tries again can be given the hub's own port.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise LoadTestError("no free port was found")


def make_database(path: Path, schema: str) -> Path:
    """A new database in WAL mode."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(schema)
    database.close()
    return path


class Hub:
    """`cdchub serve` on one port, which can be killed and started again."""

    def __init__(self, database: Path, *options: str) -> None:
        self.port = free_port()
        self._log_path = database.with_name("hub.log")
        program = os.fspath(Path(sys.executable).with_name("cdchub"))
        self._command = [program, "serve", os.fspath(database), "--port", str(self.port), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Starts it and waits until it is ready. Returns how long that took."""
        began_s = time.monotonic()
        # Options of ours that a developer may have set would change what is measured.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CDCHUB_")}
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )
        wait_for(self._is_ready, "the hub to be ready")
        return time.monotonic() - began_s

    def _is_ready(self) -> bool:
        if not self.runs:
            raise LoadTestError(f"the hub has ended by itself:\n{self.log_tail()}")
        try:
            return self.get("/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the hub has not been started"
        return self._process.pid

    def kill(self) -> None:
        """kill -9. Raises `LoadTestError` if it was dead before."""
        if not self.runs:
            raise LoadTestError(f"the hub has ended by itself:\n{self.log_tail()}")
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def close(self) -> None:
        """Ends it however it is."""
        if self.runs:
            self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        assert self._process is not None, "the hub has not been started"
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    def log_tail(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-30:])

    def get(self, path: str, accept: str = "application/json") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers={"Accept": accept})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get_json(self, path: str) -> Any:
        status, body = self.get(path)
        if status != 200:
            raise LoadTestError(f"GET {path} answered {status}: {body[:500]!r}")
        return json.loads(body)

    def head_lsn(self) -> int:
        return int(self.get_json("/cdc/status")["headLsn"])


class Event(NamedTuple):
    """One dispatched event; `last_id` is the last event id as it stands after it."""

    name: str
    data: str
    last_id: str


class EventReader:
    """Bytes of an event stream, cut anywhere, to events (WHATWG HTML §9.2.6)."""

    def __init__(self, last_id: str) -> None:
        self.last_id = last_id
        self._id = last_id
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode())
            if event is not None:
                found.append(event)
        return found

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id":
            self._id = value
        return None

    def _dispatch(self) -> Event | None:
        # The id counts from the end of its block on: a block that was cut off moves nothing.
        self.last_id = self._id
        name, self._name = self._name or "message", ""
        data, self._data = self._data, []
        return Event(name, "\n".join(data), self.last_id) if data else None
