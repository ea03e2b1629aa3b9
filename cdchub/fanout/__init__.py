"""Fan-out: from the log to subscribers, each a cursor; feeds share the bytes.

A delivery's way through these modules, and what stands beside it:

- `core` knows every subscriber and is asked by transports; `rounds` takes deliveries in and writes
  them to those who are live.
- `feeds` and `feed` say who receives the same bytes, `index` which feeds a change may concern;
  `encoding` has the formats.
- `subscriber` is the state machine of one stream, `seam` the rule between replay and live, `catchup`
  its way to the head: from `framed` (the ring, framed once for a crowd), the log's pages, snapshots,
  or boiled down by `conflation`; in turns (`turnstile`).
- `present` is what log, ring and catalog hold at this moment.
- `transport` writes to a connection that a server let go, `sink` to one that asks, `local` to this
  process; `ports` are their common words.
"""

from cdchub.fanout.catchup import Start
from cdchub.fanout.core import Core
from cdchub.fanout.encoding import Format, encode
from cdchub.fanout.feed import EntryRows, Feed, Framer, Item, Matcher
from cdchub.fanout.local import LocalFramer, lines_of
from cdchub.fanout.ports import LogPages, Sink, SinkListener, Snapshots, SnapshotStream
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
    "SinkListener",
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
