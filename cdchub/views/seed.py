"""What a new demo database begins with: a believable week, so that the pages have something to show."""

from __future__ import annotations

import uuid
from random import Random

from cdchub.views import shop
from cdchub.views.shop import DAY_MS, HOUR_MS, MINUTE_MS, Statement

FIRST_TODOS = (
    "Open this page in a second window",
    "Change something there and watch it here",
    "Add a todo with the sqlite3 shell",
)
_DAYS = 7
_USERS = 48
_NEW_USERS = 18  # of them, those of this week
_SESSIONS_A_DAY = (40, 90)
_ORDERS_A_SESSION = 0.3
_REFUNDED = 0.06
_VISITORS = 9  # those of the last minutes
_CHAT_LINES = 6


def past(now_ms: int, random: Random) -> list[Statement]:
    """The statements that write the week before `now_ms`."""
    users, statements = _users(now_ms, random)
    for day in range(_DAYS):
        begin_ms = now_ms - (_DAYS - day) * DAY_MS
        for _ in range(random.randint(*_SESSIONS_A_DAY)):
            at_ms = begin_ms + random.randrange(DAY_MS)
            known = [id for id, since_ms in users if since_ms <= at_ms]
            statements += _visit(random, user_id=random.choice(known), at_ms=at_ms, now_ms=now_ms)
    regulars = [id for id, since_ms in users if since_ms < now_ms - _DAYS * DAY_MS]
    for id in random.sample(regulars, _VISITORS):
        at_ms = now_ms - random.randrange(2 * shop.VISIT_MS)
        statements.append(shop.session(random, user_id=id, at_ms=at_ms, last_active_ms=now_ms))
    statements += _todos(now_ms, random)
    for room in shop.ROOMS:
        times_ms = sorted(now_ms - random.randrange(3 * HOUR_MS) for _ in range(_CHAT_LINES))
        statements += [shop.chat_line(random, room=room, at_ms=at_ms) for at_ms in times_ms]
    return statements


def _users(now_ms: int, random: Random) -> tuple[list[tuple[str, int]], list[Statement]]:
    """Ids with the time of their signing up, and the statements that write them."""
    week_ms = _DAYS * DAY_MS
    times_ms = [now_ms - week_ms - random.randrange(12 * week_ms) for _ in range(_USERS - _NEW_USERS)]
    times_ms += [now_ms - random.randrange(week_ms) for _ in range(_NEW_USERS)]
    users = [(shop.new_id(random), at_ms) for at_ms in times_ms]
    return users, [shop.user(random, id=id, at_ms=at_ms) for id, at_ms in users]


def _visit(random: Random, *, user_id: str, at_ms: int, now_ms: int) -> list[Statement]:
    """A session and, now and then, the order that came of it."""
    end_ms = min(at_ms + random.randrange(20 * MINUTE_MS), now_ms)
    statements = [shop.session(random, user_id=user_id, at_ms=at_ms, last_active_ms=end_ms)]
    if random.random() < _ORDERS_A_SESSION:
        status = "refunded" if random.random() < _REFUNDED else "paid"
        order = (shop.new_id(random), user_id, shop.total(random), status, end_ms)
        sql = "INSERT INTO orders(id, user_id, total, status, created_at) VALUES (?, ?, ?, ?, ?)"
        statements.append((sql, order))
    return statements


def _todos(now_ms: int, random: Random) -> list[Statement]:
    """Not the simulator's: they stay until somebody ticks them off."""
    sql = (
        "INSERT INTO todos(id, title, completed, position, created_at, updated_at)"
        " VALUES (?, ?, 0, ?, ?, ?)"
    )
    ids = [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in FIRST_TODOS]
    return [
        (sql, (id, title, position, now_ms, now_ms))
        for position, (id, title) in enumerate(zip(ids, FIRST_TODOS, strict=True))
    ]
