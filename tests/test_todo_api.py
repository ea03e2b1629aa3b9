"""The todo API of VIEWS.md: JSON and forms, validation, order, and what it may not do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.harness import Answer, HubProcess, make_database, run_sql

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
TODOS = (
    "CREATE TABLE todos(id TEXT PRIMARY KEY, title TEXT NOT NULL, completed INTEGER DEFAULT 0,"
    " position INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL)"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    database = make_database(
        tmp_path_factory.mktemp("todos") / "app.db",
        TODOS,
        "CREATE TABLE guarded(id TEXT PRIMARY KEY)",
        "CREATE TRIGGER no_shouting BEFORE INSERT ON todos WHEN NEW.title = 'SHOUT'"
        " BEGIN SELECT RAISE(ABORT, 'no shouting'); END",
    )
    with HubProcess(database) as hub:
        yield hub


@pytest.fixture
def api(shared: HubProcess) -> HubProcess:
    """The hub, without any todo."""
    run_sql(shared.database, "DELETE FROM todos")
    return shared


def add(api: HubProcess, title: str, **more: Any) -> dict[str, Any]:
    answer = api.send_json("POST", "/api/todos", {"title": title, **more})
    assert answer.status == 201, answer.body
    todo: dict[str, Any] = answer.json()
    return todo


def listed(api: HubProcess) -> list[dict[str, Any]]:
    todos: list[dict[str, Any]] = api.get("/api/todos").json()
    return todos


def form(api: HubProcess, path: str, **fields: str) -> Answer:
    return api.request("POST", path, urlencode(fields).encode(), FORM)


def test_a_new_todo_is_stored_last_and_streamed(api: HubProcess) -> None:
    with api.stream("table=todos") as stream:
        stream.until("caught-up")
        first, second = add(api, "  milk\n"), add(api, "eggs", id="made-by-the-client")
        changes = stream.changes(2)
    assert set(first) == {"id", "title", "completed", "position", "created_at", "updated_at"}
    assert (first["title"], first["completed"], first["position"]) == ("milk", False, 0)
    assert first["created_at"] == first["updated_at"] > 1_600_000_000_000
    assert (second["id"], second["position"]) == ("made-by-the-client", 1)
    assert listed(api) == [first, second]
    assert changes[0]["newValue"] == first | {"completed": 0}
    rows = run_sql(
        api.database, "SELECT title, completed, typeof(completed) FROM todos ORDER BY position"
    )
    assert rows == [["milk", 0, "integer"], ["eggs", 0, "integer"]]


def test_a_deleted_todo_can_come_back_as_it_was(api: HubProcess) -> None:
    first, second, third = (add(api, title) for title in ("milk", "eggs", "salt"))
    api.send_json("PATCH", f"/api/todos/{second['id']}", {"completed": True})
    assert api.request("DELETE", f"/api/todos/{second['id']}").status == 200
    back = add(api, "eggs", id=second["id"], completed=True, position=second["position"])
    assert (back["id"], back["completed"], back["position"]) == (second["id"], True, 1)
    assert listed(api) == [first, back, third]
    assert add(api, "above all", position=-1)["position"] == -1
    assert [todo["title"] for todo in listed(api)] == ["above all", "milk", "eggs", "salt"]
    # NULL is what the position is when it is not given.
    assert add(api, "last", position=None)["position"] == 3


def test_the_order_is_position_then_age_then_id(api: HubProcess) -> None:
    run_sql(
        api.database,
        "INSERT INTO todos VALUES ('d','t',0,1,5,5),"
        " ('c','t',0,1,6,6), ('b','t',0,0,9,9), ('a','t',0,1,6,6)",
    )
    assert [todo["id"] for todo in listed(api)] == ["b", "d", "a", "c"]
    assert add(api, "last")["position"] == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "title"),
        (b"", None),
        (b"[]", None),
        (b"null", None),
        (b"7", None),
        (b"{bad", None),
        (b"\xff\xfe", None),
        (b"[" * 50_000, None),
        (b'{"title":' + b"[" * 50_000 + b"}", None),
        (b'{"title":""}', "title"),
        (b'{"title":" \\t\\u00a0 "}', "title"),
        (b'{"title":null}', "title"),
        (b'{"title":5}', "title"),
        (b'{"title":["a"]}', "title"),
        (b'{"title":"%s"}' % (b"x" * 201), "title"),
        (b'{"title":"\\ud800"}', None),
        (b'{"title":"a","completed":2}', "completed"),
        (b'{"title":"a","completed":null}', "completed"),
        (b'{"title":"a","position":"3"}', "position"),
        (b'{"title":"a","position":1.5}', "position"),
        (b'{"title":"a","position":true}', "position"),
        (b'{"title":"a","position":1e30}', "position"),
        (b'{"title":"a","position":9007199254740992}', "position"),
        (b'{"title":"a","id":7}', "id"),
        (b'{"title":"a","id":""}', "id"),
        (b'{"title":"a","id":"%s"}' % (b"x" * 100_000), "id"),
    ],
)
def test_what_is_not_a_todo_is_a_validation_failure(
    api: HubProcess, body: bytes, field: str | None
) -> None:
    answer = api.request("POST", "/api/todos", body, JSON)
    assert answer.status == 400, answer.body
    problem = answer.json()
    assert problem["code"] == "validation_failed"
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(isinstance(message, str) for message in problem["errors"].values())
    assert field is None or list(problem["errors"]) == [field]
    assert listed(api) == []


def test_a_blank_title_is_told_in_the_words_of_the_page(api: HubProcess) -> None:
    for body in ({}, {"title": ""}, {"title": "  "}):
        problem = api.send_json("POST", "/api/todos", body).json()
        assert problem["errors"] == {"title": "Title is required"}


def test_a_title_may_have_200_characters_of_any_script(api: HubProcess) -> None:
    title = "😀" * 199 + '"'
    assert add(api, f"  {title}  ")["title"] == title
    assert listed(api)[0]["title"] == title


def test_a_second_todo_with_the_same_id_is_a_conflict(api: HubProcess) -> None:
    add(api, "one", id="same")
    answer = api.send_json("POST", "/api/todos", {"title": "two", "id": "same"})
    assert (answer.status, answer.code) == (409, "constraint_violation")
    assert [todo["title"] for todo in listed(api)] == ["one"]


def test_a_trigger_of_the_user_that_refuses_is_a_conflict(api: HubProcess) -> None:
    answer = api.send_json("POST", "/api/todos", {"title": "SHOUT"})
    assert (answer.status, answer.code) == (409, "constraint_violation")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"title": " new "}, {"title": "new", "completed": False}),
        ({"completed": True}, {"title": "old", "completed": True}),
        ({"completed": False}, {"title": "old", "completed": False}),
        ({"title": "new", "completed": True}, {"title": "new", "completed": True}),
    ],
)
def test_a_patch_writes_values_and_the_time(
    api: HubProcess, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    run_sql(api.database, "INSERT INTO todos VALUES ('a', 'old', 0, 0, 5, 5)")
    for _ in range(2):  # a value is written, never a NOT: the same request twice has the same result
        todo = api.send_json("PATCH", "/api/todos/a", body).json()
        assert {name: todo[name] for name in expected} == expected
    assert (todo["created_at"], todo["position"]) == (5, 0)
    assert todo["updated_at"] > 5
    assert listed(api) == [todo]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": ""},
        {"title": "x" * 201},
        {"completed": 2},
        {"completed": "maybe"},
        {"completed": []},
    ],
)
def test_a_bad_patch_changes_nothing(api: HubProcess, body: dict[str, Any]) -> None:
    before = add(api, "old")
    answer = api.send_json("PATCH", f"/api/todos/{before['id']}", body)
    assert (answer.status, answer.code) == (400, "validation_failed")
    assert answer.json()["errors"]
    assert listed(api) == [before]


@pytest.mark.parametrize("identity", ["nope", "%00", "%FF", "a%2Fb", "😀".encode().hex(), "x" * 5000])
def test_a_todo_that_is_not_there_is_404(api: HubProcess, identity: str) -> None:
    for answer in (
        api.send_json("PATCH", f"/api/todos/{identity}", {"completed": True}),
        api.request("DELETE", f"/api/todos/{identity}"),
    ):
        assert (answer.status, answer.code) == (404, "not_found")


def test_delete(api: HubProcess) -> None:
    keep, drop = add(api, "keep"), add(api, "drop")
    assert api.request("DELETE", f"/api/todos/{drop['id']}").status in (200, 204)
    assert listed(api) == [keep]


def test_reorder_is_one_transaction(api: HubProcess) -> None:
    ids = [add(api, f"todo {n}")["id"] for n in range(4)]
    wanted = [ids[3], ids[1], ids[0], ids[2]]
    with api.stream("table=todos") as stream:
        stream.until("caught-up")
        assert api.send_json("POST", "/api/todos/reorder", {"ids": wanted}).status == 200
        run_sql(api.database, "DELETE FROM todos WHERE id = '" + ids[0] + "'")
        changes = [stream.changes(1)[0]]
        while changes[-1]["type"] != "DELETE":
            changes += stream.changes(1)
    # The last todo's own INSERT may come first: it was committed just before.
    changes = [change for change in changes if change["type"] != "INSERT"]
    assert len({change["txid"] for change in changes[:-1]}) == 1
    assert [change["commit"] for change in changes[:-1]].count(True) == 1
    positions = {change["newValue"]["id"]: change["newValue"]["position"] for change in changes[:-1]}
    assert {wanted.index(each): at for each, at in positions.items()} == {
        n: n for n in positions.values()
    }
    assert [todo["id"] for todo in listed(api)] == [each for each in wanted if each != ids[0]]


def test_reorder_wants_all_ids_once(api: HubProcess) -> None:
    ids = [add(api, f"todo {n}")["id"] for n in range(3)]
    for bad in (
        ids[1:],
        [*ids, "nope"],
        [*ids, ids[0]],
        [],
        None,
        "abc",
        [1, 2, 3],
        {"a": 1},
        [[], {}],
    ):
        answer = api.send_json("POST", "/api/todos/reorder", {"ids": bad})
        assert (answer.status, answer.code) == (400, "validation_failed"), bad
        assert answer.json()["errors"]
    assert [todo["id"] for todo in listed(api)] == ids


def test_reorder_leaves_a_todo_without_an_id_alone(api: HubProcess) -> None:
    # A TEXT primary key may be NULL in SQLite; it can't be named in the list of ids.
    ids = [add(api, f"todo {n}")["id"] for n in range(2)]
    run_sql(api.database, "INSERT INTO todos VALUES (NULL, 'nameless', 0, 7, 0, 0)")
    assert api.send_json("POST", "/api/todos/reorder", {"ids": ids[::-1]}).status == 200
    assert [todo["id"] for todo in listed(api)] == [*ids[::-1], None]
    assert listed(api)[2]["position"] == 7


def test_clear_completed(api: HubProcess) -> None:
    todos = [add(api, f"todo {n}") for n in range(3)]
    for todo in todos[:2]:
        api.send_json("PATCH", f"/api/todos/{todo['id']}", {"completed": True})
    assert api.request("POST", "/api/todos/clear-completed").status in (200, 204)
    assert listed(api) == [todos[2]]
    assert api.request("POST", "/api/todos/clear-completed").status in (200, 204)


def test_forms_answer_303_back(api: HubProcess) -> None:
    answer = form(api, "/api/todos", title=" über & drüber ")
    assert (answer.status, answer.headers["location"]) == (303, "/todos")
    (todo,) = listed(api)
    assert todo["title"] == "über & drüber"
    assert form(api, f"/api/todos/{todo['id']}", completed="1").status == 303
    assert listed(api)[0]["completed"] is True
    assert form(api, "/api/todos/clear-completed").status == 303
    assert listed(api) == []


def test_a_bad_form_stores_nothing(api: HubProcess) -> None:
    for fields in ({"title": "  "}, {}, {"title": "x" * 201}):
        answer = form(api, "/api/todos", **fields)
        assert answer.status == 400
        assert b"Title" in answer.body
    assert listed(api) == []


def test_a_body_too_large_is_413(api: HubProcess) -> None:
    body = json.dumps({"title": "x" * 2_000_000}).encode()
    answer = api.request("POST", "/api/todos", body, JSON)
    assert (answer.status, answer.code) == (413, "payload_too_large")
    assert listed(api) == []


def test_a_todo_of_sql_and_html_is_only_text(api: HubProcess) -> None:
    title = "'); DROP TABLE todos; -- <script>alert(1)</script>"
    assert add(api, title)["title"] == title
    assert listed(api)[0]["title"] == title


def test_todos_added_at_once_get_positions_of_their_own(api: HubProcess) -> None:
    threads = [threading.Thread(target=add, args=(api, f"todo {n}")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [todo["position"] for todo in listed(api)] == list(range(20))


def test_without_the_table_the_api_says_what_is_missing(hub: HubProcess) -> None:
    """`hub`'s todos has other columns than the page needs."""
    for method in ("GET", "POST"):
        answer = hub.request(method, "/api/todos", b"{}" if method == "POST" else None, JSON)
        assert 400 <= answer.status < 500
        assert "position" in answer.json()["detail"]
    page = hub.get("/todos", Accept="text/html")
    assert page.headers["content-type"].startswith("text/html")
