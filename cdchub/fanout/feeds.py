"""The feeds that somebody subscribes to: made for the first of their members, let go with the last."""

from __future__ import annotations

from collections.abc import Iterator

from cdchub.catalog import Catalog, Selection
from cdchub.config import StreamConfig
from cdchub.fanout.encoding import Format
from cdchub.fanout.feed import Feed, Framer
from cdchub.fanout.framed import FramedRing
from cdchub.fanout.index import FeedIndex
from cdchub.fanout.present import Present


class Feeds:
    def __init__(self, present: Present, config: StreamConfig) -> None:
        self._present = present
        self._feeds: dict[tuple[int, Selection, Format], Feed] = {}
        self.index = FeedIndex()
        self.framed = FramedRing(
            present, bytes_max=config.framed_bytes_max, slice_bytes_max=config.page_bytes
        )

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds.values())

    def join(self, selection: Selection, framer: Framer, format: Format) -> Feed:
        key = (id(framer), selection, format)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(selection, self._present.catalog, framer, format)
            self.index.add(feed)
        feed.members += 1
        return feed

    def part(self, feed: Feed) -> None:
        feed.members -= 1
        if not feed.members:
            del self._feeds[id(feed.framer), feed.selection, feed.format]
            self.index.discard(feed)
            self.framed.forget(feed)

    def recatalog(self, catalog: Catalog) -> None:
        for feed in self:
            feed.recatalog(catalog)
        self.index.rebuild()
        self.framed.clear()
