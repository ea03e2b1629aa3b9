"""INTERFACE §4 over real HTTP: who may ask (Host, Origin, CORS)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Answer, HubProcess, make_database

CORS_ORIGIN = "https://app.example"
FULL_TODOS = (
    "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT NOT NULL, completed INTEGER DEFAULT 0,"
    " position INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL)"
)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("origin") / "app.db",
        FULL_TODOS,
        "CREATE TABLE things(id INTEGER PRIMARY KEY, v)",
    )
    options = ("--cors-origin", CORS_ORIGIN, "--allow-host", "hub.example")
    with HubProcess(database, *options) as hub:
        yield hub


def is_problem(answer: Answer, status: int, code: str) -> None:
    assert answer.headers["content-type"] == "application/problem+json", answer.body
    document = answer.json()
    assert (answer.status, document["status"], document["code"]) == (status, status, code)


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("LOCALHOST:1234", True),
        ("127.0.0.1:80", True),
        ("[::1]:8787", True),
        ("hub.example", True),
        ("hub.example:443", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("hub.example.evil.example", False),
        ("192.168.1.1", False),
        ("evil.example@127.0.0.1", False),
        ("127.0.0.1@evil.example", False),
        ("[::1", False),
        ("[zz]", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("path", ["/cdc/tables", "/cdc/stream?table=nope", "/api/todos", "/"])
def test_bound_to_loopback_only_loopback_hosts_are_answered(
    shared: HubProcess, host: str, answered: bool, path: str
) -> None:
    answer = shared.get(path, Host=host)
    if answered:
        assert answer.status == (404 if "nope" in path else 200)
    else:
        assert answer.status in (400, 403, 421), answer.body
        assert b"nope" not in answer.body, "it was answered"


def test_a_refused_host_is_a_problem_and_carries_the_version(shared: HubProcess) -> None:
    answer = shared.get("/cdc/tables", Host="evil.example")
    is_problem(answer, 403, "forbidden")
    assert answer.headers["x-cdc-version"] == "1"


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "127.0.0.1:{port}", True),
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}", True),
        ("http://localhost:{port}", "localhost:{port}", True),
        ("http://localhost", "localhost", True),
        ("http://localhost", "localhost:80", True),
        ("https://localhost", "localhost:443", True),
        (CORS_ORIGIN, "127.0.0.1:{port}", True),
        (CORS_ORIGIN, "localhost", True),
        ("http://localhost:{port}", "127.0.0.1:{port}", False),
        ("http://127.0.0.1:1", "127.0.0.1:{port}", False),
        ("http://127.0.0.1", "127.0.0.1:{port}", False),
        ("http://evil.example", "127.0.0.1:{port}", False),
        ("https://app.example.evil.example", "127.0.0.1:{port}", False),
        ("http://app.example", "127.0.0.1:{port}", False),
        ("null", "127.0.0.1:{port}", False),
        ("", "127.0.0.1:{port}", False),
        ("http://[bad", "127.0.0.1:{port}", False),
        ("http://127.0.0.1:{port}@evil.example", "127.0.0.1:{port}", False),
    ],
)
def test_a_mutation_with_a_foreign_origin_is_forbidden(
    shared: HubProcess, origin: str | None, host: str, allowed: bool
) -> None:
    headers = {"Host": host.format(port=shared.port)}
    if origin is not None:
        headers["Origin"] = origin.format(port=shared.port)
    answer = shared.request("POST", "/api/todos/clear-completed", b"{}", headers | JSON)
    if allowed:
        assert answer.status == 200, answer.body
    else:
        is_problem(answer, 403, "forbidden")


@pytest.mark.parametrize("path", ["/cdc/tables", "/cdc/changes?table=nope", "/healthz"])
def test_cors_names_only_the_listed_origin(shared: HubProcess, path: str) -> None:
    assert shared.get(path, Origin=CORS_ORIGIN).headers["access-control-allow-origin"] == CORS_ORIGIN
    assert "origin" in shared.get(path, Origin=CORS_ORIGIN).headers["vary"].lower()
    for origin in ("http://evil.example", "null", CORS_ORIGIN + ".evil.example"):
        assert "access-control-allow-origin" not in shared.get(path, Origin=origin).headers


def test_cors_on_a_stream(shared: HubProcess) -> None:
    with shared.stream("table=things", Origin=CORS_ORIGIN) as stream:
        assert stream.headers["access-control-allow-origin"] == CORS_ORIGIN
    with shared.stream("table=things", Origin="http://evil.example") as stream:
        assert stream.status == 200
        assert "access-control-allow-origin" not in stream.headers


@pytest.mark.parametrize("origin", [CORS_ORIGIN, "http://evil.example"])
def test_a_preflight_allows_the_listed_origin_only(shared: HubProcess, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "content-type",
    }
    answer = shared.request("OPTIONS", "/api/todos/x", headers=asked)
    if origin == CORS_ORIGIN:
        assert answer.status in (200, 204)
        assert answer.headers["access-control-allow-origin"] == origin
        assert "PATCH" in answer.headers["access-control-allow-methods"]
        assert "content-type" in answer.headers["access-control-allow-headers"].lower()
    else:
        assert "access-control-allow-origin" not in answer.headers


def test_a_person_is_refused_with_a_page(shared: HubProcess) -> None:
    html = {"Accept": "text/html", "Host": "elsewhere.example"}
    answer = shared.request("GET", "/todos", headers=html)
    assert answer.status == 403
    assert answer.headers["content-type"].startswith("text/html")
    text = answer.body.decode()
    assert "--allow-host" in text
    assert "That didn't work" in text
    form = {"Accept": "text/html", "Origin": "https://evil.example"}
    answer = shared.request("POST", "/api/todos", b"title=x", headers=form)
    assert (answer.status, b'href="/todos">Try again' in answer.body) == (403, True)
    assert shared.request("GET", "/todos", headers={"Host": "elsewhere.example"}).json()["code"]
