"""What the dashboard must say, computed the slow and plain way, sharing no shortcut with metrics.js."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tests.harness import run_sql

Row = dict[str, Any]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TABLES = {
    "users": "id, name, created_at",
    "orders": "id, user_id, total, status, created_at",
    "sessions": "user_id, created_at, last_active",
}


def rows_of(database: Path) -> dict[str, list[Row]]:
    """The rows that the page sees, in the shape in which it sees them."""
    pairs = {
        table: ", ".join(f"'{name}', {name}" for name in columns.split(", "))
        for table, columns in TABLES.items()
    }
    parts = [f"(SELECT json_group_array(json_object({pairs[table]})) FROM {table})" for table in TABLES]
    (found,) = run_sql(database, f"SELECT {', '.join(parts)}")
    return {table: json.loads(text) for table, text in zip(TABLES, found, strict=True)}


def local_date(at_ms: int, zone: str) -> date:
    return (EPOCH + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(zone)).date()


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cents(total: object) -> int:
    if not is_number(total):
        return 0
    with localcontext() as context:
        context.prec = 1_100  # every digit of a double
        assert isinstance(total, int | float)
        return math.floor(Decimal(total * 100) + Decimal("0.5"))


def measure(rows: dict[str, list[Row]], now_ms: int, zone: str) -> Row:
    today = local_date(now_ms, zone)
    days = [today - timedelta(days=back) for back in range(6, -1, -1)]

    def day_of(row: Row) -> date | None:
        """The local day of a row; what claims to be from the future counts as today's."""
        if not is_number(row["created_at"]):
            return None
        return min(local_date(row["created_at"], zone), today)

    def orders_of(day: date) -> list[Row]:
        return [order for order in rows["orders"] if day_of(order) == day]

    def revenue_of(day: date) -> int:
        return sum(cents(o["total"]) for o in orders_of(day) if o["status"] != "refunded")

    active = {
        session["user_id"]
        for session in rows["sessions"]
        if is_number(session["last_active"])
        and session["last_active"] > now_ms - 15 * 60 * 1000
        and session["user_id"] is not None
    }
    sessions_today = [session for session in rows["sessions"] if day_of(session) == today]
    return {
        "totalUsers": len(rows["users"]),
        "activeNow": len(active),
        "ordersToday": len(orders_of(today)),
        "revenueToday": revenue_of(today),
        "conversionRate": 100 * len(orders_of(today)) / (len(sessions_today) or 1),
        "days": [
            {"day": day.isoformat(), "orders": len(orders_of(day)), "revenue": revenue_of(day)}
            for day in days
        ],
    }


def activity(
    rows: dict[str, list[Row]], refund_times: dict[str, int], now_ms: int, zone: str
) -> list[tuple[str, str, str]]:
    """The newest twenty: kind, id and name."""
    first_day = local_date(now_ms, zone) - timedelta(days=6)
    names = {user["id"]: user["name"] or "Somebody" for user in rows["users"]}
    found = [(user["created_at"], 0, "signup", user["id"], names[user["id"]]) for user in rows["users"]]
    for order in rows["orders"]:
        name = names.get(order["user_id"], "Somebody")
        found.append((order["created_at"], 1, "order", order["id"], name))
        if order["status"] == "refunded":
            at_ms = refund_times.get(order["id"], order["created_at"])
            found.append((at_ms, 2, "refund", order["id"], name))
    kept = [each for each in found if is_number(each[0]) and local_date(each[0], zone) >= first_day]
    kept.sort(key=lambda each: (-each[0], -each[1], each[3]))
    return [(kind, id, name) for _, _, kind, id, name in kept[:20]]


def usd(amount_cents: int) -> str:
    sign = "-" if amount_cents < 0 else ""
    return f"{sign}${abs(amount_cents) / 100:,.2f}"


def percent(rate: float) -> str:
    return f"{Decimal(rate).quantize(Decimal('0.1'), ROUND_HALF_UP):,}%"


def card_texts(measured: Row) -> dict[str, str]:
    """By the labels of the cards, what they show."""
    return {
        "Total Users": f"{measured['totalUsers']:,}",
        "Active Now": f"{measured['activeNow']:,}",
        "Orders Today": f"{measured['ordersToday']:,}",
        "Revenue Today": usd(measured["revenueToday"]),
        "Conversion Rate": percent(measured["conversionRate"]),
    }
