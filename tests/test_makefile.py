"""make, as somebody runs it who has just cloned the project."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S, clean_environment, wait_for

ROOT = Path(__file__).resolve().parent.parent


def copy_checkout(folder: Path) -> Path:
    """What a clone of this checkout would hold if everything in it were committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def bare_environment() -> dict[str, str]:
    """The environment of somebody without an active virtual environment."""
    environment = clean_environment()
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
        environment.pop(name, None)
    folders = environment["PATH"].split(os.pathsep)
    ours = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join(folder for folder in folders if folder != ours)
    return environment


class Serving:
    """A command line that serves until it is interrupted as Ctrl-C does, and what it prints."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.text = ""
        self._words = " ".join(words)
        self._process = subprocess.Popen(
            # What a shell runs in the background ignores SIGINT, and hands that down.
            ["env", "--default-signal=INT", *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A group of its own, which make, its shell and the hub are in: Ctrl-C reaches them all.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line

    def url(self, within_s: float = PATIENCE_S) -> str:
        """Where the hub says that it serves."""
        wait_for(
            lambda: self._found_url() or self._process.poll() is not None,
            f"{self._words!r} to serve",
            within_s=within_s,
        )
        found = self._found_url()
        assert found is not None, f"{self._words!r} has ended: {self.text}"
        return found[1]

    def _found_url(self) -> re.Match[str] | None:
        return re.search(r"from (http://\S+)/cdc/stream", self.text)

    def interrupt(self) -> int:
        os.killpg(self._process.pid, signal.SIGINT)
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def status_of(url: str) -> int:
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_make_demo_serves_from_a_fresh_clone(tmp_path: Path) -> None:
    """With python3 and pip only: an environment is made, the package installed, the demo served."""
    folder = copy_checkout(tmp_path / "clone")
    # UV= is a machine without uv, whatever this one has.
    words = ["make", "demo", "UV=", "ARGS=--port 0"]
    with Serving(words, folder, bare_environment()) as demo:
        url = demo.url(within_s=800)
        wait_for(lambda: status_of(url) == 200, "the demo to be ready")
        demo.interrupt()
        assert "open streams are told where to resume" in demo.text
    assert (folder / "cdchub-demo.db").is_file()
    location = subprocess.run(
        [folder / ".venv/bin/python", "-c", "import cdchub; print(cdchub.__file__)"],
        cwd=tmp_path,
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(location.stdout.strip()).is_relative_to(folder)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_takes_uv_where_it_is_installed(target: str, tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "clone")
    programs = tmp_path / "programs"
    programs.mkdir()

    def would_run() -> str:
        """The commands that make would run on a machine with these programs only."""
        done = subprocess.run(
            [str(shutil.which("make")), "-n", target],
            cwd=folder,
            env={**bare_environment(), "PATH": str(programs)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert "python3 -m venv .venv" in would_run()
    assert ".venv/bin/python -m pip install" in would_run()
    uv = programs / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    assert f"{uv} venv --quiet --python python3 .venv" in would_run()
    assert f"{uv} pip install" in would_run()
    assert "-m pip" not in would_run()
    assert "-m venv" not in would_run()


def test_make_installs_into_the_active_environment(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "clone")
    done = subprocess.run(
        ["make", "-n", "demo", "UV="],
        cwd=folder,
        env={**bare_environment(), "VIRTUAL_ENV": str(tmp_path / "active")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{tmp_path}/active/bin/python -m pip install" in done.stdout
    assert f"{tmp_path}/active/bin/cdchub demo" in done.stdout
    assert ".venv" not in done.stdout
