"""A crowd of readers in one process and one uvloop loop, which does what it is told on its stdin.

Each line is a command as JSON and is answered with one line; `loadtest.crowd` is the other end. What
this process can take: 5 µs of CPU a piece that it reads, counted or followed alike, so some 200,000
pieces a second on the machine of docs/performance.md, and as many events as the pieces carry. A run in
which its own `cpuS` comes near the run's seconds measures this program, not the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop

from loadtest.machine import raise_descriptor_limit
from loadtest.progress import Progress
from loadtest.readers import Counter, Follower, Reader, Tally
from loadtest.wire import HOST

# A follower that was cut or refused comes back after this; a browser would wait 5 s ± 50 %.
_RETRY_S = 0.25
_LOOK_S = 0.01
_OPEN_S_MAX = 60.0
_TOLD_MAX = 5

Command = dict[str, Any]


class Crowd:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.tally = Tally()
        self._readers: list[Reader] = []
        self.followed: list[Progress] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusals = 0
        self._away = False
        self._back = asyncio.Event()

    async def open(self, command: Command) -> Command:
        """`count` more readers, `concurrent` of them at a time, each until it has its head."""
        began_s = time.monotonic()
        await self._at_once(command["count"], command["concurrent"], self._add)
        return {"open": len(self._readers), "seconds": time.monotonic() - began_s}

    async def _at_once(self, count: int, concurrent: int, each: Callable[[int], Any]) -> None:
        first, numbers = len(self._readers), iter(range(count))

        async def work() -> None:
            for number in numbers:
                await each(first + number)

        await asyncio.gather(*(work() for _ in range(min(count, concurrent))))

    async def _add(self, number: int) -> None:
        slot = len(self._readers)
        if self._options.follow:
            progress = Progress(dense=not self._options.sparse)
            self.followed.append(progress)
            Follower.shared = len(self.followed) > 1
            self._readers.append(await self._connect(number, progress))
            task = asyncio.create_task(self._keep(slot, number, progress))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._readers.append(await self._connect(number, None))

    async def _connect(self, number: int, progress: Progress | None) -> Reader:
        options, loop = self._options, asyncio.get_running_loop()
        is_open: asyncio.Future[None] = loop.create_future()
        request = _request(options.path.replace("{n}", str(number)), progress)

        def reader() -> Reader:
            if progress is None:
                return Counter(self.tally, request, is_open)
            return Follower(self.tally, request, is_open, progress)

        async with asyncio.timeout(_OPEN_S_MAX):
            if options.receive_bytes:
                raw = await self._narrow_socket(options.receive_bytes)
                _, made = await loop.create_connection(reader, sock=raw)
            else:
                _, made = await loop.create_connection(reader, HOST, options.port)
            try:
                await is_open
            except BaseException:
                # Given up, so that what still comes over it counts for nobody.
                made.cut()
                raise
        return made

    async def _narrow_socket(self, receive_bytes: int) -> socket.socket:
        """A connected socket with a small buffer, which has to be set before it connects."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(0)
        await asyncio.get_running_loop().sock_connect(raw, (HOST, self._options.port))
        return raw

    async def _keep(self, slot: int, number: int, progress: Progress) -> None:
        """Comes back whenever the connection is lost, where the last one ended."""
        while True:
            reader = self._readers[slot]
            assert isinstance(reader, Follower), "only followers are kept"
            await reader.on_lost
            if self._away:
                await self._back.wait()
            else:
                await asyncio.sleep(_RETRY_S)
            while True:
                try:
                    self._readers[slot] = await self._connect(number, progress)
                    break
                except OSError as error:
                    # All are counted, few are told: ten thousand say the same when a hub is down.
                    progress.refused += 1
                    self._refusals += 1
                    if self._refusals <= _TOLD_MAX:
                        print(f"reader {number} tries again: {error}", file=sys.stderr)
                    await asyncio.sleep(_RETRY_S)

    async def cut(self, _: Command) -> Command:
        """All connections end at once; nobody comes back before `resume`."""
        self._away = True
        self._back.clear()
        for reader in self._readers:
            reader.cut()
        await asyncio.gather(*(r.on_lost for r in self._readers if isinstance(r, Follower)))
        count = len(self._readers)
        if not self._options.follow:
            # Nobody brings them back.
            self._readers.clear()
        return {"cut": count}

    async def resume(self, _: Command) -> Command:
        self._away = False
        self._back.set()
        return {"atNs": time.monotonic_ns()}

    async def churn(self, command: Command) -> Command:
        """`count` readers come and go, `concurrent` at a time; each is cut as soon as it is open."""

        async def visit(number: int) -> None:
            (await self._connect(number, None)).cut()

        await self._at_once(command["count"], command["concurrent"], visit)
        # Otherwise what they leave, in cycles, would stay: see `main`.
        gc.collect()
        return {"visited": command["count"]}

    async def until(self, command: Command) -> Command:
        """Waits until every follower's `field` (or the sum delivered) is at least `least`.

        With `silenceS`, it gives up when nothing has come for so long; in any case after `withinS`.
        """
        field, least = command["field"], command["least"]
        silence_ns = 1e9 * float(command["silenceS"] if "silenceS" in command else command["withinS"])
        began_ns = time.monotonic_ns()
        while not (reached := self._reached(field, least)):
            await asyncio.sleep(_LOOK_S)
            now_ns = time.monotonic_ns()
            quiet_ns = now_ns - max(began_ns, self.tally.last_read_ns)
            if quiet_ns > silence_ns or now_ns - began_ns > command["withinS"] * 1e9:
                break
        return {"reached": reached, "atNs": time.monotonic_ns(), "missing": self._missing(field, least)}

    def _reached(self, field: str, least: int) -> bool:
        if field == "delivered":
            return self.tally.delivered >= least
        return all(getattr(progress, field) >= least for progress in self.followed)

    def _missing(self, field: str, least: int) -> int:
        if field == "delivered":
            return max(0, least - self.tally.delivered)
        return sum(getattr(progress, field) < least for progress in self.followed)

    async def clear(self, _: Command) -> Command:
        self.tally.clear()
        return {}

    async def figures(self, _: Command) -> Command:
        found = self.tally.figures() | {"cpuS": time.process_time(), "readers": len(self._readers)}
        names = [name for name in Progress.__slots__ if name not in ("last_id", "dense", "lsn")]
        if self.followed:
            found |= {name: sum(getattr(p, name) for p in self.followed) for name in names}
            found["fewest"] = min(p.changes for p in self.followed)
            found["most"] = max(p.changes for p in self.followed)
        return found

    async def serve(self) -> None:
        """Commands until the end of the input."""
        loop, commands = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        actions: dict[str, Callable[[Command], Any]] = {
            "open": self.open,
            "cut": self.cut,
            "resume": self.resume,
            "churn": self.churn,
            "until": self.until,
            "clear": self.clear,
            "figures": self.figures,
        }
        while line := await commands.readline():
            command = json.loads(line)
            try:
                answer = await actions[command["do"]](command)
            except (OSError, TimeoutError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
        for task in self._tasks:
            task.cancel()


def _request(path: str, progress: Progress | None) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {HOST}", "Accept: text/event-stream"]
    if progress is not None and progress.last_id:
        lines.append(f"Last-Event-ID: {progress.last_id.decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("port", type=int)
    parser.add_argument("path", help="what to ask for; {n} in it is the reader's number")
    parser.add_argument("--follow", action="store_true", help="check LSNs, come back when cut")
    parser.add_argument("--sparse", action="store_true", help="LSNs may be missing: there is a filter")
    parser.add_argument("--preferred", action="store_true", help="before others on its core, if root")
    parser.add_argument("--receive-bytes", type=int, default=0, help="a receive buffer of this size")
    options = parser.parse_args()
    raise_descriptor_limit()
    if options.preferred:
        with contextlib.suppress(OSError):
            os.nice(-10)
    # A hundred thousand objects live to the end; looking for cycles among them would be measured.
    gc.disable()
    uvloop.run(Crowd(options).serve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
