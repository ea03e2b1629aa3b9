"""Fan-out: from the log to subscribers, each a cursor; feeds share the bytes."""

from cdchub.fanout.catchup import Start
from cdchub.fanout.core import Core
from cdchub.fanout.encoding import Format, encode
from cdchub.fanout.feed import EntryRows, Feed, Framer, Item, Matcher
from cdchub.fanout.local import LocalFramer, lines_of
from cdchub.fanout.ports import LogPages, Sink, Snapshots, SnapshotStream
from cdchub.fanout.present import Present
from cdchub.fanout.seam import FromBase, Gone, View, resolve
from cdchub.fanout.sink import BufferSink
from cdchub.fanout.subscriber import Subscriber
from cdchub.fanout.transport import EXTENSION, HandOver, TransportSink
from cdchub.fanout.turnstile import Turnstile

__all__ = [
    "EXTENSION",
    "BufferSink",
    "Core",
    "EntryRows",
    "Feed",
    "Format",
    "Framer",
    "FromBase",
    "Gone",
    "HandOver",
    "Item",
    "LocalFramer",
    "LogPages",
    "Matcher",
    "Present",
    "Sink",
    "SnapshotStream",
    "Snapshots",
    "Start",
    "Subscriber",
    "TransportSink",
    "Turnstile",
    "View",
    "encode",
    "lines_of",
    "resolve",
]
