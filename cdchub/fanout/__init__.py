"""Fan-out: from the log to subscribers, each a cursor; feeds share the bytes."""

from cdchub.fanout.catchup import Start, Subscriber
from cdchub.fanout.core import Core
from cdchub.fanout.feed import Feed, Framer, Matcher
from cdchub.fanout.local import LocalFramer, lines_of
from cdchub.fanout.ports import LogPages, Sink, Snapshots, SnapshotStream
from cdchub.fanout.present import Present
from cdchub.fanout.sink import BufferSink
from cdchub.fanout.subscriber import FromBase, Gone, View, resolve

__all__ = [
    "BufferSink",
    "Core",
    "Feed",
    "Framer",
    "FromBase",
    "Gone",
    "LocalFramer",
    "LogPages",
    "Matcher",
    "Present",
    "Sink",
    "SnapshotStream",
    "Snapshots",
    "Start",
    "Subscriber",
    "View",
    "lines_of",
    "resolve",
]
