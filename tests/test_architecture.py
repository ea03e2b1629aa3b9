"""The tree keeps its shape: who may import whom, that each module stands alone, what is public."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cdchub"

WORDS = {"version", "errors", "position", "change", "filter", "catalog", "config", "writing"}

# For each part, the parts (or single modules) of ours that it may import. `log.protocol` stands for
# what capture and fan-out may know of the log; `capture` is known to its composition only.
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "position": {"errors"},
    "change": set(),
    "filter": {"errors", "change"},
    "catalog": {"errors", "change", "filter"},
    "config": {"errors"},
    "writing": {"change"},
    "log": WORDS,
    "capture": WORDS | {"log.protocol"},
    "fanout": WORDS | {"log.protocol", "log.ring"},
    "sse": WORDS | {"fanout", "log.protocol"},
    "ws": WORDS | {"fanout", "log.protocol"},
    "http": WORDS | {"fanout", "log.protocol"},
    "views": WORDS,
    "spools": WORDS | {"capture", "log", "fanout"},
    "following": WORDS | {"capture", "log"},
    "capturing": WORDS | {"capture", "log", "following"},
    "status": WORDS | {"capture", "fanout", "spools", "capturing", "ws"},
    "hub": WORDS
    | {"capture", "log", "fanout", "spools", "following", "capturing", "status", "app", "ws"},
    "app": WORDS | {"hub", "fanout", "http", "sse", "ws", "views"},
    "handover": {"fanout"},
    "server": WORDS | {"app", "fanout", "handover", "hub"},
    "client": WORDS | {"sse"},
    "cli": WORDS
    | {"capture", "log", "fanout", "sse", "ws", "http", "views", "hub", "server", "client"},
}

# Each package's public names: a wider surface should be a visible change.
PUBLIC = {
    "cdchub": {"Client", "Hub", "Table", "__version__"},
    "cdchub.capture": set(),
    "cdchub.cli": {"main"},
    "cdchub.fanout": {
        "EXTENSION",
        "BufferSink",
        "Core",
        "EntryRows",
        "Feed",
        "Format",
        "Framer",
        "FromBase",
        "Gone",
        "HandOver",
        "Item",
        "LocalFramer",
        "LogPages",
        "Matcher",
        "Present",
        "Sink",
        "SinkListener",
        "SnapshotStream",
        "Snapshots",
        "Start",
        "Subscriber",
        "TransportSink",
        "Turnstile",
        "View",
        "encode",
        "lines_of",
        "resolve",
    },
    "cdchub.http": {
        "BodyFirst",
        "Endpoints",
        "Faults",
        "Guard",
        "from_http_exception",
        "is_loopback",
        "is_origin",
        "problem",
        "wants_html",
    },
    "cdchub.log": {"LogReader", "LogWriter", "Replica", "Ring", "mark_of"},
    "cdchub.sse": {"Event", "EventParser", "SseFramer", "StreamEndpoint"},
    "cdchub.views": {
        "SCHEMA",
        "DashboardApi",
        "TodoApi",
        "client_library",
        "error_page",
        "local_time_zone",
        "past",
        "routes",
        "simulate",
    },
    "cdchub.ws": {
        "SCHEMA",
        "TABLE",
        "USER",
        "Messages",
        "Rooms",
        "WebSocketEndpoint",
        "refuse_unauthorized",
    },
}

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


def imports_of(module: str) -> set[str]:
    """The modules of ours that `module` imports anywhere, also in functions and for types."""
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in MODULES}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", [m for m in MODULES if m != "cdchub"])
def test_imports_follow_the_arrows(module: str) -> None:
    part = part_of(module)
    for imported in imports_of(module) - {"cdchub"}:
        inside = imported.removeprefix("cdchub.")
        if part_of(imported) == part:
            continue
        # A package on the list opens all of itself; a dotted name only that module.
        allowed = any(inside == a or inside.startswith(f"{a}.") for a in ALLOWED[part])
        package_of_allowed = any(a.startswith(f"{inside}.") for a in ALLOWED[part])
        assert allowed or package_of_allowed, f"{module} may not import {imported}"


def test_no_module_is_without_arrows() -> None:
    assert {part_of(module) for module in MODULES} - {""} == set(ALLOWED)


def test_the_load_test_speaks_only_the_wire() -> None:
    for path in (ROOT / "loadtest").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            assert not [n for n in names if n.split(".")[0] == "cdchub"], f"{path} imports cdchub"


def test_each_module_imports_alone() -> None:
    """In one process that forgets between them: a process a module would take minutes. What a package
    imports of its own is alone with it, because importing a module begins with its package."""
    script = (
        "import importlib, sys\n"
        "covered = set()\n"
        "for name in sys.argv[1:]:\n"
        "    if name in covered:\n"
        "        continue\n"
        "    for known in [m for m in sys.modules if m.split('.')[0] == 'cdchub']:\n"
        "        del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
        "    covered |= {m for m in sys.modules if m.startswith(name + '.')}\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *MODULES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_public_names_are_pinned(package: str) -> None:
    module = importlib.import_module(package)
    assert set(getattr(module, "__all__", [])) == PUBLIC[package]
    assert all(hasattr(module, name) for name in PUBLIC[package])


def test_only_one_module_opens_the_source() -> None:
    openers = [
        module
        for module in MODULES
        if re.search(r"apsw\.(Connection|open)\(|[^.]\bConnection\(\w", _source(module))
    ]
    assert openers == ["cdchub.capture.connection", "cdchub.capture.driver"]


def _source(module: str) -> str:
    path = ROOT / Path(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES.get(path.relative_to(PACKAGE).as_posix(), 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path.name}: {node.name} is too long"


# Modules above 400 lines, each with a reason in its docstring. Only ever smaller.
MODULE_LINES: dict[str, int] = {}
