"""Every bad input ends in one line that says why, the right exit code, and an untouched database."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness import (
    PATIENCE_S,
    HubProcess,
    cdchub,
    clean_environment,
    make_database,
    run_sql,
    wait_for,
)

COMMANDS = {
    "serve": ["serve", "DB", "--port", "0"],
    "init": ["init", "DB"],
    "deinit": ["deinit", "DB", "--yes"],
    "tail": ["tail", "DB"],
    "status": ["status", "DB"],
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return make_database(
        tmp_path / "mixed.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, room)",
        "CREATE TABLE u(id INTEGER PRIMARY KEY)",
        "CREATE VIRTUAL TABLE words USING fts5(word)",
        "CREATE VIEW seen AS SELECT id FROM t",
        "INSERT INTO t VALUES (1, 'one', 'a')",
    )


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """Checks the exit code and the one line on standard error."""
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.endswith("\n")
    for word in words:
        assert word in done.stderr
    return done.stderr


class Untouched:
    """Checks that the directory is, byte for byte, as it was."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _bytes(self) -> dict[str, str]:
        files = (path for path in self._directory.iterdir() if path.is_file())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def __enter__(self) -> None:
        self._before = self._bytes()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            assert self._bytes() == self._before


def is_whole(database: Path) -> None:
    assert run_sql(database, "PRAGMA integrity_check") == [["ok"]]


# What is no database.


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["text", "missing", "directory", "no-such-directory", "half", "fifo"])
def test_what_is_no_database(tmp_path: Path, kind: str, command: str) -> None:
    path = tmp_path / "some.db"
    if kind == "text":
        path.write_text("this is no database, and it is long enough to hold a header. " * 80)
    elif kind == "directory":
        path.mkdir()
    elif kind == "no-such-directory":
        path = tmp_path / "nowhere" / "some.db"
    elif kind == "half":
        path.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    elif kind == "fifo":
        os.mkfifo(path)
    with Untouched(tmp_path):
        fails(cdchub(*(path if word == "DB" else word for word in COMMANDS[command])), 1, str(path))


@pytest.mark.parametrize("command", ["serve", "init"])
def test_a_directory_that_cannot_be_written(command: str) -> None:
    """Root may write anywhere, so as root the right to ignore modes is given up first."""
    prefix: Sequence[str] = []
    directory = Path(tempfile.mkdtemp(prefix="cdchub-test-"))
    try:
        database = make_database(directory / "app.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)")
        if os.geteuid() == 0:
            caps = "-dac_override,-dac_read_search,-fowner"
            prefix = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"]
            os.chown(database, 65534, 65534)
            os.chown(directory, 65534, 65534)
        database.chmod(0o444)
        directory.chmod(0o555)
        words = [str(database) if word == "DB" else word for word in COMMANDS[command]]
        with Untouched(directory):
            done = subprocess.run(
                [*prefix, sys.executable, "-m", "cdchub", *words],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                env=clean_environment(),
            )
            fails(done, 1, str(directory))
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)


def test_a_rollback_journal_database_names_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "roll.db"
    run_sql(path, "CREATE TABLE t(id INTEGER PRIMARY KEY)")
    for command in ("serve", "init"):
        with Untouched(tmp_path):
            done = cdchub(*(path if word == "DB" else word for word in COMMANDS[command]))
            fails(done, 1, "WAL", f"cdchub init {path} --wal")
    assert cdchub("init", path, "--wal").returncode == 0
    assert run_sql(path, "PRAGMA journal_mode") == [["wal"]]
    with HubProcess(path) as hub:
        assert hub.stop() == 0
    is_whole(path)


def test_the_log_of_another_database(tmp_path: Path) -> None:
    for name in ("one", "other"):
        path = make_database(tmp_path / f"{name}.db", "CREATE TABLE t(id INTEGER PRIMARY KEY)")
        with HubProcess(path) as hub:
            run_sql(path, "INSERT INTO t VALUES (1)")
            hub.wait_for_lsn(1)
            hub.stop()
    shutil.copy(tmp_path / "other.db-cdchub", tmp_path / "one.db-cdchub")
    with Untouched(tmp_path):
        fails(cdchub("serve", tmp_path / "one.db", "--port", "0"), 1, "one.db-cdchub")
    is_whole(tmp_path / "one.db")


# What is no table.

WRONG_CHOICES = [
    (["--table", "nope"], ["nope"]),
    (["--table", "t", "--table", "nope"], ["nope"]),
    (["--table", "words"], ["words", "virtual table"]),
    (["--table", "seen"], ["seen", "view"]),
    (["--table", "t:room=nope"], ["nope"]),
    (["--table", "t:nonsense=v"], ["nonsense"]),
    (["--table", "t:capture=some"], ["some", "'full' or 'plain'"]),
    (["--table", "t:capture=plain:room=v"], ["comes last"]),
    (["--table", ":capture=plain"], ["T[:room=COL]"]),
    (["--table", ""], []),
    (["--exclude", "nope"], ["nope"]),
    (["--exclude", "t.nope"], ["nope"]),
    (["--table", "t", "--exclude", "t.nope"], ["nope"]),
    (["--exclude", "t.id"], ["id"]),
    (["--table", "t:room=v", "--exclude", "t.v"], ["v"]),
    (["--table", "sqlite_schema"], ["sqlite_schema"]),
]


@pytest.mark.parametrize("command", ["serve", "init"])
@pytest.mark.parametrize(("options", "words"), WRONG_CHOICES)
def test_a_wrong_choice_of_tables(
    mixed: Path, command: str, options: list[str], words: list[str]
) -> None:
    more = ["--port", "0"] if command == "serve" else []
    before = mixed.read_bytes()
    done = run_briefly(command, str(mixed), *options, *more)
    fails(done, done.returncode if done.returncode == 2 else 1, *words)
    assert mixed.read_bytes() == before
    is_whole(mixed)


def run_briefly(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Like `cdchub()`, but a command that serves instead of failing is ended."""
    try:
        return cdchub(*arguments)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it runs instead of failing: {arguments}")


@pytest.mark.parametrize("command", ["serve", "init"])
def test_its_own_tables_are_never_captured(mixed: Path, command: str) -> None:
    assert cdchub("init", mixed).returncode == 0
    for name in ("_cdchub_outbox", "_cdchub_meta", "sqlite_sequence"):
        more = ["--port", "0"] if command == "serve" else []
        fails(run_briefly(command, str(mixed), "--table", name, *more), 1, name)
    is_whole(mixed)


# Ports and owners.


def test_a_port_in_use(tmp_path: Path, database: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with Untouched(tmp_path):
            fails(cdchub("serve", database, "--port", port), 1, port)
    is_whole(database)


def test_a_second_owner_names_the_first(hub: HubProcess) -> None:
    fails(cdchub("serve", hub.database, "--port", "0"), 1, str(hub.pid))
    done = cdchub("deinit", hub.database, "--yes")
    fails(done, 1, str(hub.pid))
    assert hub.get("/readyz").status == 200
    hub.kill()
    with HubProcess(hub.database) as next_one:  # an owner that was killed is no owner
        assert next_one.stop() == 0


# What works, however odd.


def test_a_weird_table_without_a_key_works_end_to_end(tmp_path: Path) -> None:
    name, quoted = 'we"ird table', '"we""ird table"'
    database = make_database(tmp_path / "odd.db", f"CREATE TABLE {quoted}(a)")
    assert cdchub("init", database, "--table", name).returncode == 0
    with HubProcess(database, "--table", name) as hub:
        with hub.stream("table=we%22ird%20table") as stream:
            stream.until("caught-up")
            run_sql(database, f"INSERT INTO {quoted} VALUES ('x')")
            (change,) = stream.changes(1)
        assert (change["table"], change["newValue"]) == (name, {"a": "x"})
        for source in (str(database), hub.url):
            done = cdchub("tail", source, "--table", name, "--since", "beginning", "--no-follow")
            assert [json.loads(line) for line in done.stdout.splitlines()] == [change]
        assert hub.stop() == 0
    assert cdchub("deinit", database, "--yes").returncode == 0


def test_a_table_without_a_key_is_warned_of_in_one_line(tmp_path: Path) -> None:
    with HubProcess(make_database(tmp_path / "odd.db", "CREATE TABLE keyless(a)")) as hub:
        assert hub.stop() == 0
    (warning,) = [line for line in hub.lines if "WARNING" in line]
    assert "keyless" in warning


@pytest.fixture
def tailing(database: Path) -> Iterator[list[subprocess.Popen[Any]]]:
    """`tail` of a file and of a URL, each after its first change."""
    with HubProcess(database) as hub:
        run_sql(database, "INSERT INTO todos(id) VALUES ('a')")
        hub.wait_for_lsn(1)
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "cdchub", "tail", source, "--since", "beginning"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=clean_environment(),
            )
            for source in (str(database), hub.url)
        ]
        for process in started:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["key"] == {"id": "a"}
        yield started
        for process in started:
            process.kill()
            process.communicate()


def test_an_interrupted_tail_is_no_failure(tailing: list[subprocess.Popen[Any]]) -> None:
    for process in tailing:
        process.send_signal(signal.SIGINT)
        assert (process.wait(PATIENCE_S), process.stderr.read()) == (0, b"")


def test_a_tail_whose_reader_left_is_no_failure(
    database: Path, tailing: list[subprocess.Popen[Any]]
) -> None:
    for process in tailing:
        process.stdout.close()

    def all_ended() -> bool:
        run_sql(database, "INSERT INTO todos(title) VALUES (printf('%.*c', 100000, 'x'))")
        return all(process.poll() is not None for process in tailing)

    wait_for(all_ended, "tail to notice that nobody reads")
    for process in tailing:
        process.stdout = None
        assert (process.returncode, process.stderr.read()) == (0, b"")
