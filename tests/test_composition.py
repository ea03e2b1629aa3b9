"""The image and the composition: linted, and their commands and checks run.

What is shipped is what is tested: the Caddyfile is the same file, told other ports by its environment,
and the composition's own commands and checks are run here with /data as a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdchub.cli.options import parse
from cdchub.cli.serve import serve_config
from cdchub.config import StreamConfig
from tests.harness import PATIENCE_S, HubProcess, clean_environment, make_database, run_sql, wait_for

_ROOT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
_COMPOSITION = yaml.safe_load((_ROOT / "docker-compose.yml").read_text())
_SERVICES: dict[str, dict[str, Any]] = _COMPOSITION["services"]
_CADDYFILE = _ROOT / "Caddyfile"

# Reading the files as Docker does.


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments."""
    text = re.sub(r"^#.*\n", "", (_ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def last_stage() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, argument in instructions():
        found = {} if name == "FROM" else found
        found[name] = argument
    return found


def interpolated(text: str, values: Mapping[str, str] | None = None) -> str:
    """`${NAME:-default}` and `$$` as Compose reads them."""
    given = values or {}
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: given.get(m[1]) or m[2], text)
    return text.replace("$$", "$")


def arguments_of(words: Sequence[str], folder: Path | None = None) -> list[str]:
    words = [interpolated(word) for word in words]
    return words if folder is None else [re.sub("^/data(?=/)", str(folder), word) for word in words]


def run_check(words: Sequence[str], port: int) -> int:
    """A health check's exit code, run as the container would, with this Python for its own."""
    assert words[0] == "CMD"
    assert words[1] == "python"
    return subprocess.run(
        [sys.executable, *words[2:]],
        env={**clean_environment(), "CDCHUB_PORT": str(port), "http_proxy": "http://127.0.0.1:1"},
        capture_output=True,
        timeout=PATIENCE_S,
    ).returncode


def health_checks() -> dict[str, list[str]]:
    command = last_stage()["HEALTHCHECK"].partition("CMD ")[2]
    return {"image": ["CMD", *json.loads(command)], "hub": _SERVICES["hub"]["healthcheck"]["test"]}


# The image.


def test_the_dockerfile_passes_its_linter() -> None:
    done = subprocess.run([_BIN / "hadolint", _ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_the_hub_as_a_user_without_rights() -> None:
    stage = last_stage()
    user, _, group = stage["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert json.loads(stage["ENTRYPOINT"]) == ["cdchub"]
    assert stage["VOLUME"] == "/data"
    assert parse(["serve", "x"], {}).port == int(stage["EXPOSE"])


def test_base_images_are_pinned() -> None:
    images = [argument.split()[0] for name, argument in instructions() if name == "FROM"]
    images += [s["image"] for s in _SERVICES.values() if "build" not in s]
    assert len(images) == 3
    for image in images:
        assert re.fullmatch(r"[a-z]+:\d+\.\d+[\w.-]*", image), f"{image} is not pinned to a version"


@pytest.mark.parametrize("name", ["image", "hub"])
def test_the_health_check_tells_a_hub_that_serves_from_one_that_does_not(
    hub: HubProcess, name: str
) -> None:
    check = health_checks()[name]
    assert run_check(check, hub.port) == 0
    hub.stop()
    assert run_check(check, hub.port) != 0


def test_what_the_image_copies_is_all_that_the_package_needs(tmp_path: Path) -> None:
    """Installs from a folder with only those files, as the build does, and serves from there.

    What the package depends on comes from the environment of the tests.
    """
    context = tmp_path / "src"
    context.mkdir()
    for source in copied():
        assert f"!{source}" in ignored(), f".dockerignore keeps {source} from the build"
        if (_ROOT / source).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(_ROOT / source, context / source, ignore=leave_out)
        else:
            shutil.copy(_ROOT / source, context / source)
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    done = subprocess.run(
        [*install, "--no-deps", "--no-build-isolation", "--disable-pip-version-check", context],
        # pip runs the build backend, which belongs to the tests' environment, in the new one.
        env={**clean_environment(), "PYTHONPATH": packages()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    database = make_database(tmp_path / "app.db", "CREATE TABLE t(a INTEGER PRIMARY KEY)")
    with Installed(home, database) as process:
        assert process.get("/").status == 200
        assert process.get("/cdc/tables").json()[0]["table"] == "t"


class Installed(HubProcess):
    """A hub started by the command of another environment."""

    def __init__(self, home: Path, database: Path) -> None:
        super().__init__(database, cwd=database.parent)
        python = str(home / "bin" / "python")
        script = f"import sys; sys.path.append({packages()!r}); from cdchub.cli import main; main()"
        self._arguments = [python, "-I", "-c", script, "serve", str(database), "--port"]


def packages() -> str:
    return str(Path(pytest.__file__).resolve().parent.parent)


def copied() -> list[str]:
    """What the first stage takes from the build's context."""
    sources: list[str] = []
    for name, argument in instructions():
        if name == "COPY" and not argument.startswith("--from"):
            sources += argument.split()[:-1]
    return sources


def ignored() -> list[str]:
    return (_ROOT / ".dockerignore").read_text().splitlines()


def test_nothing_but_the_package_gets_into_the_build() -> None:
    lines = [line for line in ignored() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


# The composition.


def test_the_composition_passes_its_linter() -> None:
    rules = "{extends: default, rules: {line-length: {max: 104}, document-start: disable}}"
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", "-d", rules, _ROOT / "docker-compose.yml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(_SERVICES))
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = _SERVICES[name]
    assert not service.get("privileged")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    if "build" in service:
        user = interpolated(service["user"]).split(":")
        assert all(int(number) > 0 for number in user)
        assert "cap_add" not in service
    else:
        assert service["cap_add"] == ["NET_BIND_SERVICE"]


def test_services_start_in_order_and_come_back() -> None:
    assert _SERVICES["hub"]["depends_on"] == {
        "prepare": {"condition": "service_completed_successfully"}
    }
    assert _SERVICES["caddy"]["depends_on"] == {"hub": {"condition": "service_healthy"}}
    for name in ("hub", "caddy"):
        assert _SERVICES[name]["restart"] == "unless-stopped"
        assert "test" in _SERVICES[name]["healthcheck"]
    assert int(_SERVICES["hub"]["stop_grace_period"].rstrip("s")) > StreamConfig().drain_s + 5


def test_the_ports_are_published_on_this_machine_only() -> None:
    assert "ports" not in _SERVICES["hub"]
    for port in _SERVICES["caddy"]["ports"]:
        assert interpolated(port).startswith("127.0.0.1:")


def test_every_file_and_volume_that_is_named_exists() -> None:
    assert _SERVICES["hub"]["build"] == "."
    for service in _SERVICES.values():
        for mount in service["volumes"]:
            source = interpolated(mount).split(":")[0]
            there = (
                (_ROOT / source).is_file() if source[0] == "." else source in _COMPOSITION["volumes"]
            )
            assert there, f"{source} is not there"


def test_caddy_is_told_where_the_hub_is() -> None:
    upstream = re.search(r"\{\$CDCHUB_UPSTREAM:([^}]*)\}", _CADDYFILE.read_text())
    assert upstream is not None
    assert upstream[1].split(":") == ["hub", *_SERVICES["hub"]["expose"]]
    for name in _SERVICES["caddy"]["environment"]:
        assert f"{{${name}:" in _CADDYFILE.read_text()


def prepare(folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{_BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        arguments_of(_SERVICES["prepare"]["entrypoint"], folder),
        env={**clean_environment(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_the_composition_serves_an_empty_folder(tmp_path: Path) -> None:
    """The commands of `prepare` and `hub`: a database is made, and a table made later is streamed."""
    done = prepare(tmp_path)
    assert done.returncode == 0, done.stderr
    words = arguments_of(_SERVICES["hub"]["command"], tmp_path)
    assert serve_config(parse(words, {})).http.host == "0.0.0.0"
    database = Path(words[1])
    with HubProcess(database, command=words) as hub:
        run_sql(database, "CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT)")
        wait_for(lambda: hub.get("/cdc/tables").json(), "the new table to be captured")
        with hub.stream("table=notes") as stream:
            stream.until("caught-up")
            run_sql(database, "INSERT INTO notes(text) VALUES ('milk')")
            assert stream.changes(1)[0]["newValue"] == {"id": 1, "text": "milk"}


def test_a_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    run_sql(database, "CREATE TABLE t(a)")
    before = database.read_bytes()
    assert prepare(tmp_path).returncode == 0
    assert database.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]
