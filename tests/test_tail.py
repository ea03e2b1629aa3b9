"""`cdchub tail` and `cdchub status`: files and URLs, pretty and JSON, restarts and closed pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdchub.cli.pretty import pretty
from tests.harness import (
    PATIENCE_S,
    HubProcess,
    cdchub,
    clean_environment,
    make_database,
    run_sql,
    wait_for,
)


def add(database: Path, *ids: str) -> None:
    run_sql(database, *[f"INSERT INTO todos(id, title) VALUES ('{i}', 't')" for i in ids])


def ids(lines: list[str]) -> list[str]:
    return [json.loads(line)["key"]["id"] for line in lines]


class Tail:
    """A running `cdchub tail` and what it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.notes: list[str] = []
        for stream, into in ((process.stdout, self.lines), (process.stderr, self.notes)):
            threading.Thread(target=self._read, args=(stream, into), daemon=True).start()

    @staticmethod
    def _read(stream: Any, into: list[str]) -> None:
        # extend takes each line as it comes, so the other thread sees it at once.
        into.extend(stream)

    def wait_for_ids(self, *wanted: str) -> None:
        wait_for(lambda: ids(self.lines) == list(wanted), f"{wanted}, have {self.lines} {self.notes}")


@contextmanager
def tail(*arguments: str | Path) -> Iterator[Tail]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cdchub", "tail", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    try:
        yield Tail(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0, "SIGINT is a normal end"
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def test_a_file_is_followed_without_a_hub(database: Path) -> None:
    assert cdchub("init", database).returncode == 0
    log = database.with_name("app.db-cdchub")
    before = log.read_bytes()
    add(database, "a")
    with tail(database, "--since", "beginning") as running:
        running.wait_for_ids("a")
        add(database, "b", "c")
        running.wait_for_ids("a", "b", "c")
    assert log.read_bytes() == before, "tail only reads"


def test_a_file_is_followed_while_a_hub_comes_prunes_and_goes(database: Path) -> None:
    cdchub("init", database)
    add(database, "a")
    with tail(database, "--since", "beginning") as running:
        running.wait_for_ids("a")
        hub = HubProcess(database).start()
        add(database, "b")
        running.wait_for_ids("a", "b")
        # What the hub does when it has logged them; the rows are then only in the log.
        process = running.process
        process.send_signal(signal.SIGSTOP)
        add(database, "c", "d")
        hub.wait_for_lsn(4)
        run_sql(database, "DELETE FROM _cdchub_outbox WHERE lsn < 4")
        process.send_signal(signal.SIGCONT)
        running.wait_for_ids("a", "b", "c", "d")
        hub.kill()
        add(database, "e")
        running.wait_for_ids("a", "b", "c", "d", "e")


def test_a_file_can_be_read_once(database: Path) -> None:
    cdchub("init", database)
    add(database, "a", "b")
    done = cdchub("tail", database, "--since", "1", "--no-follow")
    assert (done.returncode, ids(done.stdout.splitlines())) == (0, ["b"])
    done = cdchub("tail", database, "--snapshot", "--no-follow", "--table", "todos")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["type"], r["key"]["id"]) for r in rows] == [("SNAPSHOT", "a"), ("SNAPSHOT", "b")]
    done = cdchub("tail", database, "--since", "99", "--no-follow")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    for since, type in (("1", "INSERT"), ("99", "SNAPSHOT")):
        done = cdchub("tail", database, "--snapshot", "--since", since, "--no-follow")
        assert done.returncode == 0
        assert {json.loads(line)["type"] for line in done.stdout.splitlines()} == {type}


def test_a_url_is_followed_across_restarts(hub: HubProcess) -> None:
    with tail(hub.url, "--table", "todos", "--since", "beginning") as running:
        add(hub.database, "a")
        running.wait_for_ids("a")
        hub.kill()
        add(hub.database, "b")
        hub.start()
        running.wait_for_ids("a", "b")
        hub.stop()
        add(hub.database, "c")
        hub.start()
        add(hub.database, "d")
        running.wait_for_ids("a", "b", "c", "d")


def test_a_url_can_be_read_once(hub: HubProcess) -> None:
    add(hub.database, "a", "b")
    hub.wait_for_lsn(2)
    done = cdchub("tail", hub.url, "--since", "beginning", "--no-follow")
    assert (done.returncode, ids(done.stdout.splitlines())) == (0, ["a", "b"])


@pytest.mark.parametrize(
    "words",
    [
        ["--table", "TODOS"],
        ["--table", "todos,lanes"],
        ["--table", "todos", "--table", "Lanes"],
        ["--room", "a"],
        ["--room", "a", "--since", "beginning"],
    ],
)
def test_a_check_understands_what_tail_does(tmp_path: Path, words: list[str]) -> None:
    database = make_database(
        tmp_path / "app.db",
        "CREATE TABLE todos(id TEXT PRIMARY KEY, room)",
        "CREATE TABLE lanes(id INTEGER PRIMARY KEY)",
        "INSERT INTO todos VALUES ('x', 'a'), ('y', 'b')",
    )
    with HubProcess(database) as hub:
        run_sql(database, "INSERT INTO todos VALUES ('z', 'a')", "INSERT INTO lanes VALUES (1)")
        hub.wait_for_lsn(2)
        done = cdchub("tail", hub.url, "--check", "--no-follow", *words)
        assert done.returncode == 0, done.stderr
        assert "agree with the hub" in done.stderr + done.stdout


def test_refusals_and_dead_addresses_are_one_line(hub: HubProcess) -> None:
    for arguments in (
        ["tail", hub.url, "--table", "nope"],
        ["tail", hub.url, "--since", "elsewhere:1x"],
        ["tail", "http://127.0.0.1:1", "--no-follow"],
        ["status", "http://127.0.0.1:1"],
        ["status", hub.url + "/nowhere"],
    ):
        done = cdchub(*arguments)
        assert done.returncode in (1, 2), done
        assert (done.stdout, done.stderr.count("\n")) == ("", 1), done


def test_a_reset_is_told_on_standard_error(hub: HubProcess) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    done = cdchub("tail", hub.url, "--since", "elsewhere:1", "--no-follow")
    assert done.returncode == 0
    assert '"reason":"epoch"' in done.stderr


def test_a_closed_pipe_is_a_normal_end(database: Path) -> None:
    cdchub("init", database)
    run_sql(
        database,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
        " INSERT INTO todos(id, title) SELECT i, hex(zeroblob(200)) FROM n",
    )
    command = f"{sys.executable} -m cdchub tail {database} --since beginning | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


def test_a_terminal_gets_colours_and_a_pipe_json(database: Path) -> None:
    cdchub("init", database)
    add(database, "a")
    primary, secondary = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "cdchub", "tail", str(database), "--since", "0", "--no-follow"],
            stdout=secondary,
            timeout=60,
            check=True,
        )
        shown = os.read(primary, 4_096).decode()
    finally:
        os.close(primary)
        os.close(secondary)
    assert "\x1b[32mINSERT" in shown
    assert "todos  id=a  title: t" in shown


def test_a_pretty_line_shows_what_changed_and_nothing_dangerous() -> None:
    change = {
        "lsn": 7,
        "type": "UPDATE",
        "table": "t\x1b[2J",
        "key": {"id": 1},
        "oldValue": {"id": 1, "a": 1, "b": "same", "c": None},
        "newValue": {"id": 1, "a": 1.0, "b": "same", "c": "x" * 100},
        "timestamp": 0,
        "txid": 7,
        "commit": True,
    }
    line = pretty(json.dumps(change).encode(), colour=False)
    assert re.match(r"\d\d:\d\d:\d\d\.000        7  UPDATE    t", line)
    assert "a: 1 → 1.0" in line
    assert "same" not in line
    assert "\x1b" not in line
    assert line.endswith("x…")


def test_status_of_a_file_and_of_a_hub(hub: HubProcess) -> None:
    add(hub.database, "a")
    hub.wait_for_lsn(1)
    of_file = json.loads(cdchub("status", hub.database, "--json").stdout)
    of_hub = json.loads(cdchub("status", hub.url, "--json").stdout)
    assert of_file["servedByPid"] == hub.pid
    assert (of_file["headLsn"], of_file["lagLsn"]) == (1, 0)
    assert (of_hub["headLsn"], of_hub["epoch"]) == (1, of_file["epoch"])
    shown = cdchub("status", hub.database).stdout
    assert re.search(r"^headLsn +1$", shown, re.MULTILINE)
    hub.stop()
    assert json.loads(cdchub("status", hub.database, "--json").stdout)["servedByPid"] is None


def test_an_older_copy_is_followed_as_what_it_is(database: Path, tmp_path: Path) -> None:
    """Restored while no hub runs, to a lower head than the log's: the old history ends there, the new
    one is told from the outbox, and then from the log of the hub that begins it."""
    with HubProcess(database) as hub:
        add(database, "old")
        hub.wait_for_lsn(1)
        assert hub.stop() == 0
        run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        copy = tmp_path / "copy.db"
        shutil.copy(database, copy)
        hub.start()
        add(database, "lost1", "lost2", "lost3")
        hub.wait_for_lsn(4)
        assert hub.stop() == 0
    run_sql(database, "PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(copy, database)
    with tail(database, "--since", "beginning") as running:
        running.wait_for_ids("old", "lost1", "lost2", "lost3")
        wait_for(lambda: "reset: the source was restored" in "".join(running.notes), "the note")
        add(database, "new1")
        running.wait_for_ids("old", "lost1", "lost2", "lost3", "new1")
        with HubProcess(database):
            add(database, "new2", "new3", "new4", "new5")
            running.wait_for_ids("old", "lost1", "lost2", "lost3", *(f"new{n}" for n in range(1, 6)))
        assert "".join(running.notes).count("reset") == 1
