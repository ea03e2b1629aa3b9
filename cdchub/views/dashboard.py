"""What the dashboard needs besides the stream: the hub's time zone and clock.

All pages count days as the hub's place does, wherever they are looked at, and by the hub's clock,
which is also what rows are usually stamped with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cdchub.catalog import Catalog
from cdchub.errors import NotFound, UnknownTable

COLUMNS = {
    "users": ("id", "name", "created_at"),
    "orders": ("id", "user_id", "total", "status", "created_at"),
    "sessions": ("user_id", "created_at", "last_active"),
}


class DashboardApi:
    def __init__(self, *, catalog: Callable[[], Catalog], time_zone: str) -> None:
        self._catalog = catalog
        self._time_zone = time_zone

    def missing(self) -> str | None:
        """What this database lacks for the dashboard, in words for its reader; None if nothing."""
        catalog, absent = self._catalog(), []
        for name in COLUMNS:
            try:
                catalog.find(name)
            except UnknownTable:
                absent.append(name)
        if absent:
            what = "table" if len(absent) == 1 else "tables"
            return f"This database has no captured {what} called {listed(absent)}."
        for name, columns in COLUMNS.items():
            table = catalog.find(name)
            lacking = [column for column in columns if table.column(column) is None]
            if lacking:
                return f"The table {name} lacks {', '.join(lacking)}."
        return None

    async def settings(self, _request: Request) -> Response:
        missing = self.missing()
        if missing is not None:
            raise NotFound(missing)
        document = {"timeZone": self._time_zone, "now": time.time_ns() // 1_000_000}
        return Response(
            msgspec.json.encode(document), 200, {"Cache-Control": "no-store"}, "application/json"
        )


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


LOCALTIME = Path("/etc/localtime")


def local_time_zone(tz: str | None, *, localtime: Path = LOCALTIME) -> str:
    """The IANA name of the time zone that this process keeps; UTC where it has no such name.

    `tz` is the environment's TZ, which wins over the system's link, as tzset(3) has it. A rule in
    place of a name ("CET-1CEST") is something that browsers don't know.
    """
    place = str(localtime.resolve()) if tz is None else tz.removeprefix(":")
    name = place.rpartition("zoneinfo/")[2]
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return "UTC"
