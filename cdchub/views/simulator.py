"""The demo's simulated traffic: signups, sessions, orders, refunds, now and then a todo or a chat line.

`next_step` decides what happens next, from counts of what is there, the time and a `Random`; `simulate`
does it, at the pace of people. The fuller the last day was, the rarer something becomes, and what is
old goes: so a demo that runs for days stays small. Rows that others wrote are neither changed nor
deleted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import assert_never

from cdchub.errors import CdchubError
from cdchub.views import shop
from cdchub.views.shop import DAY_MS, OWN, SESSION_LIFE_MS, VISIT_MS, Statement
from cdchub.writing import SourceWriter

logger = logging.getLogger("cdchub")

# Between two steps, on average. The gaps are exponential, as those of people who come by themselves.
MEAN_GAP_S = 2.4
# One day more than the dashboard's chart shows.
ORDER_LIFE_MS = 8 * DAY_MS
REFUND_WITHIN_MS = 7 * DAY_MS
MESSAGE_LIFE_MS = 2 * DAY_MS
TODOS_MAX = 3


class Step(Enum):
    TOUCH = "touch"
    VISIT = "visit"
    ORDER = "order"
    SIGN_UP = "sign up"
    REFUND = "refund"
    CHAT = "chat"
    TODO = "todo"
    TIDY = "tidy"


@dataclass(frozen=True, slots=True)
class Counts:
    """What is there: the columns of `COUNTS`, in this order. `visiting` are sessions of the simulator
    that have just begun, `refundable` and `refunded` its orders of the week; todos are its own."""

    users: int
    sessions_of_day: int
    visiting: int
    orders_of_day: int
    refundable: int
    refunded: int
    messages_of_day: int
    todos_open: int
    todos_done: int


_OWN_TODOS = f"FROM todos WHERE id GLOB '{OWN}*' AND completed"
# With the time since when, in milliseconds, for the mark.
_VISITING = f"FROM sessions WHERE token GLOB '{OWN}*' AND created_at > ?"
_OWN_ORDERS = f"FROM orders WHERE id GLOB '{OWN}*' AND created_at > ? AND status"
COUNTS = (
    "SELECT (SELECT count(*) FROM users),"
    " (SELECT count(*) FROM sessions WHERE created_at > ?),"
    f" (SELECT count(*) {_VISITING}),"
    " (SELECT count(*) FROM orders WHERE created_at > ?),"
    f" (SELECT count(*) {_OWN_ORDERS} = 'paid'), (SELECT count(*) {_OWN_ORDERS} = 'refunded'),"
    " (SELECT count(*) FROM messages WHERE created_at > ?),"
    f" (SELECT count(*) {_OWN_TODOS} = 0), (SELECT count(*) {_OWN_TODOS} <> 0)"
)


def counts_at(now_ms: int) -> Statement:
    """The statement whose row is `Counts`."""
    day_ms, visit_ms, week_ms = now_ms - DAY_MS, now_ms - VISIT_MS, now_ms - REFUND_WITHIN_MS
    return COUNTS, (day_ms, visit_ms, day_ms, week_ms, week_ms, day_ms)


# Weights of the steps. With the gap above: something on the dashboard moves every four seconds or so,
# an order comes every 15 s. A touch says little to those who watch, so there are not many.
_WEIGHTS = {
    Step.TOUCH: 6.0,
    Step.VISIT: 3.0,
    Step.ORDER: 2.5,
    Step.SIGN_UP: 1.2,
    Step.REFUND: 0.6,
    Step.CHAT: 1.2,
    Step.TODO: 0.6,
    Step.TIDY: 0.4,
}
# At these counts a step is half as likely as at first. So a day's orders, say, come to some hundreds,
# and never to a stop.
SESSIONS_OF_DAY_HALF = 150
ORDERS_OF_DAY_HALF = 60
MESSAGES_OF_DAY_HALF = 50
# Nobody goes for good, so at this count nobody comes any more.
USERS_MAX = 1_000
# At the most one order in so many is refunded.
REFUNDED_ONE_IN = 8


def weights(counts: Counts) -> dict[Step, float]:
    """How likely each step is now."""
    refunded_most = (counts.refundable + counts.refunded) / REFUNDED_ONE_IN
    left = {
        Step.TOUCH: bool(counts.visiting),
        Step.VISIT: _rarer(counts.sessions_of_day, SESSIONS_OF_DAY_HALF) * bool(counts.users),
        Step.ORDER: _rarer(counts.orders_of_day, ORDERS_OF_DAY_HALF) * bool(counts.visiting),
        Step.SIGN_UP: max(0.0, 1 - counts.users / USERS_MAX),
        Step.REFUND: max(0.0, 1 - counts.refunded / refunded_most) if counts.refundable else 0,
        Step.CHAT: _rarer(counts.messages_of_day, MESSAGES_OF_DAY_HALF),
        Step.TODO: 1,
        Step.TIDY: 1,
    }
    return {step: weight * left[step] for step, weight in _WEIGHTS.items()}


def _rarer(have: int, half: int) -> float:
    return half / (half + have)


def next_step(counts: Counts, *, now_ms: int, random: Random) -> list[Statement]:
    """What happens now, as the statements of one transaction."""
    likely = weights(counts)
    (step,) = random.choices(list(likely), weights=list(likely.values()))
    match step:
        case Step.TOUCH:
            return [_touch(random.randrange(counts.visiting), now_ms)]
        case Step.VISIT:
            return [_visit(random.randrange(counts.users), now_ms, random)]
        case Step.ORDER:
            offset = random.randrange(counts.visiting)
            return [_order(offset, now_ms, random), _touch(offset, now_ms)]
        case Step.SIGN_UP:
            id = shop.new_id(random)
            return [
                shop.user(random, id=id, at_ms=now_ms),
                shop.session(random, user_id=id, at_ms=now_ms, last_active_ms=now_ms),
            ]
        case Step.REFUND:
            return [_refund(random.randrange(counts.refundable), now_ms)]
        case Step.CHAT:
            return [shop.chat_line(random, room=random.choice(shop.ROOMS), at_ms=now_ms)]
        case Step.TODO:
            return [_todo(counts, now_ms, random)]
        case Step.TIDY:
            return _tidy(now_ms)
        case _:
            assert_never(step)


def _touch(offset: int, now_ms: int) -> Statement:
    token = f"(SELECT token {_VISITING} ORDER BY token LIMIT 1 OFFSET ?)"
    sql = f"UPDATE sessions SET last_active = ? WHERE token = {token}"
    return sql, (now_ms, now_ms - VISIT_MS, offset)


def _visit(offset: int, now_ms: int, random: Random) -> Statement:
    sql = (
        "INSERT INTO sessions(token, user_id, created_at, last_active, expires_at)"
        " SELECT ?, id, ?, ?, ? FROM users ORDER BY id LIMIT 1 OFFSET ?"
    )
    return sql, (shop.new_id(random), now_ms, now_ms, now_ms + SESSION_LIFE_MS, offset)


def _order(offset: int, now_ms: int, random: Random) -> Statement:
    """By somebody who is looking around."""
    sql = (
        "INSERT INTO orders(id, user_id, total, status, created_at)"
        f" SELECT ?, user_id, ?, 'paid', ? {_VISITING} ORDER BY token LIMIT 1 OFFSET ?"
    )
    return sql, (shop.new_id(random), shop.total(random), now_ms, now_ms - VISIT_MS, offset)


def _refund(offset: int, now_ms: int) -> Statement:
    id = f"(SELECT id {_OWN_ORDERS} = 'paid' ORDER BY id LIMIT 1 OFFSET ?)"
    return f"UPDATE orders SET status = 'refunded' WHERE id = {id}", (now_ms - REFUND_WITHIN_MS, offset)


def _todo(counts: Counts, now_ms: int, random: Random) -> Statement:
    """A todo is added, or the oldest of the simulator's is ticked off and, later, removed."""
    have = counts.todos_open + counts.todos_done
    if have == 0 or (have < TODOS_MAX and random.random() < 0.5):
        return shop.todo(random, at_ms=now_ms)
    oldest = f"(SELECT id {_OWN_TODOS} = ? ORDER BY created_at, id LIMIT 1)"
    if counts.todos_open:
        return f"UPDATE todos SET completed = 1, updated_at = ? WHERE id = {oldest}", (now_ms, 0)
    return f"DELETE FROM todos WHERE id = {oldest}", (1,)


def _tidy(now_ms: int) -> list[Statement]:
    ends = {
        "sessions WHERE token": ("expires_at", now_ms),
        "orders WHERE id": ("created_at", now_ms - ORDER_LIFE_MS),
        "messages WHERE id": ("created_at", now_ms - MESSAGE_LIFE_MS),
    }
    return [
        (f"DELETE FROM {key} GLOB '{OWN}*' AND {column} <= ?", (end_ms,))
        for key, (column, end_ms) in ends.items()
    ]


async def simulate(writer: SourceWriter, random: Random, *, mean_gap_s: float = MEAN_GAP_S) -> None:
    """Writes until it is cancelled.

    What can't be written now, because the database is busy or somebody dropped a table, is said once
    and left out; the next step comes all the same.
    """
    failing = False
    while True:
        await asyncio.sleep(random.expovariate(1 / mean_gap_s))
        now_ms = time.time_ns() // 1_000_000
        try:
            async with writer.transaction() as tx:
                (row,) = await tx.execute(*counts_at(now_ms))
                for sql, parameters in next_step(Counts(*row), now_ms=now_ms, random=random):
                    await tx.execute(sql, parameters)
        except CdchubError as error:
            if not failing:
                logger.warning("simulated traffic can't go on for now: %s", error)
            failing = True
        else:
            failing = False
