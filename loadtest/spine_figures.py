"""What the measurements share: figures with goals, the writers' processes, draining subscribers."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.wire import HOST, PATIENCE_S, Hub, LoadTestError

# No single writer takes longer; the largest one builds a million rows.
WRITER_S_MAX = 900.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number; `goal` is the most that it may be, where there is one."""

    name: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "ok" if self.value <= self.goal else "MISSED"


@dataclass(slots=True)
class Section:
    name: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, goal: float | None = None) -> None:
        self.figures.append(Figure(name, value, unit, goal))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class WriterProcess:
    """One of `spine_writers`, started; `result` waits for its end."""

    def __init__(self, mode: str, database: Path, *options: str) -> None:
        self._mode = mode
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.spine_writers", mode, database, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def result(self) -> Any:
        """What it printed. Its standard input ends now. Raises `LoadTestError`."""
        try:
            output, _ = self._process.communicate("", timeout=WRITER_S_MAX)
        except subprocess.TimeoutExpired as error:
            raise LoadTestError(f"the writer `{self._mode}` takes too long") from error
        finally:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            raise LoadTestError(f"the writer `{self._mode}` has failed")
        return json.loads(output)


def open_stream(hub: Hub, query: str) -> socket.socket:
    """A raw connection that has asked for a stream, and has received its beginning."""
    connection = socket.create_connection((HOST, hub.port), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = f"GET /cdc/stream?{query} HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n\r\n"
    connection.sendall(request.encode())
    seen = b""
    while b"event: caught-up" not in seen:
        data = connection.recv(65_536)
        if not data:
            raise LoadTestError(f"the stream was refused: {seen[:300]!r}")
        seen += data
    return connection


class Drain:
    """A subscriber that reads and forgets, so that the hub has somebody to serve."""

    def __init__(self, hub: Hub, query: str) -> None:
        self._socket = open_stream(hub, query)
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._socket.recv(65_536):
                pass
        except OSError:
            pass  # the hub has gone, or we have

    def close(self) -> None:
        # If the hub is gone already, there is nothing left to shut.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._socket.close()
