"""The handle of other processes that load a server: crowds of readers, and writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from loadtest.machine import bound_to
from loadtest.wire import PATIENCE_S, LoadTestError

ROOT = Path(__file__).parent.parent
# Connections that are on their way at a time. More would overflow a listener's backlog, where the
# kernel drops them and the client tries again a second later.
CONCURRENT = 128


class Program:
    """A module of ours as a process that is bound to a core and prints JSON lines."""

    def __init__(self, core: int | None, module: str, *options: object) -> None:
        self._module = module
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])}
        with bound_to(core):
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"loadtest.{module}", *map(str, options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def answer(self) -> dict[str, Any]:
        """The next line that it prints."""
        assert self.process.stdout is not None, "it was started with a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise LoadTestError(f"`{self._module}` has ended by itself")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise LoadTestError(f"`{self._module}` says: {found['error']}")
        return found

    def result(self, within_s: float) -> dict[str, Any]:
        """Waits for its end. Returns what its last line says."""
        try:
            output, _ = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired as error:
            raise LoadTestError(f"`{self._module}` takes longer than {within_s:g} s") from error
        if self.process.returncode != 0:
            raise LoadTestError(f"`{self._module}` has failed")
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found

    def stop(self, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """Tells it to end, and returns its last line."""
        self.process.send_signal(signal.SIGTERM)
        return self.result(within_s)


def _python_path() -> Sequence[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


class Crowd(Program):
    """Readers in one process; see `loadtest.crowd_main`."""

    def __init__(self, core: int | None, port: int, path: str, *options: str) -> None:
        super().__init__(core, "crowd_main", port, path, *options)

    def do(self, what: str, **arguments: object) -> dict[str, Any]:
        assert self.process.stdin is not None, "it was started with a pipe"
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def open(self, count: int, concurrent: int = CONCURRENT) -> float:
        """`count` more readers. Returns the seconds that it took."""
        return float(self.do("open", count=count, concurrent=concurrent)["seconds"])

    def until(self, field: str, least: int, within_s: float) -> int:
        """Waits until every follower's `field` is so large. Returns the moment, in nanoseconds."""
        found = self.do("until", field=field, least=least, withinS=within_s)
        if not found["reached"]:
            lag = f"{found['missing']:,} readers have not reached {field} {least:,}"
            raise LoadTestError(f"after {within_s:g} s {lag}: {self.figures()}")
        return int(found["atNs"])

    def figures(self) -> dict[str, Any]:
        return self.do("figures")

    def flawless(self) -> dict[str, Any]:
        """The figures of followers. Raises `LoadTestError` where an LSN was lost, repeated or moved."""
        found = self.figures()
        flaws = {name: found[name] for name in ("gaps", "repeats", "disorder", "unexpected")}
        if any(flaws.values()):
            raise LoadTestError(f"the readers have seen {flaws}")
        return found
