"""metrics.js in Chromium, against the slow oracle: over generated rows, at every edge of a day, and in
zones whose days are not all of 24 hours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, Page

from cdchub.views import SCHEMA
from tests.browser import dashboard_oracle as oracle
from tests.browser.dashboard_oracle import EPOCH, Row
from tests.harness import HubProcess, make_database

pytestmark = pytest.mark.needs("chromium")

# Clocks change in them on one of the days; in some at midnight, or by half an hour.
MOMENTS = [
    ("UTC", "2026-11-22T12:00"),
    ("Europe/Zurich", "2026-03-31T09:00"),
    ("Europe/Zurich", "2026-10-25T02:30"),
    ("America/New_York", "2026-03-08T12:00"),
    ("America/New_York", "2026-11-04T23:59"),
    ("Africa/Cairo", "2026-04-25T08:00"),
    ("Asia/Beirut", "2026-03-30T00:30"),
    ("America/Sao_Paulo", "2018-11-05T10:00"),
    ("Australia/Lord_Howe", "2026-04-06T10:00"),
    ("Asia/Kathmandu", "2026-07-01T00:01"),
    ("Pacific/Kiritimati", "2026-01-03T06:00"),
    ("Etc/GMT+12", "2026-02-28T18:00"),
]
_MEASURE = """async ({cases, refundTimes}) => {
  const { measure, ago } = await import("/static/metrics.js");
  return cases.map(({ rows, now, zone }) => {
    const found = measure(rows, (order) => refundTimes[order.id], now, zone);
    const days = found.days.map(({ number, orders, revenue }) => ({
      day: new Date(number * 86_400_000).toISOString().slice(0, 10), orders, revenue,
    }));
    return { ...found, days };
  });
}"""


@pytest.fixture(scope="module")
def module_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a hub, to import modules into."""
    database = make_database(tmp_path_factory.mktemp("metrics") / "app.db", "CREATE TABLE t(a)")
    with HubProcess(database) as hub:
        context = browser.new_context()
        page = context.new_page()
        page.goto(hub.url)
        yield page
        context.close()


def measured(page: Page, cases: list[Row], refund_times: Row | None = None) -> list[Row]:
    found: list[Row] = page.evaluate(_MEASURE, {"cases": cases, "refundTimes": refund_times or {}})
    return found


def case(rows: dict[str, list[Row]], now_ms: int, zone: str) -> Row:
    return {"rows": rows, "now": now_ms, "zone": zone}


def instant(local: str, zone: str) -> int:
    moment = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone))
    return (moment - EPOCH) // timedelta(milliseconds=1)


def no_rows() -> dict[str, list[Row]]:
    return {"users": [], "orders": [], "sessions": []}


def edges(now_ms: int, zone: str) -> list[int]:
    """Of the last nine local midnights, the instants before and at them, found by halving."""
    found = []
    today = oracle.local_date(now_ms, zone)
    for back in range(9):
        day = today - timedelta(days=back)
        noon = instant(f"{day}T12:00", zone)
        low, high = noon - 30 * 3_600_000, noon
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if oracle.local_date(middle, zone) < day else (low, middle)
        found += [low, high]
    return found


def some_rows(random: Random, now_ms: int, zone: str) -> dict[str, list[Row]]:
    week_ms = 9 * 86_400_000
    at_edges = edges(now_ms, zone)

    def time() -> Any:
        kind = random.randrange(10)
        if kind < 5:
            return now_ms - random.randrange(week_ms)
        if kind < 8:
            return random.choice(at_edges)
        return random.choice([now_ms, now_ms - 900_000, now_ms - 899_999, now_ms + 5, None, "x", 0])

    ids = [f"u{n}" for n in range(random.randrange(12))]
    statuses = ["paid", "paid", "refunded", None, "Refunded"]
    totals = [19.99, 0.01, 1.005, 2.675, 0.285, 1e6, 7, None, "free", -3.5, 0.0]
    return {
        "users": [{"id": id, "name": f"N {id}", "created_at": time()} for id in ids],
        "orders": [
            {
                "id": f"o{n}",
                "user_id": random.choice([*ids, "gone", None]),
                "total": random.choice([*totals, round(random.uniform(0, 500), 2)]),
                "status": random.choice(statuses),
                "created_at": time(),
            }
            for n in range(random.randrange(60))
        ],
        "sessions": [
            {
                "user_id": random.choice([*ids, None]),
                "created_at": time(),
                "last_active": random.choice([time(), now_ms - random.randrange(1_800_000)]),
            }
            for _ in range(random.randrange(40))
        ],
    }


@pytest.mark.parametrize(("zone", "local"), MOMENTS)
def test_it_agrees_with_the_oracle(module_page: Page, zone: str, local: str) -> None:
    random = Random(f"{zone} {local}")
    now_ms = instant(local, zone)
    times = [now_ms + random.choice([0, 1, -1, random.randrange(86_400_000)]) for _ in range(40)]
    cases = [case(some_rows(random, at_ms, zone), at_ms, zone) for at_ms in times]
    for given, found in zip(cases, measured(module_page, cases), strict=True):
        expected = oracle.measure(given["rows"], given["now"], zone)
        found.pop("activity")
        assert found == expected


@pytest.mark.parametrize(("zone", "local"), MOMENTS)
def test_the_day_turns_at_local_midnight_to_the_millisecond(
    module_page: Page, zone: str, local: str
) -> None:
    last, first = edges(instant(local, zone), zone)[:2]
    order = {"id": "o", "user_id": "u", "total": 5.0, "status": "paid", "created_at": last}
    rows = no_rows() | {"orders": [order]}
    before, after = measured(module_page, [case(rows, last, zone), case(rows, first, zone)])
    assert (before["ordersToday"], before["revenueToday"]) == (1, 500)
    assert (after["ordersToday"], after["revenueToday"]) == (0, 0)
    assert [day["orders"] for day in before["days"]] == [0, 0, 0, 0, 0, 0, 1]
    assert [day["orders"] for day in after["days"]] == [0, 0, 0, 0, 0, 1, 0]


def test_days_of_23_and_25_hours(module_page: Page) -> None:
    """Known instants, so that a fault that oracle and page share would show."""
    hour_ms = 3_600_000
    for now, start, hours in (
        ("2026-03-29T12:00", "2026-03-28T23:00+00:00", 23),
        ("2026-10-25T12:00", "2026-10-24T22:00+00:00", 25),
    ):
        start_ms = (datetime.fromisoformat(start) - EPOCH) // timedelta(milliseconds=1)
        end_ms = start_ms + hours * hour_ms
        orders = [
            {"id": str(at), "user_id": None, "total": 1, "status": "paid", "created_at": at}
            for at in (start_ms - 1, start_ms, end_ms - 1)
        ]
        rows = no_rows() | {"orders": orders}
        zone = "Europe/Zurich"
        cases = [case(rows, instant(now, zone), zone), case(rows, end_ms - 1, zone)]
        cases.append(case(rows, end_ms, zone))
        assert [found["ordersToday"] for found in measured(module_page, cases)] == [2, 2, 0]


def test_nothing_is_zero_and_seven_days(module_page: Page) -> None:
    (found,) = measured(module_page, [case(no_rows(), 1_763_700_000_000, "UTC")])
    days = found.pop("days")
    assert found == {
        "totalUsers": 0,
        "activeNow": 0,
        "ordersToday": 0,
        "revenueToday": 0,
        "conversionRate": 0,
        "activity": [],
    }
    assert [day["day"] for day in days] == [f"2025-11-{n}" for n in range(15, 22)]
    assert all(day["orders"] == day["revenue"] == 0 for day in days)


def test_the_newest_twenty_deeds(module_page: Page) -> None:
    random, zone = Random(5), "Europe/Zurich"
    now_ms = instant("2026-03-31T09:00", zone)
    cases = [case(some_rows(random, now_ms, zone), now_ms, zone) for _ in range(60)]
    refund_times = {f"o{n}": now_ms - random.randrange(86_400_000) for n in range(0, 60, 2)}
    lengths = set()
    for given, found in zip(cases, measured(module_page, cases, refund_times), strict=True):
        expected = oracle.activity(given["rows"], refund_times, now_ms, zone)
        keys = [(a["type"], a["key"].split(" ")[1].strip('"'), a["name"]) for a in found["activity"]]
        assert keys == expected
        lengths.add(len(keys))
    assert 20 in lengths, "no case was long enough to be cut"


@pytest.mark.parametrize(
    ("age_ms", "words"),
    [
        (-60_000, "Just now"),
        (0, "Just now"),
        (59_999, "Just now"),
        (60_000, "1m ago"),
        (3_599_999, "59m ago"),
        (3_600_000, "1h ago"),
        (86_399_999, "23h ago"),
        (86_400_000, "Mar 30"),
    ],
)
def test_how_long_ago(module_page: Page, age_ms: int, words: str) -> None:
    now_ms = instant("2026-03-31T00:30", "Europe/Zurich")
    script = """async ([time, now]) =>
      (await import("/static/metrics.js")).ago(time, now, "Europe/Zurich")"""
    assert module_page.evaluate(script, [now_ms - age_ms, now_ms]) == words


def test_the_schema_has_what_the_page_asks_for(tmp_path: Path) -> None:
    database = make_database(tmp_path / "app.db", *SCHEMA.strip().split(";\n"))
    assert oracle.rows_of(database) == no_rows()
