"""A writer on the oldest SQLite that capture promises to serve: 3.35, in a process of its own.

Python's `sqlite3` takes the `libsqlite3.so.0` that the loader finds first. So the library is built once
from its amalgamation, which an npm package carries (no index of Python's has one that old), and a child
of ours is started with it in front. The child runs SQL for whoever holds its pipe, and nothing else.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VERSION = (3, 35, 2)
_PACKAGE = "better-sqlite3@7.1.5"
_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "build" / "sqlite-3.35.2"
_NAME = "libsqlite3.so.0"
_TIMEOUT_S = 300.0


def build() -> Path:
    """The folder of the library, which is built there if it is not yet. Needs npm and cc."""
    if (_FOLDER / _NAME).exists():
        return _FOLDER
    _FOLDER.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER.parent) as made:
        folder = Path(made)
        _run("npm", "pack", "--silent", _PACKAGE, cwd=folder)
        (package,) = folder.glob("*.tgz")
        with tarfile.open(package) as outer:
            amalgamation = outer.extractfile("package/deps/sqlite3.tar.gz")
            assert amalgamation is not None
            with tarfile.open(fileobj=amalgamation) as inner:
                inner.extractall(folder, filter="data")
        # Python's module calls for serialize and deserialize, which 3.35 leaves out by default.
        options = f"-O1 -w -shared -fPIC -Wl,-soname,{_NAME} -DSQLITE_ENABLE_DESERIALIZE".split()
        _run("cc", *options, "sqlite3.c", "-o", _NAME, "-lm", "-lpthread", "-ldl", cwd=folder)
        (folder / "done").mkdir()
        shutil.move(folder / _NAME, folder / "done" / _NAME)
        # At once or not at all; whoever was faster has made the same.
        shutil.rmtree(_FOLDER, ignore_errors=True)
        (folder / "done").rename(_FOLDER)
    return _FOLDER


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, timeout=_TIMEOUT_S, stdout=subprocess.DEVNULL)


class OlderSqlite:
    """The child, with any number of connections. A context manager."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.older"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env=os.environ | {"LD_LIBRARY_PATH": str(build())},
        )

    def __enter__(self) -> OlderSqlite:
        assert self.ask("version") == VERSION
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        assert self._child.wait(_TIMEOUT_S) == 0
        self._child.stdout.close()

    def connect(self, path: str) -> OlderConnection:
        return OlderConnection(self, self.ask("open", path))

    def ask(self, *question: Any) -> Any:
        """One question, one answer. Raises what the child's SQLite raised."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        pickle.dump(question, self._child.stdin)
        self._child.stdin.flush()
        answer = pickle.load(self._child.stdout)
        if isinstance(answer, Exception):
            raise answer
        return answer


class OlderConnection:
    """As much of a `sqlite3.Connection` as the suite has a use for; `execute` returns all rows."""

    def __init__(self, library: OlderSqlite, number: int) -> None:
        self._library, self._number = library, number
        self.in_transaction = False

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        rows, self.in_transaction = self._library.ask("execute", self._number, sql, parameters)
        if isinstance(rows, Exception):
            raise rows
        return rows  # type: ignore[no-any-return]

    def close(self) -> None:
        self._library.ask("close", self._number)


def _serve() -> None:
    import sqlite3

    connections: dict[int, sqlite3.Connection] = {}
    while True:
        try:
            verb, *words = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: Any = None
        match verb:
            case "version":
                answer = sqlite3.sqlite_version_info
            case "open":
                answer = len(connections) + 1
                connections[answer] = sqlite3.connect(*words, isolation_level=None)
            case "execute":
                number, sql, parameters = words
                rows: Any
                try:
                    rows = connections[number].execute(sql, parameters).fetchall()
                except sqlite3.Error as error:
                    rows = error
                # Whether a transaction is open is told with each answer: an error may have ended it.
                answer = rows, connections[number].in_transaction
            case "close":
                connections[words[0]].close()
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
