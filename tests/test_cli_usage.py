"""Options: what is wrong usage (2), and the layers that options come from."""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cdchub.capture.choice import Choice, TableChoice
from cdchub.capture.table import Grade
from cdchub.cli.serve import choice_from
from tests.harness import PATIENCE_S, cdchub, clean_environment, make_database, run_sql


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return make_database(
        tmp_path / "mixed.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, room)",
        "CREATE TABLE u(id INTEGER PRIMARY KEY)",
    )


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def run_briefly(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return cdchub(*arguments)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it runs instead of failing: {arguments}")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["serve"],
        ["serve", "DB", "extra"],
        ["serve", "DB", "--port", "x"],
        ["serve", "DB", "--port", "99999"],
        ["serve", "DB", "--port", "-1"],
        ["serve", "DB", "--por", "0"],
        ["serve", "DB", "--host", "0.0.0.0"],
        ["serve", "DB", "--host", "::"],
        ["serve", "DB", "--heartbeat", "0"],
        ["serve", "DB", "--heartbeat", "nan"],
        ["serve", "DB", "--heartbeat", "inf"],
        ["serve", "DB", "--drain", "-1"],
        ["serve", "DB", "--drain", "nan"],
        ["serve", "DB", "--retain-age", "nan"],
        ["serve", "DB", "--retain-changes", "0"],
        ["serve", "DB", "--jwt-secret", "x"],
        ["serve", "DB", "--redis", "redis://localhost"],
        ["serve", "DB", "--workers", "2"],
        ["serve", "DB", "--advertise", "http://x"],
        ["serve", "DB", "--config", "/no/such/file.toml"],
        ["tail", "DB", "--check"],
        ["tail", "DB", "--format", "nonsense"],
        ["tail", "DB", "--since", "nonsense"],
        ["serve", "DB", "--base-interval", "0"],
        ["serve", "DB", "--table", "t:capture=some"],
        ["replay", "DB"],
        ["replay", "DB", "--to", "nonsense", "-o", "OUT"],
        ["verify"],
        ["verify", "DB", "extra"],
        ["migrate", "DB"],
        ["migrate", "DB", "x.sql"],
        ["relay"],
        ["deinit", "DB"],
    ],
)
def test_wrong_usage_is_2(mixed: Path, arguments: list[str]) -> None:
    if arguments[:1] in (["tail"], ["deinit"], ["replay"]):
        assert cdchub("init", mixed).returncode == 0
    port = ["--port", "0"] if arguments[:1] == ["serve"] and "--port" not in arguments else []
    words = [str(mixed) if word == "DB" else word for word in arguments]
    fails(run_briefly(*words, *port), 2)
    assert run_sql(mixed, "PRAGMA integrity_check") == [["ok"]]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://", "http://[bad", "https://127.0.0.1:99999"]
)
@pytest.mark.parametrize("command", [["tail", "--no-follow"], ["status"]])
def test_a_url_where_nobody_answers(command: list[str], url: str) -> None:
    done = run_briefly(command[0], url, *command[1:])
    fails(done, done.returncode if done.returncode == 2 else 1)


def test_options_come_from_the_line_then_the_environment_then_the_file(
    mixed: Path, tmp_path: Path
) -> None:
    config = tmp_path / "hub.toml"
    config.write_text('table = ["u"]\n')
    environment = clean_environment()

    def captured(*options: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cdchub", "init", str(mixed), *options],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment | more,
        )
        assert done.returncode == 0, done.stderr
        assert cdchub("deinit", mixed, "--yes").returncode == 0
        named = re.search(r"capturing ([\w, ]+)", done.stdout)
        assert named
        return named[1]

    assert captured() == "t, u"
    assert captured("--config", str(config)) == "u"
    assert captured("--config", str(config), CDCHUB_TABLE="t") == "t"
    assert captured("--config", str(config), "--table", "u", CDCHUB_TABLE="t") == "u"
    assert captured(CDCHUB_CONFIG=str(config)) == "u"
    assert captured(CDCHUB_TABLE="u,t") == "t, u"


def test_the_port_from_the_environment(database: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "cdchub", "serve", str(database)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=clean_environment() | {"CDCHUB_PORT": port},
        )
    fails(done, 1, port)


@pytest.mark.parametrize(
    "text",
    [
        'nonsense = "x"',
        "port = 'x'",
        "port = [1]",
        "table = 5",
        "table = [5]",
        "not toml",
        "\0",
    ],
)
def test_a_bad_file_of_options_is_wrong_usage(mixed: Path, tmp_path: Path, text: str) -> None:
    config = tmp_path / "hub.toml"
    config.write_text(text + "\n")
    fails(run_briefly("serve", str(mixed), "--config", str(config)), 2, str(config))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("t", TableChoice("t")),
        ("t:room=a:b", TableChoice("t", "a:b")),
        ("t:capture=plain", TableChoice("t", grade=Grade.PLAIN)),
        ("a:b:room=c:capture=full", TableChoice("a:b", "c", Grade.FULL)),
    ],
)
def test_a_table_option_names_room_and_grade(text: str, choice: TableChoice) -> None:
    options = argparse.Namespace(table=[text], exclude=[])
    assert choice_from(options) == Choice((choice,))
