"""Fan-out: from the log to subscribers, each a cursor; feeds share the bytes."""

from cdchub.fanout.core import Core, LogPages, Sink, Snapshots, SnapshotStream, Subscriber
from cdchub.fanout.feed import Feed, Framer, Matcher
from cdchub.fanout.subscriber import Gone, View, resolve

__all__ = [
    "Core",
    "Feed",
    "Framer",
    "Gone",
    "LogPages",
    "Matcher",
    "Sink",
    "SnapshotStream",
    "Snapshots",
    "Subscriber",
    "View",
    "resolve",
]
