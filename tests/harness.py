"""Real things for tests to use: databases, writer processes, hub processes, an SSE reader.

Longer than a module should be: nearly every test takes several of them, from one place.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from cdchub.change import Entry
from cdchub.log import LogReader
from cdchub.log.protocol import Cursor, Narrowing
from cdchub.sse import Event, EventParser

# Generous, because CI machines stall; a test that passes never waits so long.
PATIENCE_S = 30.0

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, *, within_s: float = PATIENCE_S) -> T:
    """Waits until `condition` is true and returns its value. Fails with `what` when it never is."""
    deadline_s = time.monotonic() + within_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {within_s:g} s for {what}")
        pause.wait(0.005)


def log_entries(path: Path, epoch_number: int = 1) -> list[Entry]:
    """All entries that a change log holds of one epoch."""
    reader = LogReader(path)
    try:
        info = reader.state().by_number(epoch_number)
        assert info is not None
        page = reader.read(
            Cursor(epoch_number, info.floor_lsn),
            upto=info.head_lsn,
            narrowing=Narrowing(),
            rows_max=10**9,
            bytes_max=2**40,
        )
        return list(page.entries)
    finally:
        reader.close()


def run_sql(path: Path, *statements: str, parameters: Sequence[Any] = ()) -> list[list[Any]]:
    """Runs statements, each its own transaction, in a process of its own. The last one's rows."""
    script = (
        "import json, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n"
        "rows = []\n"
        "for sql in json.loads(sys.argv[2])[:-1]: db.execute(sql)\n"
        "rows = db.execute(json.loads(sys.argv[2])[-1], json.loads(sys.argv[3])).fetchall()\n"
        "db.close()\n"
        "print(json.dumps(rows, default=lambda b: {'hex': b.hex()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, json.dumps(statements), json.dumps(list(parameters))],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
    )
    assert done.returncode == 0, done.stderr
    rows: list[list[Any]] = json.loads(done.stdout)
    return rows


def make_database(path: Path, *statements: str) -> Path:
    run_sql(path, "PRAGMA journal_mode = WAL", *statements)
    return path


def cdchub(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cdchub", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=clean_environment(),
        **more,
    )


def clean_environment() -> dict[str, str]:
    """The environment without options of ours that a developer may have set."""
    return {k: v for k, v in os.environ.items() if not k.startswith("CDCHUB_")}


class HubProcess:
    """`cdchub serve` (or another command or program that serves) in a process, ready when entered."""

    def __init__(
        self,
        database: Path,
        *options: str,
        port: int = 0,
        command: Sequence[str] | None = None,
        cwd: Path | None = None,
        program: Sequence[str] = ("-m", "cdchub"),
        trusts: ssl.SSLContext | None = None,
        descriptors_max: int | None = None,
    ) -> None:
        """`program` takes the same words as `cdchub`; see `tests.serving`. `trusts`: it speaks TLS."""
        words = command or ["serve", str(database), *options]
        self._arguments = [sys.executable, *program, *words, "--port"]
        if descriptors_max is not None:
            words = ["sh", "-c", f'ulimit -n {descriptors_max}; exec "$0" "$@"']
            self._arguments = [*words, *self._arguments]
        self._trusts = trusts
        self.database = database
        self.port = port
        self._cwd = cwd
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []

    def start(self) -> HubProcess:
        self.process = subprocess.Popen(
            [*self._arguments, str(self.port)],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            cwd=self._cwd,
        )
        self._reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        self._reader.start()
        wait_for(lambda: self._ready() or self.process.poll() is not None, "the hub to be ready")
        if self.process.poll() is not None:
            self._end(signal.SIGKILL)
            raise AssertionError("the hub ended: " + "".join(self.lines))
        return self

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line)
            found = re.search(r"from http://[^/]*:(\d+)/cdc/stream", line)
            if found:
                self.port = int(found[1])

    def _ready(self) -> bool:
        if not self.port:
            return False
        try:
            return self.get("/readyz").status == 200
        except OSError:
            return False

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, as a service manager stops it. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def __enter__(self) -> HubProcess:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # Asking it.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = connect(self.port, self._trusts)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("GET", path, headers=named)

    def send_json(self, method: str, path: str, document: object) -> Answer:
        headers = {"Content-Type": "application/json"}
        return self.request(method, path, json.dumps(document).encode(), headers)

    def stream(self, query: str, **headers: str) -> Stream:
        return Stream(self.port, f"/cdc/stream?{query}", headers, trusts=self._trusts)

    def status(self) -> Any:
        return self.get("/cdc/status").json()

    def subscribers(self) -> int:
        return int(self.status()["subscribers"]["total"])

    def outcomes(self, name: str) -> int:
        return int(self.status()["subscribers"]["outcomes"].get(name, 0))

    def head(self) -> str:
        status = self.status()
        return f"{status['epoch']}:{status['headLsn']}"

    def wait_for_lsn(self, lsn: int) -> None:
        wait_for(lambda: self.status()["headLsn"] >= lsn, f"LSN {lsn} to be in the log")


def connect(port: int, trusts: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if trusts is None:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_S, context=trusts)


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["code"])


class Stream:
    """A raw SSE connection: its bytes, its lines and its events, as they come."""

    def __init__(
        self,
        port: int,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        trusts: ssl.SSLContext | None = None,
    ) -> None:
        named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        self._connection = connect(port, trusts)
        self._connection.request("GET", path, headers={"Accept": "text/event-stream", **named})
        self.response = self._connection.getresponse()
        self.status = self.response.status
        self.headers = {k.lower(): v for k, v in self.response.headers.items()}
        self.parser = EventParser()
        self.text = ""
        self.ended = False
        self._events: list[Event] = []

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.response.close()
        self._connection.close()

    @property
    def last_id(self) -> str:
        return self.parser.last_id

    def _read(self) -> None:
        try:
            data = self.response.read1(65_536)
        except (ConnectionError, http.client.HTTPException, ValueError):
            data = b""
        if not data:
            self.ended = True
        self.text += data.decode()
        self._events += self.parser.feed(data)

    def next(self) -> Event:
        """The next event; fails where the stream ends instead."""
        while not self._events:
            assert not self.ended, f"the stream has ended after {self.text[-300:]!r}"
            self._read()
        return self._events.pop(0)

    def until(self, name: str) -> list[Event]:
        """All events up to and including the first one called `name`."""
        found = [self.next()]
        while found[-1].name != name:
            found.append(self.next())
        return found

    def changes(self, count: int) -> list[dict[str, Any]]:
        """The next `count` changes; other events are passed over."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            event = self.next()
            if event.name == "message":
                found.append(json.loads(event.data))
        return found

    def read_until(self, condition: Callable[[Stream], bool]) -> None:
        """Reads on until `condition` holds."""
        while not condition(self):
            assert not self.ended, f"the stream has ended after {self.text[-300:]!r}"
            self._read()

    def taken(self) -> list[Event]:
        """The events that were read and not yet asked for."""
        events, self._events = self._events, []
        return events

    def rest(self) -> list[Event]:
        """Everything up to the end of the stream."""
        while not self.ended:
            self._read()
        return self.taken()

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield self.next()


def find_chromium() -> str | None:
    """Where it is: the one without a user interface, if there is one; it takes a third of the time."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


def quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4_096


def has_base(hub: HubProcess) -> bool:
    return hub.status()["log"]["baseLsn"] is not None


def verified(database: Path) -> None:
    done = cdchub("verify", database)
    assert done.returncode == 0, done.stdout + done.stderr


def beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It has failed, and says why in one line."""
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def write_without_triggers(database: Path, *statements: str) -> None:
    """Runs statements on a connection on which triggers are switched off, in another process."""
    script = (
        "import apsw, sys\n"
        "db = apsw.Connection(sys.argv[1])\n"
        "db.set_busy_timeout(30_000)\n"
        "db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)\n"
        "for sql in sys.argv[2:]: db.execute(sql)\n"
        "db.close()"
    )
    subprocess.run([sys.executable, "-c", script, database, *statements], check=True, timeout=60)
