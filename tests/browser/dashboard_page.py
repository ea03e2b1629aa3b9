"""The dashboard in the words of the tests, and a week of rows whose hub keeps its clock at noon."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Locator, Page, expect

from tests.browser import dashboard_oracle as oracle
from tests.harness import HubProcess, run_sql

if TYPE_CHECKING:
    from tests.browser.conftest import Windows

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
EVIL = "<img src=x onerror=alert(1)>"


def noon_zone() -> str:
    """The zone where it is about noon now, so that no test meets midnight unless it means to."""
    ahead = 12 - datetime.now(UTC).hour
    # POSIX signs: Etc/GMT-3 is three hours ahead of UTC.
    return f"Etc/GMT{-ahead:+d}"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def fill(database: Path) -> None:
    """Replaces all rows by a week whose numbers stand still for some minutes."""
    now = now_ms()
    users = [
        ("ada", "Ada", now - 40 * DAY_MS),
        ("bo", "Bo", now - 3 * DAY_MS),
        ("cy", EVIL, now - 2 * HOUR_MS),
    ]
    orders = [
        (f"o{n}", user, total, status, now - age_ms)
        for n, (user, total, status, age_ms) in enumerate(
            (
                ("ada", 19.99, "paid", 5 * MINUTE_MS + 20_000),
                ("bo", 1234.5, "paid", 2 * HOUR_MS + 5 * MINUTE_MS),
                ("cy", 50, "refunded", 3 * HOUR_MS + 5 * MINUTE_MS),
                ("ada", 80.25, "paid", DAY_MS),
                ("gone", 7, "paid", DAY_MS + HOUR_MS),
                ("bo", 300, "paid", 3 * DAY_MS),
                ("ada", 10, "refunded", 6 * DAY_MS),
                ("ada", 11, "paid", 6 * DAY_MS + HOUR_MS),
                ("ada", 999, "paid", 7 * DAY_MS),
            )
        )
    ]
    sessions = [
        (f"s{n}", user, now - age_ms, now - idle_ms)
        for n, (user, age_ms, idle_ms) in enumerate(
            (
                ("ada", HOUR_MS, MINUTE_MS),
                ("ada", 2 * HOUR_MS, 2 * MINUTE_MS),
                ("bo", DAY_MS, 3 * MINUTE_MS),
                ("cy", 3 * HOUR_MS, 30 * MINUTE_MS),
                (None, HOUR_MS, MINUTE_MS),
                ("ada", 2 * DAY_MS, 2 * DAY_MS),
            )
        )
    ]
    run_sql(
        database,
        *(f"DELETE FROM {table}" for table in ("users", "orders", "sessions")),
        f"INSERT INTO users SELECT {_fields(3, 'id')} FROM json_each({_quoted(users)})",
        f"INSERT INTO orders SELECT {_fields(5)} FROM json_each({_quoted(orders)})",
        f"INSERT INTO sessions SELECT {_fields(4)}, 0 FROM json_each({_quoted(sessions)})",
    )


def _fields(count: int, email_from: str | None = None) -> str:
    fields = [f"value ->> {place}" for place in range(count)]
    if email_from is not None:
        fields.insert(2, "(value ->> 0) || '@example.org'")
    return ", ".join(fields)


def _quoted(rows: list[Any]) -> str:
    return "'" + json.dumps(rows).replace("'", "''") + "'"


def place_order(database: Path, id: str, *, user: str = "ada", total: float = 5, at_ms: int) -> None:
    run_sql(
        database,
        "INSERT INTO orders VALUES (?, ?, ?, 'paid', ?)",
        parameters=[id, user, total, at_ms],
    )


def refund(database: Path, id: str) -> None:
    run_sql(database, "UPDATE orders SET status = 'refunded' WHERE id = ?", parameters=[id])


def opened(windows: Windows, hub: HubProcess, **options: Any) -> Page:
    page = windows.open(f"{hub.url}/dashboard", **options)
    expect(page.get_by_role("status")).to_have_text("Live")
    return page


def card(page: Page, label: str) -> Locator:
    """The number under a label."""
    return page.locator("dl > div").filter(has_text=label).locator("dd")


def bars(page: Page) -> Locator:
    """Revenue and orders of the first day, of the second, and so on."""
    return page.get_by_role("group", name="Revenue & Orders (7 days)").get_by_role("img")


def activity(page: Page) -> Locator:
    return page.get_by_role("region", name="Recent Activity").get_by_role("listitem")


def expect_agreement(page: Page, database: Path, zone: str, *, at_ms: int | None = None) -> None:
    """The page shows, to the digit, what the oracle makes of the rows that are there."""
    moment = now_ms() if at_ms is None else at_ms
    measured = oracle.measure(oracle.rows_of(database), moment, zone)
    for label, text in oracle.card_texts(measured).items():
        expect(card(page, label)).to_have_text(text)
    expect(bars(page)).to_have_count(14)
    for place, day in enumerate(measured["days"]):
        date = datetime.fromisoformat(day["day"])
        words = f"{date:%A, %B} {date.day}"
        orders = f"{day['orders']:,} {'order' if day['orders'] == 1 else 'orders'}"
        for bar, text in ((2 * place, oracle.usd(day["revenue"])), (2 * place + 1, orders)):
            expect(bars(page).nth(bar)).to_have_accessible_name(f"{words}: {text}")
    weekdays = [f"{datetime.fromisoformat(day['day']):%a}" for day in measured["days"]]
    expect(page.locator(".weekday")).to_have_text(weekdays)


def next_midnight_ms(zone: str) -> int:
    """In a zone without changes of the clock."""
    today = oracle.local_date(now_ms(), zone)
    offset = datetime.now(oracle.ZoneInfo(zone)).utcoffset() or timedelta()
    at = datetime(today.year, today.month, today.day, tzinfo=UTC) + timedelta(days=1) - offset
    return (at - oracle.EPOCH) // timedelta(milliseconds=1)
