"""Who feeds a hub: its own tailer, where it owns the source, or else the owner's log.

One hub owns a source. Another one in a process of its own, or another worker of the same application,
follows the log and takes over when the owner ends; what it delivers goes on without a seam.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable

from cdchub.capture.choice import Choice
from cdchub.capture.connection import Owner, SourcePaths, like_database
from cdchub.capture.progress import CaptureCounters
from cdchub.capture.tailer import Tailer
from cdchub.catalog import Catalog
from cdchub.config import Config
from cdchub.errors import LogUnusable, SourceOwned
from cdchub.following import LogFollower
from cdchub.log import LogWriter, mark_of
from cdchub.log.protocol import Delivery, HistoryChanged, SchemaChanged

logger = logging.getLogger("cdchub.capture")


class Capturing:
    """Used on the loop; `deliver` is called from threads, in order."""

    def __init__(
        self,
        paths: SourcePaths,
        *,
        choice: Choice | None,
        config: Config,
        exclusive: bool,
        deliver: Callable[[Delivery], None],
        owns: Callable[[], None],
    ) -> None:
        """`exclusive`: a source that is owned already is an error. `owns` is called on the loop when
        this hub has become the owner."""
        self._paths = paths
        self._choice = choice
        self._config = config
        self._exclusive = exclusive
        self._deliver = deliver
        self._owns = owns
        self._owner = Owner(paths)
        self._tailer: Tailer | None = None
        self._follower: LogFollower | None = None
        self._log: LogWriter | None = None
        self._promotion: asyncio.Task[None] | None = None
        self._ending = threading.Event()
        # Of the epochs that this hub has followed.
        self._last_number = 0
        self._idle_counters = CaptureCounters()

    async def open(self) -> tuple[HistoryChanged, Catalog]:
        """What there is at this moment; after `start`, deliveries continue it. Raises `StartError`."""
        self._loop = asyncio.get_running_loop()
        try:
            self._owner.acquire()
        except SourceOwned:
            if self._exclusive:
                raise
            return await asyncio.to_thread(self._open_follower)
        try:
            # Off the loop: a source that is busy or a first installation may take seconds.
            return await asyncio.to_thread(self._open_tailer)
        except BaseException:
            # As it was found.
            self._owner.release(self._owner.left)
            raise

    def start(self) -> None:
        """Begins to deliver."""
        source = self._source
        assert source is not None
        source.start()

    async def close(self) -> None:
        self._ending.set()
        leave = ""
        try:
            if self._promotion is not None:
                await self._promotion
            if self._follower is not None:
                await asyncio.to_thread(self._follower.stop)
            if self._tailer is not None:
                await asyncio.to_thread(self._tailer.stop)
                leave = mark_of(self._paths.log)
        finally:
            if self._log is not None:
                self._log.close()
            self._owner.release(leave)

    @property
    def is_owner(self) -> bool:
        return self._tailer is not None

    @property
    def counters(self) -> CaptureCounters:
        return self._idle_counters if self._tailer is None else self._tailer.counters

    @property
    def failing(self) -> str | None:
        """Why deliveries are interrupted, or None while all is well."""
        source = self._source
        if self._promotion is not None and not self._promotion.done():
            return None
        if source is None or not source.alive:
            return "capture has ended"
        if isinstance(source, LogFollower):
            return source.failing
        return source.counters.failing

    @property
    def uses_inotify(self) -> bool:
        source = self._source
        return source is not None and source.uses_inotify

    def kick(self) -> None:
        """Somebody in this process has committed: look now. May be called from any thread."""
        source = self._source
        if source is not None:
            source.kick()

    def doubt(self) -> None:
        """Somebody has read another source than the one that is followed: look anew. An owner can."""
        if self._tailer is not None:
            self._tailer.kick(doubt=True)

    def accepted(self) -> None:
        """The loop has taken one delivery of changes."""
        source = self._source
        if source is not None:
            source.accepted()

    @property
    def _source(self) -> Tailer | LogFollower | None:
        return self._tailer or self._follower

    def _open_tailer(self) -> tuple[HistoryChanged, Catalog]:
        left = self._owner.left
        self._log = LogWriter(
            self._paths.log,
            database=self._paths.database,
            left=left,
            reached_lsn=self._owner.reached_lsn,
            last_number=self._last_number,
            note=self._owner.note,
        )
        try:
            tailer = Tailer(
                self._paths,
                self._log,
                choice=self._choice,
                config=self._config,
                deliver=self._deliver,
            )
            # Opening may deliver already: what the outbox had when the schema has changed meanwhile.
            self._tailer = tailer
            opened = tailer.open()
        except BaseException as error:
            self._tailer = None
            self._owner.left = self._log.close_as_found(left)
            self._log = None
            if isinstance(error, sqlite3.Error):
                raise LogUnusable(str(self._paths.log), str(error)) from error
            raise
        for suffix in ("-wal", "-shm"):
            path = self._paths.log.with_name(self._paths.log.name + suffix)
            if path.exists():
                like_database(self._paths, path)
        return opened

    def _open_follower(self) -> tuple[HistoryChanged, Catalog]:

        def owning() -> None:
            self._loop.call_soon_threadsafe(self._promote)

        follower = LogFollower(
            self._paths,
            self._owner,
            self._config.capture,
            deliver=self._deliver,
            owning=owning,
        )
        try:
            opened = follower.open()
        except BaseException:
            follower.stop()
            raise
        self._follower = follower
        return opened

    # Taking over.

    def _promote(self) -> None:
        if not self._ending.is_set():
            self._promotion = asyncio.get_running_loop().create_task(self._take_over())

    async def _take_over(self) -> None:
        """From follower to owner. All that the follower delivered has been taken by now."""
        follower, self._follower = self._follower, None
        assert follower is not None
        await asyncio.to_thread(follower.stop)
        self._last_number = follower.epoch_number
        try:
            history, catalog = await asyncio.to_thread(self._open_tailer)
        except Exception as error:
            # Also what nobody foresaw: otherwise the lock would stay, and nobody would capture.
            logger.error("this hub could not take over, and follows again: %s", error)
            self._owner.release()
            await self._follow_again()
            return
        self._owns()
        self._deliver(history)
        self._deliver(SchemaChanged(catalog))
        self.start()

    async def _follow_again(self) -> None:
        while not self._ending.is_set():
            try:
                history, catalog = await asyncio.to_thread(self._open_follower)
            except Exception as error:
                logger.error("the log can't be followed, retrying: %s", error)
                await asyncio.sleep(self._config.capture.retry_s)
                continue
            self._deliver(history)
            self._deliver(SchemaChanged(catalog))
            self.start()
            return
