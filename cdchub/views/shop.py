"""The demo's imaginary shop: who comes, what they buy and what they say, as statements to run.

Everything is drawn from the `Random` that is passed in, so a seed gives the same rows again. Ids
begin with `demo-`: by that the simulator knows its own rows and leaves those of others alone. A
session's token is such an id too: a primary key is part of every change, so it must open nothing.
"""

from __future__ import annotations

import json
from random import Random

from cdchub.change import SqliteValue

Statement = tuple[str, tuple[SqliteValue, ...]]

OWN = "demo-"
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
# How long somebody looks around, and how long their session is kept.
VISIT_MS = 5 * MINUTE_MS
SESSION_LIFE_MS = 7 * DAY_MS

ROOMS = ("lobby", "random", "help")
_FIRST_NAMES = (
    "Ada", "Amir", "Anneke", "Bo", "Carla", "Chidi", "Dara", "Elif", "Emeka", "Farah", "Grace", "Hana",
    "Ines", "Ivo", "Jonas", "Kai", "Lena", "Linus", "Maya", "Mei", "Nadia", "Noor", "Olga", "Oscar",
    "Priya", "Quinn", "Rosa", "Sami", "Tariq", "Uma", "Vera", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
_LAST_NAMES = (
    "Adeyemi", "Baker", "Castillo", "Dubois", "Eriksen", "Fischer", "Gupta", "Haddad", "Ito", "Jansen",
    "Kowalski", "Lindqvist", "Moreau", "Nakamura", "Okafor", "Petrov", "Rossi", "Silva", "Tanaka",
    "Ueda", "Varga", "Weber", "Yilmaz",
)  # fmt: skip
_SAYINGS = {
    "lobby": (
        "Good morning, everybody",
        "Back from lunch",
        "Has the new batch arrived?",
        "Welcome to the new ones",
        "Nice to see so many here today",
        "Off for today, see you tomorrow",
    ),
    "random": (
        "The coffee machine works again",
        "Anyone up for a walk later?",
        "I finally finished that book",
        "It has begun to snow",
        "Found a very good recipe for bread",
        "Today I learned that octopuses have three hearts",
    ),
    "help": (
        "Where do I change my address?",
        "My order has arrived, thank you",
        "How long does a refund take?",
        "Found it, thanks for the help",
        "Can I add something to an order?",
        "You can see it under your orders",
    ),
}
_TODO_TITLES = (
    "Answer the mail from Weber",
    "Order more boxes",
    "Count the stock",
    "Call the printer about the labels",
    "Pack the parcels for Friday",
    "Water the plants",
)


def new_id(random: Random) -> str:
    return f"{OWN}{random.getrandbits(64):016x}"


def user(random: Random, *, id: str, at_ms: int) -> Statement:
    first, last = random.choice(_FIRST_NAMES), random.choice(_LAST_NAMES)
    email = f"{first}.{last}.{id[-8:]}@example.org".lower()
    sql = "INSERT INTO users(id, name, email, created_at) VALUES (?, ?, ?, ?)"
    return sql, (id, f"{first} {last}", email, at_ms)


def session(random: Random, *, user_id: str, at_ms: int, last_active_ms: int) -> Statement:
    sql = (
        "INSERT INTO sessions(token, user_id, created_at, last_active, expires_at)"
        " VALUES (?, ?, ?, ?, ?)"
    )
    return sql, (new_id(random), user_id, at_ms, last_active_ms, at_ms + SESSION_LIFE_MS)


def total(random: Random) -> float:
    """Dollars and cents: mostly some tens, now and then a few hundreds."""
    return round(min(random.lognormvariate(3.6, 0.6), 900.0), 2)


def chat_line(random: Random, *, room: str, at_ms: int) -> Statement:
    """The room's sayings by turns, so that nobody repeats what was said just now."""
    name = random.choice(_FIRST_NAMES).lower()
    sayings = _SAYINGS[room]
    place = f"((SELECT count(*) FROM messages WHERE room = ?) % {len(sayings)})"
    sql = (
        "INSERT INTO messages(id, room, user_id, content, created_at)"
        f" SELECT ?, ?, ?, json_extract(?, '$[' || {place} || ']'), ?"
    )
    return sql, (new_id(random), room, name, json.dumps(sayings), room, at_ms)


def todo(random: Random, *, at_ms: int) -> Statement:
    sql = (
        "INSERT INTO todos(id, title, completed, position, created_at, updated_at)"
        " SELECT ?, ?, 0, coalesce(max(position) + 1, 0), ?, ? FROM todos"
    )
    return sql, (new_id(random), random.choice(_TODO_TITLES), at_ms, at_ms)
