"""The browser library behind proxies, policies and refusals: it comes back and blames the right one."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Route, WebSocketRoute

from tests.browser.client_page import (
    WITHOUT,
    begin,
    collect,
    insert,
    library,
    status,
    use,
    wait_for_titles,
)
from tests.browser.conftest import Windows
from tests.browser.relay import Relay
from tests.harness import HubProcess

pytestmark = pytest.mark.needs("chromium")

_REFUSING_LOCKS = """
delete window.SharedWorker;
LockManager.prototype.request = () => Promise.reject(new DOMException("denied", "SecurityError"));
"""


def test_a_proxys_answer_is_no_hub(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(hub.port, websockets=False) as relay:
        page = windows.new()
        page.context.add_init_script(WITHOUT["alone"])
        asked: list[str] = []

        def bad_gateway(route: Route) -> None:
            asked.append(route.request.url)
            route.fulfill(status=502, body="Bad Gateway")

        page.route("**/cdc/status", bad_gateway)
        use(page, relay.url)
        page.evaluate(
            """() => {
              window.statuses = [];
              lib.connection().onStatus((status) => statuses.push(status));
            }"""
        )
        while len(asked) < 2:
            page.wait_for_event("request", lambda request: request.url.endswith("/cdc/status"))
        assert page.evaluate("statuses") == ["connecting"]
        page.unroute("**/cdc/status")
        page.wait_for_function("() => statuses.at(-1) === 'live'")


def test_it_moves_up_when_websockets_get_through(hub: HubProcess, windows: Windows) -> None:
    with Relay(hub.port, websockets=False) as relay:
        page = library(windows, relay.url)
        collect(page)
        page.wait_for_function("() => lib.connection().transport === 'sse'")
        relay.let_websockets_through()
        page.wait_for_function("() => lib.connection().transport === 'websocket'")
        insert(hub.database, "a")
        wait_for_titles(page, ["a"])


def test_a_browser_that_refuses_locks_connects_each_tab(hub: HubProcess, windows: Windows) -> None:
    page = windows.new()
    windows.network_errors_expected = True
    page.context.add_init_script(_REFUSING_LOCKS)
    use(page, hub.url)
    collect(page)
    insert(hub.database, "a")
    wait_for_titles(page, ["a"])


def test_a_request_that_is_too_long_harms_no_other(hub: HubProcess, windows: Windows) -> None:
    page = library(windows, hub.url)
    collect(page)
    page.evaluate("todos.statuses.length = 0")
    begin(page, "big", where=f"id=in.({','.join(['x' * 30] * 5_000)})")
    page.wait_for_function("() => big.store.status === 'closed'")
    assert "too long" in page.evaluate("big.store.error")
    insert(hub.database, "a")
    wait_for_titles(page, ["a"])
    assert page.evaluate("todos.statuses") == []


def test_one_of_two_event_streams_breaks_alone(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(hub.port, websockets=False) as relay:
        page = library(windows, relay.url)
        collect(page)
        collect(page, "narrow", where={"completed": 0})
        page.evaluate("todos.statuses.length = 0")
        relay.hold()
        relay.cut_last(lambda request: "filter=" in request)
        page.wait_for_function("() => narrow.store.status === 'reconnecting'")
        assert (status(page), page.evaluate("lib.connection().status")) == ("live", "live")
        page.evaluate("narrow.store.close()")
        insert(hub.database, "a")
        wait_for_titles(page, ["a"])
        assert page.evaluate("todos.statuses") == []


def test_a_proxys_404_closes_nothing(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    with Relay(hub.port, websockets=False) as relay:
        page = windows.new()
        page.context.add_init_script(WITHOUT["alone"])
        use(page, relay.url)
        collect(page)
        body = json.dumps({"message": "no Route matched with those values"})
        page.route(
            "**/cdc/*?*",
            lambda route: route.fulfill(status=404, content_type="application/json", body=body),
        )
        relay.cut()
        page.wait_for_event("response", lambda answer: "/cdc/changes" in answer.url)
        page.wait_for_function("() => todos.store.status === 'reconnecting'")
        page.unroute("**/cdc/*?*")
        insert(hub.database, "a")
        wait_for_titles(page, ["a"])
        assert "closed" not in page.evaluate("todos.statuses.flat()")


def test_a_refused_connection_says_why_in_its_collections(hub: HubProcess, windows: Windows) -> None:
    windows.network_errors_expected = True
    page = windows.new()
    page.context.add_init_script(WITHOUT["alone"])

    def refuse(socket: WebSocketRoute) -> None:
        socket.close(code=4401, reason="unauthorized")

    page.route_web_socket("**/cdc/ws*", refuse)
    use(page, hub.url)
    begin(page)
    page.wait_for_function("() => todos.store.status === 'closed'")
    assert "Sign in" in page.evaluate("todos.store.error")
