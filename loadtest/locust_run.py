"""`make loadtest`: a hub on a fresh database, and Locust against it.

Headless for a minute with 200 readers by default, every other one over WebSocket; with `--chatters` so
many members of chat rooms instead. `--web` serves Locust's page, with the same numbers filled in.
Options that are not ours go to Locust (`--html report.html`, `--csv load`, `--chat-rooms 50`). The exit
code is Locust's: not 0 when a reader saw a gap, a repeat, disorder or nothing at all.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from loadtest.crowd import ROOT
from loadtest.machine import raise_descriptor_limit
from loadtest.row_writer import SCHEMA
from loadtest.wire import HOST, Hub, LoadTestError, make_database

_WEB_PORT = 8089


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--chatters", type=int, default=0, help="members of chat rooms, and no readers")
    parser.add_argument("--rate", type=float, default=20.0, help="commits a second")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--cut-every-s", type=float, default=20.0, help="mean life of a connection")
    parser.add_argument("--web", action="store_true", help="Locust's page instead of headless")
    options, more = parser.parse_known_args()
    if importlib.util.find_spec("locust") is None:
        parser.error("Locust is not installed: `make loadtest` installs it")
    raise_descriptor_limit()
    # So that whoever ends this program also ends the hub and Locust.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="cdchub-locust-") as folder:
        database = make_database(Path(folder) / "bench.db", SCHEMA)
        hub = Hub(database, *(["--rooms"] if options.chatters else []))
        try:
            hub.start()
            return _run_locust(hub, database, options, more)
        except LoadTestError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            hub.close()


def _run_locust(hub: Hub, database: Path, options: argparse.Namespace, more: list[str]) -> int:
    command = [sys.executable, "-m", "locust", "--locustfile", "loadtest/locustfile.py"]
    command += ["--host", f"http://{HOST}:{hub.port}", "--database", str(database)]
    command += ["--rate", str(options.rate), "--cut-every-s", str(options.cut_every_s)]
    if options.chatters:
        kinds, users = ["Chatter"], options.chatters
    else:
        # The writer is a user too.
        kinds, users = ["SseReader", "WsReader", "SqliteWriter"], options.readers + 1
    command += ["--users", str(users), "--spawn-rate", "100"]
    if options.web:
        print(f"Locust's page: http://{HOST}:{_WEB_PORT}/", flush=True)
        command += ["--web-host", HOST, "--web-port", str(_WEB_PORT)]
    else:
        command += ["--headless", "--only-summary", "--run-time", f"{options.seconds}s"]
    return subprocess.run([*command, *more, *kinds], cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
