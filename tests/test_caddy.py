"""The shipped Caddyfile in a real Caddy, in front of a real hub: streams must pass it unbuffered."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from cdchub.sse import Event, EventParser
from tests.harness import PATIENCE_S, HubProcess, clean_environment, run_sql, wait_for

_ROOT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
_CADDYFILE = _ROOT / "Caddyfile"


class Caddy:
    """The shipped Caddyfile in a Caddy of its own: its environment names ports, storage and the hub."""

    def __init__(self, hub_port: int, home: Path, site: str = "localhost") -> None:
        self.port, self.site, self._home = free_port(), site, home
        self.authority = home / "caddy/pki/authorities/local/root.crt"
        self.output = home / "output"
        environment = {
            **clean_environment(),
            "CDCHUB_UPSTREAM": f"127.0.0.1:{hub_port}",
            "CDCHUB_SITE": site,
            "CDCHUB_HTTP_PORT": str(free_port()),
            "CDCHUB_HTTPS_PORT": str(self.port),
            "XDG_DATA_HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [_BIN / "caddy", "run", "--config", _CADDYFILE], env=environment, stderr=output
            )

    def __enter__(self) -> Caddy:
        try:
            wait_for(lambda: self._answers() or self.process.poll() is not None, "Caddy to answer")
            assert self.process.poll() is None, self.output.read_text()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)

    def _answers(self) -> bool:
        try:
            return self.request("GET", "/healthz")[0] != 0
        except OSError:
            return False

    def connect(self) -> http.client.HTTPSConnection:
        """HTTP/1.1, with Caddy's own authority trusted and its certificate checked."""
        context = ssl.create_default_context(cafile=self.authority)
        return _Pinned(self.site, self.port, context=context, timeout=PATIENCE_S)

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    @contextmanager
    def stream(self, version: str, query: str, **headers: str) -> Iterator[CurlStream]:
        stream = CurlStream(self, version, query, headers)
        try:
            yield stream
        finally:
            stream.close()


class _Pinned(http.client.HTTPSConnection):
    """A connection to a site whose name no resolver knows: it is on this machine."""

    def connect(self) -> None:
        raw = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        self.sock = self._context.wrap_socket(raw, server_hostname=self.host)


class CurlStream:
    """A stream that curl reads: one of HTTP/1.1 or HTTP/2, unbuffered."""

    def __init__(self, caddy: Caddy, version: str, query: str, headers: Mapping[str, str]) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = [word for pair in named.items() for word in ("--header", ": ".join(pair))]
        url = f"https://{caddy.site}:{caddy.port}/cdc/stream?{query}"
        place = f"{caddy.site}:{caddy.port}:127.0.0.1"
        command = ["curl", "--silent", "--show-error", "--no-buffer", "--include", f"--http{version}"]
        command += ["--cacert", str(caddy.authority), "--resolve", place, "--noproxy", "*"]
        # As a browser asks; curl would not unpack it, so a compressed stream would be noticed.
        command += ["--header", "Accept-Encoding: gzip, br, zstd"]
        self.process = subprocess.Popen(
            [*command, "--header", "Accept: text/event-stream", *given, url], stdout=subprocess.PIPE
        )
        self.raw = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 65_536):
            self.raw += data

    @property
    def head(self) -> str:
        """The status line and the headers, once they are there."""
        wait_for(lambda: b"\r\n\r\n" in self.raw, "the headers")
        return self.raw.partition(b"\r\n\r\n")[0].decode().lower()

    @property
    def text(self) -> str:
        return self.raw.partition(b"\r\n\r\n")[2].decode()

    def wait(self, pattern: str) -> re.Match[str]:
        """Waits for a pattern in the body, of a stream that is still open then."""
        found = wait_for(lambda: re.search(pattern, self.text), f"{pattern!r} in the stream")
        assert self.process.poll() is None, "the stream has ended"
        return found

    def end(self) -> list[Event]:
        """Every event of a stream that ends by itself."""
        assert self.process.wait(PATIENCE_S) == 0
        self._reader.join(PATIENCE_S)
        return list(EventParser().feed(self.text.encode()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def add_todo(database: Path, id: str) -> None:
    run_sql(database, f"INSERT INTO todos(id, title) VALUES ('{id}', 'milk')")


@pytest.fixture
def caddy(hub: HubProcess, tmp_path: Path) -> Iterator[Caddy]:
    with Caddy(hub.port, tmp_path) as process:
        yield process


versions = pytest.mark.parametrize("version", ["1.1", "2"])


@pytest.mark.parametrize("command", [["validate", "--config"], ["fmt", "--diff"]])
def test_caddy_accepts_the_caddyfile(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [_BIN / "caddy", *command, _CADDYFILE],
        env={**clean_environment(), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("curl")
@versions
def test_a_change_passes_caddy_while_the_stream_stays_open(
    hub: HubProcess, caddy: Caddy, version: str
) -> None:
    with caddy.stream(version, "table=todos") as stream:
        assert stream.head.startswith(f"http/{version} 200")
        assert "\r\ncontent-type: text/event-stream" in stream.head
        assert "\r\nx-accel-buffering: no" in stream.head
        assert "\r\ncache-control: no-store" in stream.head
        assert f"\r\nx-cdc-position: {hub.head().lower()}" in stream.head
        stream.wait("event: caught-up")
        for id in ("a", "b"):
            add_todo(hub.database, id)
            # The head is asked for afterwards: a commit takes a moment to get there.
            found = stream.wait(rf'id: (\S+)\ndata: .*"newValue":{{"id":"{id}"')
            assert found[1] == hub.head()


def test_a_websocket_passes_caddy(hub: HubProcess, caddy: Caddy) -> None:
    place = f"{caddy.site}:{caddy.port}"
    with connect(
        f"wss://{place}/cdc/ws",
        sock=socket.create_connection(("127.0.0.1", caddy.port), PATIENCE_S),
        ssl=ssl.create_default_context(cafile=caddy.authority),
        server_hostname=caddy.site,
        origin=Origin(f"https://{place}"),
    ) as peer:
        peer.send('{"type":"subscribe","sub":"s","table":"todos"}')
        heard = [json.loads(peer.recv(PATIENCE_S)) for _ in range(3)]
        assert [each["type"] for each in heard] == ["connected", "subscribed", "caught-up"]
        add_todo(hub.database, "a")
        assert json.loads(peer.recv(PATIENCE_S))["change"]["newValue"]["id"] == "a"


@pytest.mark.needs("curl")
@versions
def test_heartbeats_pass_caddy(database: Path, tmp_path: Path, version: str) -> None:
    with (
        HubProcess(database, "--heartbeat", "0.2") as hub,
        Caddy(hub.port, tmp_path) as caddy,
        caddy.stream(version, "table=todos") as stream,
    ):
        stream.wait(f": ping\nid: {hub.head()}\n\n(.|\n)*: ping\n")


@pytest.mark.needs("curl")
@versions
def test_a_stream_resumes_through_caddy(hub: HubProcess, caddy: Caddy, version: str) -> None:
    add_todo(hub.database, "a")
    hub.wait_for_lsn(1)
    position = hub.head()
    add_todo(hub.database, "b")
    # A stream that is caught up before the log has it would rightly say so first.
    hub.wait_for_lsn(2)
    with caddy.stream(version, "table=todos", Last_Event_ID=position) as stream:
        assert f"\r\nx-cdc-position: {position.lower()}" in stream.head
        stream.wait("event: caught-up")
        assert re.findall(r'"newValue":{"id":"(\w)"', stream.text) == ["b"]


def test_a_page_behind_caddy_may_write_and_a_foreign_one_may_not(tmp_path: Path) -> None:
    """Host passes unchanged, so the hub can compare the page's origin with it."""
    body = json.dumps({"title": "milk"}).encode()
    database = tmp_path / "cdchub-demo.db"
    with (
        HubProcess(database, command=["demo"], cwd=tmp_path) as hub,
        Caddy(hub.port, tmp_path) as caddy,
    ):
        for origin, status in ((f"https://localhost:{caddy.port}", 201), ("https://evil.example", 403)):
            headers = {"Origin": origin, "Content-Type": "application/json"}
            assert caddy.request("POST", "/api/todos", body, **headers)[0] == status


def test_a_hub_on_loopback_answers_to_a_site_that_it_was_told_of(
    database: Path, tmp_path: Path
) -> None:
    for options, status in (([], 403), (["--allow-host", "live.example"], 200)):
        with (
            HubProcess(database, *options) as hub,
            Caddy(hub.port, tmp_path, site="live.example") as caddy,
        ):
            assert caddy.request("GET", "/cdc/tables")[0] == status


@pytest.mark.needs("curl")
@versions
def test_a_stream_that_is_opened_while_the_hub_restarts_waits_for_it(
    hub: HubProcess, caddy: Caddy, version: str
) -> None:
    hub.kill()
    with caddy.stream(version, "table=todos") as stream:
        hub.start()
        stream.wait("event: caught-up")


@pytest.mark.needs("curl")
@versions
def test_while_there_is_no_hub_a_stream_is_told_to_come_again(
    hub: HubProcess, caddy: Caddy, version: str
) -> None:
    hub.kill()
    with caddy.stream(version, "table=todos") as stream:
        (event,) = stream.end()
        assert stream.head.startswith(f"http/{version} 200")
        assert "\r\ncontent-type: text/event-stream" in stream.head
        assert stream.text.startswith("retry: 5000\n")
    assert event.name == "refused"
    assert set(json.loads(event.data)) == {"code", "message", "retryAfterMs"}


def test_while_there_is_no_hub_other_requests_fail(hub: HubProcess, caddy: Caddy) -> None:
    hub.kill()
    assert caddy.request("GET", "/cdc/tables")[0] == 502


@pytest.mark.needs("curl")
def test_caddy_ends_while_a_stream_is_open(caddy: Caddy) -> None:
    with caddy.stream("2", "table=todos") as stream:
        stream.wait("event: caught-up")
        caddy.process.send_signal(signal.SIGTERM)
        assert caddy.process.wait(PATIENCE_S) == 0
