"""The servers of the comparison, each started the same way and told apart by nothing but its name.

A peer serves streams at `path` and takes events from a publisher of its own kind: cdchub from commits
of another process into its database, the others from POSTs. Events have like sizes.
"""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from loadtest.crowd import ROOT, Program
from loadtest.machine import Cores, bound_to
from loadtest.row_writer import SCHEMA
from loadtest.wire import HOST, Hub, LoadTestError, free_port, make_database, wait_for

# With `data: ` and the empty line, about what a change of cdchub takes with its id: 325 bytes.
_BODY_BYTES = 310

# Every directory, because nginx makes the default ones at start wherever it was built for.
_NGINX = """\
load_module {module};
{user}daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 19000; use epoll; }}
http {{
  access_log off;
  keepalive_requests 10000000;
  tcp_nodelay on;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  nchan_shared_memory_size 256m;
  server {{
    listen {host}:{port} backlog=4096;
    location = /publish {{
      nchan_publisher; nchan_channel_id bench;
      nchan_message_buffer_length 100; nchan_message_timeout 60s;
    }}
    location = /stream {{
      nchan_subscriber eventsource; nchan_channel_id bench; nchan_subscriber_first_message newest;
    }}
  }}
}}
"""
_NCHAN_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/lib/*/nginx/modules")


class Peer(ABC):
    """One server on the server's core, and how to publish to it from the client's."""

    path = "/stream"

    def __init__(self, folder: Path, cores: Cores) -> None:
        self.folder = folder
        self.cores = cores
        self.port = 0

    @staticmethod
    def missing() -> str:
        """Why it can't run here; empty where it can."""
        return ""

    @abstractmethod
    def start(self) -> int:
        """Starts it and waits until it is ready. Returns its process id."""

    @abstractmethod
    def close(self) -> None:
        """Ends it however it is."""

    def publisher(self, rate: float, seconds: float, rows: int, connections: int) -> Program:
        limits = ["--rate", rate, "--seconds", seconds, "--rows", rows]
        more = ["--connections", connections, "--bytes", _BODY_BYTES]
        return Program(self.cores.client, "http_publisher", self.port, "/publish", *limits, *more)


class Cdchub(Peer):
    path = "/cdc/stream?table=bench"

    def start(self) -> int:
        self._database = make_database(self.folder / "bench.db", SCHEMA)
        self._hub = Hub(self._database)
        with bound_to(self.cores.server):
            self._hub.start()
        self.port = self._hub.port
        return self._hub.pid

    def close(self) -> None:
        self._hub.close()

    def publisher(self, rate: float, seconds: float, rows: int, connections: int) -> Program:
        # SQLite has one writer at a time, so more connections would only wait for each other.
        del connections
        limits = ["--rate", rate, "--seconds", seconds, "--rows", rows]
        return Program(self.cores.client, "row_writer", self._database, *limits)


class Spawned(Peer):
    """A server that is a command with a port."""

    @abstractmethod
    def command(self) -> list[str]:
        """What to run; `self.port` is chosen."""

    def start(self) -> int:
        self.port = free_port()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with (self.folder / "server.log").open("wb") as log, bound_to(self.cores.server):
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(self._listens, f"{type(self).__name__} to listen", within_s=20.0, every_s=0.02)
        except LoadTestError:
            self.close()
            raise
        return self._process.pid

    def _listens(self) -> bool:
        if self._process.poll() is not None:
            log = (self.folder / "server.log").read_text(errors="replace")
            raise LoadTestError(f"{type(self).__name__} has ended by itself:\n{log[-2_000:]}")
        try:
            socket.create_connection((HOST, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        # SIGTERM first: nginx ends its worker only when it is asked to.
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Nchan(Spawned):
    """nginx with nchan as Debian packages them (nginx, libnginx-mod-nchan), one worker."""

    @staticmethod
    def missing() -> str:
        if shutil.which("nginx", path=_program_path()) is None or not _nchan_module():
            return "nginx with nchan is not installed (Debian: nginx-light, libnginx-mod-nchan)"
        return ""

    def command(self) -> list[str]:
        configuration = self.folder / "nginx.conf"
        user = "user root;\n" if os.geteuid() == 0 else ""
        text = _NGINX.format(module=_nchan_module(), user=user, host=HOST, port=self.port)
        configuration.write_text(text)
        program = shutil.which("nginx", path=_program_path())
        assert program is not None, "`missing` was asked first"
        return [program, "-e", "stderr", "-p", str(self.folder), "-c", str(configuration)]


def _program_path() -> str:
    # Where Debian keeps servers; not on everybody's path.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


def _nchan_module() -> str:
    found = [m for folder in _NCHAN_MODULES for m in glob.glob(f"{folder}/ngx_nchan_module.so")]
    return found[0] if found else ""


class Naive(Spawned):
    def command(self) -> list[str]:
        return [sys.executable, "-m", "loadtest.naive_server", str(self.port)]


class Floor(Spawned):
    def command(self) -> list[str]:
        return [sys.executable, "-m", "loadtest.floor_server", str(self.port)]


PEERS: dict[str, type[Peer]] = {"cdchub": Cdchub, "nchan": Nchan, "naive": Naive, "floor": Floor}
