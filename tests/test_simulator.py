"""The demo's simulated traffic: what comes next, that it stays small, and how it takes a fault."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdchub import Hub
from cdchub.views import SCHEMA, past, simulate
from cdchub.views.shop import DAY_MS, ROOMS, Statement
from cdchub.views.simulator import (
    MEAN_GAP_S,
    REFUNDED_ONE_IN,
    TODOS_MAX,
    USERS_MAX,
    Counts,
    Step,
    counts_at,
    next_step,
    weights,
)
from tests.harness import PATIENCE_S, make_database, run_sql, wait_for

NOW_MS = 1_763_700_000_000
NOTHING = Counts(0, 0, 0, 0, 0, 0, 0, 0, 0)
COUNT = st.integers(0, 5_000)
OF_OTHERS = {
    "users": ("mine", "Me", "me@example.org", NOW_MS),
    "orders": ("mine", "mine", 1.0, "paid", NOW_MS - 30 * DAY_MS),
    "sessions": ("mine", "mine", NOW_MS - 30 * DAY_MS, NOW_MS, NOW_MS - 20 * DAY_MS),
    "messages": ("mine", "lobby", "me", "hello", NOW_MS - 30 * DAY_MS),
    "todos": ("mine", "milk", 1, 0, NOW_MS, NOW_MS),
}


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(new_db()) as connection:
        yield connection


def new_db() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    return connection


def run(db: sqlite3.Connection, statements: list[Statement]) -> None:
    for sql, parameters in statements:
        db.execute(sql, parameters)


def one_step(db: sqlite3.Connection, now_ms: int, random: Random) -> None:
    run(db, next_step(counts_of(db, now_ms), now_ms=now_ms, random=random))


def counts_of(db: sqlite3.Connection, now_ms: int) -> Counts:
    return Counts(*db.execute(*counts_at(now_ms)).fetchone())


def value(db: sqlite3.Connection, sql: str, *parameters: Any) -> Any:
    return db.execute(sql, parameters).fetchone()[0]


# What comes next.


@pytest.mark.parametrize(
    ("counts", "never"),
    [
        (NOTHING, {Step.TOUCH, Step.VISIT, Step.ORDER, Step.REFUND}),
        (Counts(5, 9, 0, 9, 0, 0, 9, 0, 0), {Step.TOUCH, Step.ORDER, Step.REFUND}),
        (Counts(USERS_MAX, 0, 1, 0, 9, 0, 0, 0, 0), {Step.SIGN_UP}),
        (Counts(5, 0, 1, 0, REFUNDED_ONE_IN - 1, 1, 0, 0, 0), {Step.REFUND}),
        (Counts(5, 999, 1, 999, 9, 1, 999, TODOS_MAX, 0), set()),
    ],
)
def test_what_has_no_ground_or_no_room_does_not_happen(counts: Counts, never: set[Step]) -> None:
    assert {step for step, weight in weights(counts).items() if weight == 0} == never


@given(st.builds(Counts, *[COUNT] * 9), st.integers(0, 2**32))
def test_there_is_always_something_to_do(counts: Counts, seed: int) -> None:
    assert min(weights(counts).values()) >= 0
    statements = next_step(counts, now_ms=NOW_MS, random=Random(seed))
    assert 1 <= len(statements) <= 3
    assert statements == next_step(counts, now_ms=NOW_MS, random=Random(seed))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32))
def test_whatever_happens_makes_sense(seed: int) -> None:
    with contextlib.closing(new_db()) as db:
        random = Random(seed)
        run(db, past(NOW_MS, random))
        for table, row in OF_OTHERS.items():
            db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        now_ms = NOW_MS
        for _ in range(300):
            now_ms += random.randrange(3_000)
            one_step(db, now_ms, random)
        for table in ("users", "orders", "sessions", "messages", "todos"):
            assert value(db, f"SELECT count(*) FROM {table} WHERE created_at > ?", now_ms) == 0
        for table in ("orders", "sessions"):
            strangers = f"SELECT count(*) FROM {table} WHERE user_id NOT IN (SELECT id FROM users)"
            assert value(db, strangers) == 0
        assert value(db, "SELECT count(*) FROM orders WHERE status NOT IN ('paid', 'refunded')") == 0
        assert value(db, "SELECT count(*) FROM orders WHERE total <= 0 OR total > 900") == 0
        assert value(db, "SELECT count(*) FROM sessions WHERE last_active < created_at") == 0
        assert value(db, "SELECT count(*) FROM todos WHERE id GLOB 'demo-*'") <= TODOS_MAX
        for table, row in OF_OTHERS.items():
            key = "token" if table == "sessions" else "id"
            assert db.execute(f"SELECT * FROM {table} WHERE {key} = 'mine'").fetchall() == [row]


def test_an_hour_has_everything_in_it(db: sqlite3.Connection) -> None:
    random, now_ms = Random(1), NOW_MS
    run(db, past(now_ms, random))
    refunded = "SELECT count(*) FROM orders WHERE status = 'refunded'"
    before = value(db, refunded)
    todos_most = 0
    for _ in range(3_000):
        now_ms += 1_200
        one_step(db, now_ms, random)
        todos_most = max(todos_most, value(db, "SELECT count(*) FROM todos WHERE id GLOB 'demo-*'"))
    for table in ("users", "orders", "sessions", "messages"):
        assert value(db, f"SELECT count(*) FROM {table} WHERE created_at > ?", NOW_MS) > 10
    assert value(db, refunded) > before
    assert value(db, "SELECT count(*) FROM sessions WHERE last_active > created_at") > 10
    for room in ROOMS:
        said = [
            content
            for (content,) in db.execute(
                "SELECT content FROM messages WHERE room = ? ORDER BY created_at, rowid", (room,)
            )
        ]
        assert all(one != next for one, next in itertools.pairwise(said))
    assert todos_most == TODOS_MAX


SESSIONS_OF_DAY, ORDERS_OF_DAY, MESSAGES_OF_DAY = 2_000, 900, 600


def test_a_day_has_its_measure() -> None:
    """Where a day holds so many, fewer than that come in the next one: the count goes down again."""
    steps_a_day = 86_400 / MEAN_GAP_S
    full = Counts(USERS_MAX, SESSIONS_OF_DAY, 10, ORDERS_OF_DAY, 500, 20, MESSAGES_OF_DAY, 1, 1)
    likely = weights(full)
    share = {step: weight / sum(likely.values()) for step, weight in likely.items()}
    assert (share[Step.VISIT] + share[Step.SIGN_UP]) * steps_a_day < SESSIONS_OF_DAY
    assert share[Step.ORDER] * steps_a_day < ORDERS_OF_DAY
    assert share[Step.CHAT] * steps_a_day < MESSAGES_OF_DAY


def test_what_is_old_goes(db: sqlite3.Connection) -> None:
    """So after weeks there are no more rows than of the last days."""
    random, now_ms = Random(2), NOW_MS
    run(db, past(now_ms, random))
    old = [id for (id,) in db.execute("SELECT id FROM orders UNION SELECT token FROM sessions")]
    for _ in range(1_500):
        now_ms += random.randrange(20 * 60_000)
        one_step(db, now_ms, random)
    assert now_ms > NOW_MS + 9 * DAY_MS
    # A tidy step is one of many, so that a little more may be there for a while.
    for table, days in (("orders", 9), ("sessions", 8), ("messages", 3)):
        assert value(db, f"SELECT count(*) FROM {table}") > 0
        assert value(db, f"SELECT min(created_at) FROM {table}") > now_ms - days * DAY_MS
    left = {id for (id,) in db.execute("SELECT id FROM orders UNION SELECT token FROM sessions")}
    assert left.isdisjoint(old)


# The week before.


def test_a_new_demo_has_a_believable_week_behind_it(db: sqlite3.Connection) -> None:
    statements = past(NOW_MS, Random(7))
    assert statements == past(NOW_MS, Random(7))
    run(db, statements)
    assert 24 <= value(db, "SELECT count(*) FROM users") <= 60
    for table in ("orders", "sessions"):
        days = f"SELECT count(DISTINCT (?1 - created_at) / {DAY_MS}) FROM {table}"
        assert value(db, f"{days} WHERE created_at BETWEEN ?1 - {7 * DAY_MS} AND ?1", NOW_MS) == 7
    assert value(db, "SELECT count(*) FROM orders WHERE status = 'refunded'") > 0
    assert value(db, "SELECT count(*) FROM sessions WHERE last_active > ? - 900000", NOW_MS) > 0
    assert {room for (room,) in db.execute("SELECT room FROM messages")} == set(ROOMS)
    assert value(db, "SELECT max(created_at) FROM messages") <= NOW_MS
    early = (
        "SELECT count(*) FROM orders o JOIN users u ON u.id = user_id WHERE o.created_at < u.created_at"
    )
    assert value(db, early) == 0


# The loop, on a real hub.


class CountedWriter:
    """The hub's writer, and how often it was asked for a transaction."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.begun = 0

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        self.begun += 1
        return self._hub.writer.transaction()

    async def query(self, sql: str, parameters: Any = ()) -> Any:
        return await self._hub.writer.query(sql, parameters)


@contextlib.asynccontextmanager
async def simulated(writer: CountedWriter) -> Any:
    task = asyncio.create_task(simulate(writer, Random(3), mean_gap_s=0.001))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_traffic_goes_through_the_stream(tmp_path: Path) -> None:
    database = make_database(tmp_path / "demo.db", *SCHEMA.strip().split(";\n"))
    async with Hub(database, driver="apsw") as hub, simulated(CountedWriter(hub)):
        seen: set[tuple[str, str]] = set()
        async with asyncio.timeout(PATIENCE_S):
            async with contextlib.aclosing(hub.subscribe("*", since="beginning")) as changes:
                async for change in changes:
                    seen.add((change["table"], change["type"]))
                    wanted = {("users", "INSERT"), ("orders", "INSERT"), ("sessions", "UPDATE")}
                    if wanted <= seen:
                        break


async def test_a_fault_is_said_once_and_the_traffic_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = make_database(tmp_path / "demo.db", *SCHEMA.strip().split(";\n"))
    async with Hub(database, driver="apsw") as hub:
        writer = CountedWriter(hub)

        async def writes() -> None:
            head = hub.core.present.head.lsn
            await asyncio.to_thread(wait_for, lambda: hub.core.present.head.lsn > head, "traffic")

        async def tries(count: int) -> None:
            enough = writer.begun + count
            await asyncio.to_thread(wait_for, lambda: writer.begun >= enough, "further tries")

        async with simulated(writer):
            await writes()
            async with lock_held(database):
                await tries(2)
            await writes()
            (busy,) = warnings(caplog)
            await asyncio.to_thread(run_sql, database, "ALTER TABLE orders RENAME TO gone")
            await tries(20)
            await asyncio.to_thread(run_sql, database, "ALTER TABLE gone RENAME TO orders")
            await writes()
    assert "write lock" in busy
    assert len(warnings(caplog)) == 2
    assert "no such table: orders" in warnings(caplog)[1]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "simulated traffic" in r.getMessage()]


@contextlib.asynccontextmanager
async def lock_held(database: Path) -> Any:
    """Another process has the write lock, as long as the block."""
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
        "db.close()"
    )
    pipe = asyncio.subprocess.PIPE
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(database), stdin=pipe, stdout=pipe
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    try:
        yield
    finally:
        await holder.communicate(b"")
