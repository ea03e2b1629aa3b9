"""The sink that writes into a transport, on both loops: when it is full, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from cdchub.fanout import TransportSink

BYTES_MAX = 10_000
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Listener:
    """What the sink has told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lost = asyncio.Event()

    def sink_is_full(self) -> None:
        self.told.append("full")

    def sink_is_lost(self, outcome: str) -> None:
        self.told.append(outcome)
        self.lost.set()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[TransportSink, Listener, socket.socket]]:
    """A sink, who listens to it, and the other end of its connection, whose buffer is small."""
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    peer.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    sink, listener = TransportSink(transport, bytes_max=BYTES_MAX), Listener()
    sink.listen(listener)
    try:
        yield sink, listener, peer
    finally:
        sink.abort()
        peer.close()
        await listener.lost.wait()


async def until_end(peer: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(peer, 65_536):
        data += part
    return data


async def fills_and_drains() -> None:
    async with connected() as (sink, listener, peer):
        written = bytearray()
        while not sink.is_full:
            part = len(written).to_bytes(4, "big") * 100
            sink.write(part)
            written += part
            await asyncio.sleep(0)
        assert listener.told == ["full"]
        assert BYTES_MAX < sink.buffered_bytes <= BYTES_MAX + len(part)
        waiting = asyncio.ensure_future(sink.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        loop, data = asyncio.get_running_loop(), b""
        while len(data) < len(written):
            data += await loop.sock_recv(peer, 65_536)
        await waiting
        assert data == written
        assert (sink.is_full, sink.buffered_bytes, listener.told) == (False, 0, ["full"])
        await sink.drained()


async def close_sends_what_is_buffered() -> None:
    async with connected() as (sink, listener, peer):
        sink.write(b"x" * 100_000)
        sink.close()
        assert await until_end(peer) == b"x" * 100_000
        await listener.lost.wait()
        assert listener.told == ["full", "client_closed"]


async def abort_wakes_who_waits() -> None:
    async with connected() as (sink, listener, _):
        sink.write(b"x" * 100_000)
        waiting = asyncio.ensure_future(sink.drained())
        await asyncio.sleep(0)
        sink.abort()
        await waiting
        assert listener.told == ["full", "client_closed"]
        sink.write(b"for nobody")


async def half_close_ends_it_at_once() -> None:
    async with connected() as (sink, listener, peer):
        sink.write(b"x" * 100_000)
        peer.shutdown(socket.SHUT_WR)
        await listener.lost.wait()
        assert listener.told == ["full", "client_closed"]


async def a_closed_peer_is_noticed() -> None:
    async with connected() as (_, listener, peer):
        peer.close()
        await listener.lost.wait()
        assert listener.told == ["client_closed"]


async def who_talks_too_much_is_cut_off() -> None:
    async with connected() as (sink, listener, peer):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(peer, b"x" * 65_536)
        sink.write(b"still here")
        assert await loop.sock_recv(peer, 100) == b"still here"
        await loop.sock_sendall(peer, b"x")
        await listener.lost.wait()


CASES: list[Callable[[], Coroutine[Any, Any, None]]] = [
    fills_and_drains,
    close_sends_what_is_buffered,
    abort_wakes_who_waits,
    half_close_ends_it_at_once,
    a_closed_peer_is_noticed,
    who_talks_too_much_is_cut_off,
]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_transport_sink(loop: str, case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(case())
