"""What tests share: databases, writers in other processes, hubs as processes, and leak checks.

Nothing of ours is mocked. A hub under test is `cdchub serve` on port 0, in a process of its own, as
a user runs it; a writer is another process too, because one process must not open a file with two
SQLite libraries.
"""

from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import hypothesis
import pytest

from tests.harness import HubProcess, find_chromium, make_database

# How long an example takes says nothing on a machine that others use.
hypothesis.settings.register_profile(
    "cdchub", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("cdchub")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that needs a missing program is skipped with the reason; CI makes that a failure."""
    required = os.environ.get("CDCHUB_REQUIRE_ALL") == "1"
    for item in items:
        for mark in item.iter_markers("needs"):
            program = mark.args[0]
            found = find_chromium() if program == "chromium" else shutil.which(program)
            if found is None and not required:
                item.add_marker(pytest.mark.skip(reason=f"{program} is not installed"))


def pytest_collection_finish() -> None:
    """What is there before the first test stays: a collection after each test need not look at it,
    which would cost 50 ms a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Descriptors and threads that a test opened are closed when it ends."""
    descriptors, threads = _descriptors(), set(threading.enumerate())
    yield
    gc.collect()
    left = [t for t in threading.enumerate() if t not in threads and t.name.startswith("cdchub")]
    assert not left, f"threads left over: {left}"
    leaked = {d: _target(d) for d in _descriptors() - descriptors}
    ours = {d: target for d, target in leaked.items() if "cdchub" in target or ".db" in target}
    assert not ours, f"descriptors left open: {ours}"


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database in WAL mode with a todos table, made by another process."""
    return make_database(
        tmp_path / "app.db",
        "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT, completed INTEGER DEFAULT 0)",
    )


@pytest.fixture
def hub(database: Path) -> Iterator[HubProcess]:
    """`cdchub serve` on `database`, ready."""
    with HubProcess(database) as process:
        yield process


PATHS = {
    "handed over": ("-m", "tests.serving"),
    # uvicorn's own protocol: sse-starlette carries the streams.
    "through ASGI": ("-m", "tests.serving", "--http", "httptools"),
}


@pytest.fixture(scope="module", params=PATHS)
def serving(request: pytest.FixtureRequest) -> Callable[..., HubProcess]:
    """`HubProcess` on each of the ways that a stream's bytes can take, which must not differ."""
    return partial(HubProcess, program=PATHS[request.param])
