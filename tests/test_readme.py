"""Every command of the README is run, in a scratch copy of this checkout.

`RUNNERS` has a function for each. A command without a runner fails by name, and so does a runner
whose command is no longer in the README. Only the port is another one: the README says 8787, a
runner takes a free one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import PATIENCE_S, HubProcess, clean_environment, make_database, run_sql, wait_for
from tests.test_makefile import ROOT, Serving, copy_checkout, status_of

_BIN = Path(sys.executable).parent


def commands(text: str) -> list[str]:
    """The command lines of the ```sh blocks, with the lines that a backslash continues."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if words_of(line)]


def words_of(line: str) -> list[str]:
    return shlex.split(line.removeprefix("$ "), comments=True)


def normalised(line: str) -> str:
    """A command line without what may be worded in many ways: SQL, positions, what pip installs."""
    words = words_of(line)
    if words[0] == "sqlite3":
        words[2:] = ["…"]
    if words[:2] == ["pip", "install"] or words[:3] == ["docker", "compose", "up"]:
        words[2 + (words[0] == "docker") :] = ["…"]
    return " ".join(re.sub("^(Last-Event-ID): .*", r"\1: …", word) for word in words)


README = commands((ROOT / "README.md").read_text())


class Scratch:
    """A copy of the checkout, and the words of one command line to be run in it."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.folder, self.words = folder, words
        # `cdchub` and `python` are what they are in an active environment.
        path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**clean_environment(), "PATH": path, "VIRTUAL_ENV": sys.prefix}
        for name in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
            self.environment.pop(name, None)

    def run(self, *words: str, timeout_s: float = PATIENCE_S) -> str:
        """Runs words, the command line's own if none are given, to a good end."""
        done = subprocess.run(
            words or self.words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{done.args}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *words: str) -> Serving:
        return Serving(words or self.words, self.folder, self.environment)

    def make(self, *words: str) -> list[str]:
        """make's words, for an environment that is installed already.

        `-o`: so it is, whatever the stamps in it say. make must not install this copy into it.
        """
        stamps = [f"{sys.prefix}/.cdchub-installed", f"{sys.prefix}/.cdchub-dev-installed"]
        return [*self.words, *words, *(f"--old-file={stamp}" for stamp in stamps)]

    def database(self, *, captured: bool = False) -> Path:
        path = make_database(
            self.folder / "app.db", "CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT)"
        )
        if captured:
            self.run("cdchub", "init", "app.db")
        return path

    @contextmanager
    def demo(self) -> Iterator[HubProcess]:
        """The demo, which the README has started; the words then name its port."""
        with HubProcess(self.folder / "cdchub-demo.db", command=["demo"], cwd=self.folder) as hub:
            self.words = [
                word.replace("localhost:8787", f"localhost:{hub.port}") for word in self.words
            ]
            yield hub


def sees(serving: Serving, write: Callable[[], object], wanted: str) -> None:
    """Writes until what was written is seen: a command that follows has started at some time."""
    wait_for(lambda: wanted in serving.text or write(), f"{wanted!r} in {serving.text!r}")


def add_todo(hub: HubProcess) -> None:
    run_sql(
        hub.database,
        "INSERT INTO todos(id, title, completed, position, created_at, updated_at)"
        " VALUES (hex(randomblob(8)), 'from the README', 0, 0, 0, 0)",
    )


def add_note(database: Path) -> None:
    run_sql(database, "INSERT INTO notes(text) VALUES ('from the README')")


def install(scratch: Scratch) -> None:
    """Everything pip does before it copies files, with this checkout for the published package."""
    assert scratch.words[2:] in (["."], ["cdchub"]), scratch.words
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    output = scratch.run(
        *pip, "--no-build-isolation", "--disable-pip-version-check", ".", timeout_s=100
    )
    assert "Would install cdchub-" in output


def make_demo(scratch: Scratch) -> None:
    with scratch.start(*scratch.make("ARGS=--port 0")) as demo:
        url = demo.url()
        wait_for(lambda: status_of(url) == 200, "the demo to be ready")
        demo.interrupt()
    assert (scratch.folder / "cdchub-demo.db").is_file()


def make_test(scratch: Scratch) -> None:
    """What make would run, and that pytest finds the tests. Not the tests: this is one of them."""
    assert "-m pytest" in scratch.run(*scratch.make("-n"))
    found = scratch.run(*scratch.make("ARGS=--collect-only -q"), timeout_s=100)
    assert "tests/test_readme.py::" in found


def make_says(*wanted: str) -> Callable[[Scratch], None]:
    """Only `make -n`, for what takes minutes: that it would run these, and that they are there.

    It is asked where nothing is installed yet, so that it names what it would install, too.
    """

    def run(scratch: Scratch) -> None:
        would_run = scratch.run(*scratch.words, "-n", "VENV=fresh")
        for words in wanted:
            assert words in would_run
            for file in re.findall(r"\S+\.py", words):
                assert (scratch.folder / file).is_file(), f"{file} is not there"

    return run


def sqlite3_shell(scratch: Scratch) -> None:
    with scratch.demo() as hub, hub.stream("table=todos") as stream:
        stream.until("caught-up")
        scratch.run()
        assert stream.changes(1)[0]["table"] == "todos"


def curl_stream(scratch: Scratch) -> None:
    with scratch.demo() as hub, scratch.start() as curl:
        sees(curl, lambda: add_todo(hub), '"newValue":')
        assert "\nid: " in curl.text


def curl_resume(scratch: Scratch) -> None:
    """From a position of before a change, which then is sent again."""
    with scratch.demo() as hub:
        position = hub.head()
        add_todo(hub)
        (given,) = [n for n, word in enumerate(scratch.words) if word.startswith("Last-Event-ID: ")]
        scratch.words[given] = f"Last-Event-ID: {position}"
        with scratch.start() as curl:
            wait_for(lambda: "from the README" in curl.text, "the change after the position")


def cdchub_init(scratch: Scratch) -> None:
    database = scratch.database()
    assert "notes" in scratch.run()
    assert run_sql(database, "SELECT 1 FROM sqlite_schema WHERE type = 'trigger' LIMIT 1")


def cdchub_serve(scratch: Scratch) -> None:
    database = scratch.database()
    with scratch.start(*scratch.words, "--port", "0") as hub:
        url = hub.url()
        wait_for(lambda: status_of(url) == 200, "the hub to be ready")
        add_note(database)
        assert hub.interrupt() == 0


def cdchub_tail_file(scratch: Scratch) -> None:
    database = scratch.database(captured=True)
    with scratch.start() as tail:
        sees(tail, lambda: add_note(database), '"newValue":{"id":')
        assert tail.interrupt() == 0


def cdchub_tail_url(scratch: Scratch) -> None:
    with scratch.demo() as hub, scratch.start() as tail:
        sees(tail, lambda: add_todo(hub), "from the README")
        assert tail.interrupt() == 0


def cdchub_tail_check(scratch: Scratch) -> None:
    with scratch.demo(), scratch.start() as tail:
        wait_for(lambda: "agree with the hub" in tail.text, "a check")
        assert tail.interrupt() == 0


def cdchub_status(scratch: Scratch) -> None:
    scratch.database(captured=True)
    assert re.search(r"^tables +notes$", scratch.run(), flags=re.MULTILINE)


def cdchub_verify(scratch: Scratch) -> None:
    add_note(scratch.database(captured=True))
    assert "1 rows of 1 tables agree" in scratch.run()


def cdchub_replay(scratch: Scratch) -> None:
    database = scratch.database(captured=True)
    with HubProcess(database) as hub:
        for rows, lsn in ((42, 42), (8, 50)):
            run_sql(database, *["INSERT INTO notes(text) VALUES ('t')"] * rows)
            hub.wait_for_lsn(lsn)
    scratch.run()
    assert run_sql(scratch.folder / "old.db", "SELECT count(*) FROM notes") == [[42]]


def cdchub_migrate(scratch: Scratch) -> None:
    database = scratch.database(captured=True)
    (scratch.folder / scratch.words[-1]).write_text("ALTER TABLE notes DROP COLUMN text;")
    scratch.run()
    assert run_sql(database, "SELECT name FROM pragma_table_info('notes')") == [["id"]]


def cdchub_deinit(scratch: Scratch) -> None:
    database = scratch.database(captured=True)
    scratch.run()
    # An emptied sqlite_sequence may stay: SQLite can't drop it.
    names = run_sql(database, "SELECT name FROM sqlite_schema WHERE name != 'sqlite_sequence'")
    assert names == [["notes"]]
    assert not list(scratch.folder.glob("app.db-cdchub*"))


def docker_compose_up(scratch: Scratch) -> None:
    """Builds and starts nothing: tests/test_composition.py runs what it would start.

    Where Docker's plugin is, it reads the composition.
    """
    assert (scratch.folder / "docker-compose.yml").is_file()
    plugin = subprocess.run(["sh", "-c", "docker compose version"], capture_output=True)
    if plugin.returncode == 0:
        scratch.run("docker", "compose", "config", "--quiet")


RUNNERS: dict[str, Callable[[Scratch], None]] = {
    "pip install …": install,
    "make demo": make_demo,
    "make test": make_test,
    "make lint": make_says("ruff format --check .", "ruff check .", "mypy"),
    "make soak": make_says("loadtest/soak.py"),
    "make conformance": make_says("-m tests.conformance"),
    "make bench": make_says("loadtest/spine.py"),
    "make bench-fanout": make_says("loadtest/fanout.py"),
    "make compare": make_says("loadtest/compare.py"),
    "make loadtest": make_says("--group load", "-m loadtest.locust_run"),
    "sqlite3 cdchub-demo.db …": sqlite3_shell,
    "curl -N http://localhost:8787/cdc/stream?table=todos": curl_stream,
    "curl -N -H Last-Event-ID: … http://localhost:8787/cdc/stream?table=todos": curl_resume,
    "cdchub init app.db": cdchub_init,
    "cdchub serve app.db": cdchub_serve,
    "cdchub tail app.db": cdchub_tail_file,
    "cdchub tail http://localhost:8787 --table todos": cdchub_tail_url,
    "cdchub tail http://localhost:8787 --check": cdchub_tail_check,
    "cdchub status app.db": cdchub_status,
    "cdchub verify app.db": cdchub_verify,
    "cdchub replay app.db --to 42 -o old.db": cdchub_replay,
    "cdchub migrate app.db drop-a-column.sql": cdchub_migrate,
    "cdchub deinit app.db --yes": cdchub_deinit,
    "docker compose up …": docker_compose_up,
}

_NEEDED = {"curl", "sqlite3"}


def _parameters() -> list[object]:
    found: list[object] = []
    for line in dict.fromkeys(README):
        program = words_of(line)[0]
        marks = [pytest.mark.needs(program)] if program in _NEEDED else []
        found.append(pytest.param(line, id=normalised(line), marks=marks))
    return found


@pytest.mark.parametrize("line", _parameters())
def test_a_command_of_the_readme_works(line: str, tmp_path: Path) -> None:
    runner = RUNNERS.get(normalised(line))
    assert runner is not None, f"no runner for {normalised(line)!r}"
    runner(Scratch(copy_checkout(tmp_path / "scratch"), words_of(line)))


@pytest.mark.parametrize("command", sorted(RUNNERS))
def test_a_runner_has_a_command_in_the_readme(command: str) -> None:
    assert command in map(normalised, README), f"the README no longer has {command!r}"
