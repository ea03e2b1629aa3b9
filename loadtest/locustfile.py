"""What Locust runs: readers of both transports and a writer, or the members of chat rooms.

Whatever a user reports as a fault makes the run fail, and so does a run in which nothing arrived.
"""

from __future__ import annotations

import sys
from typing import Any

from locust import events

from loadtest.locust_chat import HEARD, Chatter, judge_rooms
from loadtest.locust_users import RECEIVED, SqliteWriter, SseReader, WsReader

__all__ = ["Chatter", "SqliteWriter", "SseReader", "WsReader"]


@events.init_command_line_parser.add_listener
def _add_options(parser: Any) -> None:
    parser.add_argument("--database", default="", help="the database that the writer writes")
    parser.add_argument("--rate", type=float, default=20.0, help="commits a second")
    parser.add_argument("--chat-rooms", type=int, default=50, help="rooms that the chatters are in")
    parser.add_argument("--said-every-s", type=float, default=10.0, help="a chatter speaks so often")
    parser.add_argument(
        "--cut-every-s",
        type=float,
        default=20.0,
        help="a user cuts its connection so often, in the mean",
    )


@events.test_stopping.add_listener
def _stopping(environment: Any, **_: object) -> None:
    judge_rooms(environment)


@events.quitting.add_listener
def _judge(environment: Any, **_: object) -> None:
    """A run in which nothing arrived has shown nothing."""
    total = environment.stats.total
    received = sum(
        entry.num_requests
        for (name, _), entry in environment.stats.entries.items()
        if name in (RECEIVED, HEARD)
    )
    if total.num_failures or not received:
        print(f"{received:,} events received, {total.num_failures:,} failures", file=sys.stderr)
        environment.process_exit_code = 1
