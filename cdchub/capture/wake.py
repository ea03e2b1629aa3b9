"""How the tailer learns that somebody may have committed: inotify on the `-wal`, or a slow poll.

A wake is a hint only. The `-wal` is written before the commit becomes visible, so a wake may come
too early (the tailer looks again a few times), and a rolled-back transaction may wake for nothing.
Without inotify (another system, or its limits are reached) `wait` returns at least every `poll_s`.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import threading
from enum import Enum, auto
from pathlib import Path

logger = logging.getLogger("cdchub.capture")

# linux/inotify.h
_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x80, 0x100, 0x200
_READ_BYTES = 65_536


class Hint(Enum):
    NONE = auto()  # the time is up
    WRITTEN = auto()  # the -wal was written, or somebody called `kick`
    FILES = auto()  # a file appeared or went in the source's folder


class Wake:
    """Made and waited on by the tailer's thread; `kick` may be called from any thread."""

    def __init__(self, wal: Path, *, poll_s: float) -> None:
        self._path = wal
        self._poll_s = poll_s
        self._poll = select.poll()
        self._kick_read, self._kick_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._kick_read, select.POLLIN)
        self._wal = -1
        self._folder = -1
        self._files_told = False
        self._doubted = False
        # A commit hook may kick in the moment in which this is closed.
        self._kicking = threading.Lock()
        self._closed = False

    @property
    def uses_inotify(self) -> bool:
        return self._wal >= 0

    def wait(self, timeout_s: float) -> Hint:
        """Returns at the first hint, at the latest after `timeout_s`."""
        bound_s = timeout_s if self.uses_inotify else min(timeout_s, self._poll_s)
        if self._doubted:
            bound_s = 0.0
        ready = {descriptor for descriptor, _ in self._poll.poll(bound_s * 1000)}
        for descriptor in ready:
            # What the events say in detail doesn't matter: the database tells the truth.
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, _READ_BYTES)
        if self._folder in ready:
            self._files_told = True
            return Hint.FILES
        return Hint.WRITTEN if ready else Hint.NONE

    def files_may_differ(self, hint: Hint) -> bool:
        """Whether files may have come or gone since this was asked before; `hint` is the last one.
        Where inotify tells of files by themselves, a write alone says no."""
        told, self._files_told = self._files_told, False
        return told or not (hint is Hint.WRITTEN and self.uses_inotify)

    def doubted(self) -> bool:
        """Whether somebody has had a doubt since this was asked before."""
        doubted, self._doubted = self._doubted, False
        return doubted

    def kick(self, *, doubt: bool = False) -> None:
        """Wakes the waiting thread now; harmless when this is closed. `doubt`: the database may be
        another one than the connection reads, because it was copied over in place and SQLite goes on
        with the pages that it has."""
        if doubt and self._doubted:
            # One wake is enough, and more would be taken for writes that are yet to be seen.
            return
        self._doubted = self._doubted or doubt
        with self._kicking, contextlib.suppress(BlockingIOError):
            if not self._closed:
                # A full pipe has enough wakes in it already.
                os.write(self._kick_write, b"k")

    def watch(self) -> None:
        """Begins to watch the files that are there now, and not the ones before: a replaced `-wal`
        is another file, and the old watch is blind to it. Without it, `wait` only polls."""
        self._unwatch()
        self._watch()

    def close(self) -> None:
        self._unwatch()
        with self._kicking:
            self._closed = True
            os.close(self._kick_read)
            os.close(self._kick_write)

    def _watch(self) -> None:
        # Two instances, so that the descriptor alone tells what happened. The folder is not watched
        # for writes: our own log lies in it.
        try:
            self._wal = _inotify(self._path, _IN_MODIFY)
            self._folder = _inotify(self._path.parent, _IN_CREATE | _IN_MOVED_TO | _IN_DELETE)
        except OSError as error:
            self._unwatch()
            logger.warning(
                "no inotify for %s (%s): looking for changes every %g ms instead",
                self._path,
                error,
                self._poll_s * 1000,
            )
            return
        self._poll.register(self._wal, select.POLLIN)
        self._poll.register(self._folder, select.POLLIN)

    def _unwatch(self) -> None:
        for descriptor in (self._wal, self._folder):
            if descriptor >= 0:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(descriptor)
                os.close(descriptor)
        self._wal = self._folder = -1


def _inotify(path: os.PathLike[str], mask: int) -> int:
    """A descriptor that becomes readable when `path` sees one of the events. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        raise OSError("this system has no inotify")
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.inotify_add_watch(descriptor, os.fsencode(path), mask) < 0:
        error = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(error, os.strerror(error))
    return descriptor
