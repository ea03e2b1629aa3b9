"""Fan-out: from the log to subscribers, each a cursor; feeds share the bytes."""

from cdchub.fanout.catchup import Subscriber
from cdchub.fanout.core import Core
from cdchub.fanout.feed import Feed, Framer, Matcher
from cdchub.fanout.ports import LogPages, Sink, Snapshots, SnapshotStream
from cdchub.fanout.present import Present
from cdchub.fanout.subscriber import FromBase, Gone, View, resolve

__all__ = [
    "Core",
    "Feed",
    "Framer",
    "FromBase",
    "Gone",
    "LogPages",
    "Matcher",
    "Present",
    "Sink",
    "SnapshotStream",
    "Snapshots",
    "Subscriber",
    "View",
    "resolve",
]
