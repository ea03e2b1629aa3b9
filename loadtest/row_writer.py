"""The writer of the fan-out's load: rows into table `bench`, from a process of its own.

Each row carries the moment when it was due, so that a commit that comes late is measured late. It
ends at `--rows`, after `--seconds`, or on SIGTERM, and prints one JSON object a `--report-s` and at
its end. The clock is the system's monotonic one, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

SCHEMA = "CREATE TABLE bench(id INTEGER PRIMARY KEY, owner INTEGER, stamp TEXT, pad TEXT);"
INSERT = "INSERT INTO bench(owner, stamp, pad) VALUES (?, ?, ?)"
# What readers count. It is once in every INSERT, and in nothing else that a server sends.
MARKER = b"at="
# Zeros in front make every stamp as long as the next one, so that readers need not look for its end.
STAMP_DIGITS = 19
# A commit that is later than this counts from when it was due, an earlier one from when it began.
_LATE_NS = 2_000_000
# Whoever waits long for the next commit looks so often whether it should still come.
_LOOK_S = 0.1
# The pad that makes a change of about 290 bytes.
PAD_BYTES = 100


def stamp(moment_ns: int) -> str:
    return f"{MARKER.decode()}{moment_ns:0{STAMP_DIGITS}d};"


def due_moments(rate: float, wanted: Callable[[], bool]) -> Iterator[int]:
    """Waits for each next commit's time, at `rate` a second or, for 0, never; its stamp's moment.

    It ends when it is `wanted` no longer, which it asks before each commit and while it waits.
    """
    pause = threading.Event()
    began_ns, number = time.monotonic_ns(), 0
    while wanted():
        now_ns = time.monotonic_ns()
        due_ns = began_ns + int(number * 1e9 / rate) if rate else now_ns
        if now_ns < due_ns:
            pause.wait(min(_LOOK_S, (due_ns - now_ns) / 1e9))
            if (now_ns := time.monotonic_ns()) < due_ns:
                continue
        yield due_ns if now_ns - due_ns > _LATE_NS else now_ns
        number += 1


def be_preferred() -> None:
    """A publisher that waits for the core would be measured as a late server. Root may have it."""
    with contextlib.suppress(OSError):
        os.nice(-10)


class Writer:
    """Commits of `each` rows, until it is told to stop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._database = sqlite3.connect(options.database, timeout=60.0, isolation_level=None)
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._pad = "x" * options.pad
        self._rows = 0
        self._slowest_ms = 0.0
        self._began_s = time.monotonic()
        self._reported_s = self._began_s
        self._stopped = False
        self._parent = os.getppid()
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _wanted(self) -> bool:
        options = self._options
        # An orphan ends too: nobody would ever tell it to.
        if self._stopped or os.getppid() != self._parent:
            return False
        if options.rows and self._rows >= options.rows:
            return False
        return not options.seconds or time.monotonic() - self._began_s < options.seconds

    def run(self) -> None:
        report_s = self._options.report_s
        for moment_ns in due_moments(self._options.rate, self._wanted):
            if report_s and time.monotonic() - self._reported_s >= report_s:
                self._report()
            self._commit(moment_ns)
        self._report()
        self._database.close()

    def _commit(self, moment_ns: int) -> None:
        options, began_s = self._options, time.monotonic()
        each = min(options.each, options.rows - self._rows) if options.rows else options.each
        row = (options.owner, stamp(moment_ns), self._pad)
        if each == 1:
            self._database.execute(INSERT, row)
        else:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(INSERT, [row] * each)
            self._database.execute("COMMIT")
        self._rows += each
        self._slowest_ms = max(self._slowest_ms, 1e3 * (time.monotonic() - began_s))

    def _report(self) -> None:
        now_s = time.monotonic()
        report = {
            "published": self._rows,
            "seconds": now_s - self._began_s,
            "slowestCommitMs": round(self._slowest_ms, 3),
        }
        print(json.dumps(report), flush=True)
        self._reported_s, self._slowest_ms = now_s, 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("database")
    parser.add_argument("--rate", type=float, default=0.0, help="commits a second; 0: as it goes")
    parser.add_argument("--seconds", type=float, default=0.0, help="end after so long; 0: never")
    parser.add_argument("--rows", type=int, default=0, help="end after so many; 0: never")
    parser.add_argument("--each", type=int, default=1, help="rows a commit")
    parser.add_argument("--owner", type=int, default=0, help="what is written into `owner`")
    parser.add_argument("--pad", type=int, default=PAD_BYTES, help="bytes of the column `pad`")
    parser.add_argument("--report-s", type=float, default=0.0, help="report so often")
    be_preferred()
    Writer(parser.parse_args()).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
