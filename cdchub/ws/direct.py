"""A WebSocket on a connection that our own server let go: frames in, shared frames out.

The library reads and checks what the peer sends (RFC 6455); what the hub sends is framed once for
all who receive the same, and written past the library, whole frames between its pongs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from cdchub.ws.session import Session

_UNSUPPORTED_DATA, _INVALID_DATA = 1003, 1007

# An empty ping: FIN and opcode 9.
_PING = b"\x89\x00"
_MASKED, _MASK_BYTES = 0x80, 4
# What answers it: FIN and opcode 10, masked, and empty.
_PONG, _PONG_BYTES = b"\x8a\x80", 6
# The library tells of each peer's mistake; they are counted here.
_quiet = logging.getLogger("cdchub.ws.frames")


class Direct(asyncio.Protocol):
    """One peer. It is the `Wire` of its session."""

    # There may be tens of thousands.
    __slots__ = (
        "_close_s",
        "_closing",
        "_frames",
        "_heard_s",
        "_is_full",
        "_message_bytes_max",
        "_rest",
        "_session",
        "_silent_s",
        "_text",
        "_transport",
        "_untaken_bytes",
        "write",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        buffer_bytes_max: int,
        message_bytes_max: int,
        close_s: float,
        silent_s: float,
    ) -> None:
        """Beyond `buffer_bytes_max` the connection is full. It ends `close_s` after its close frame, or
        when a ping finds that for `silent_s` nothing was heard, nor taken of what waits."""
        self._transport = transport
        self._message_bytes_max = message_bytes_max
        # Reads frames. It weighs more than all else here, so it is only there while one is needed.
        self._frames: ServerProtocol | None = None
        # The beginning of a frame.
        self._rest = b""
        self._close_s = close_s
        self._silent_s = silent_s
        self._closing: asyncio.TimerHandle | None = None
        self._session: Session | None = None
        self._is_full = False
        # The beginning of a fragmented message.
        self._text: bytearray | None = None
        self.write: Callable[[bytes], None] = transport.write
        self._heard_s = asyncio.get_running_loop().time()
        # What waited in the connection at the last ping.
        self._untaken_bytes = 0
        transport.set_write_buffer_limits(high=buffer_bytes_max)

    def begin(self, session: Session, received: bytes) -> None:
        """`session` hears what comes from here on, after what was `received` already."""
        self._session = session
        self._transport.set_protocol(self)
        session.begin()
        self._transport.resume_reading()
        if received:
            self.data_received(received)

    # Wire

    @property
    def is_full(self) -> bool:
        return self._is_full

    @property
    def buffered_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        frames = self._reading()
        if frames.state is OPEN:
            frames.send_close(code, reason)
        self._flush(frames)

    def abort(self) -> None:
        # asyncio's own transports can't be aborted once the connection is lost.
        if self.write is not _discard:
            self._transport.abort()

    def ping(self) -> None:
        """RFC 6455 §5.5.2. To take what was written is a sign of life too: the answer to a ping comes
        after all that waits before it, and nothing is read from a connection that is full."""
        now_s, untaken = asyncio.get_running_loop().time(), self.buffered_bytes
        if untaken < self._untaken_bytes:
            self._heard_s = now_s
        self._untaken_bytes = untaken
        if now_s - self._heard_s > self._silent_s:
            self._lose("stalled" if self._is_full else "silent")
            self.abort()
        elif not self._is_full and (self._frames is None or self._frames.state is OPEN):
            self.write(_PING)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        if self._rest:
            data = self._rest + data
        elif data[:2] == _PONG and len(data) == _PONG_BYTES and self._frames is None:
            # Most of what ten thousand quiet peers say.
            return
        end = whole_frames(data, frame_bytes_max=self._message_bytes_max)
        data, self._rest = data[:end], data[end:]
        if not data:
            return
        frames = self._reading()
        frames.receive_data(data)
        if frames.state is OPEN:
            # Pongs come before the answers to what came behind the pings.
            self._write_waiting(frames)
        for event in frames.events_received():
            if isinstance(event, Frame) and not self._take(frames, event):
                break
        self._flush(frames)

    def eof_received(self) -> bool:
        self._transport.abort()
        return False

    def pause_writing(self) -> None:
        self._is_full = True
        # Whoever does not take the answers shall not go on asking.
        if not self._transport.is_closing():
            self._transport.pause_reading()
        if self._session is not None:
            self._session.is_full()

    def resume_writing(self) -> None:
        self._is_full = False
        self._heard_s = asyncio.get_running_loop().time()
        if not self._transport.is_closing():
            self._transport.resume_reading()
        if self._session is not None:
            self._session.has_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        # What is written by then is for nobody.
        self.write = _discard
        self._is_full = False
        if self._closing is not None:
            self._closing.cancel()
        self._lose("stalled" if isinstance(exc, TimeoutError) else "client_closed")

    # Inside.

    def _reading(self) -> ServerProtocol:
        if self._frames is None:
            self._frames = ServerProtocol(state=OPEN, max_size=self._message_bytes_max, logger=_quiet)
        return self._frames

    def _take(self, frames: ServerProtocol, frame: Frame) -> bool:
        """False where the connection has failed: nothing behind it counts (RFC 6455 §7.1.7)."""
        match frame.opcode:
            case Opcode.BINARY:
                frames.fail(_UNSUPPORTED_DATA, "messages are text: JSON")
                return False
            case Opcode.TEXT | Opcode.CONT:
                if self._text is None:
                    self._text = bytearray()
                self._text += frame.data
                if frame.fin:
                    text, self._text = bytes(self._text), None
                    return self._hear(frames, text)
            case _:
                # Pings and close frames are answered by the library.
                pass
        return True

    def _hear(self, frames: ServerProtocol, text: bytes) -> bool:
        try:
            text.decode()
        except UnicodeDecodeError:
            frames.fail(_INVALID_DATA, "text is UTF-8")
            return False
        if self._session is not None:
            self._session.receive(text)
        return True

    def _write_waiting(self, frames: ServerProtocol) -> None:
        for data in frames.data_to_send():
            if data:
                self.write(data)
            elif self._transport.can_write_eof() and not self._transport.is_closing():
                # The library's sign for the end of what it sends.
                self._transport.write_eof()

    def _flush(self, frames: ServerProtocol) -> None:
        """Writes what the library wants written, and follows it when it closes (RFC 6455 §7.1)."""
        self._write_waiting(frames)
        if frames.state is OPEN:
            if self._text is None:
                self._frames = None
        else:
            self._lose("client_closed" if frames.parser_exc is None else "bad_frames")
            if frames.close_rcvd is not None:
                self._transport.close()
            elif self._closing is None and not self._transport.is_closing():
                # The peer may be sending still: were the connection closed now, the kernel would reset
                # it, and the peer might never read why.
                loop = asyncio.get_running_loop()
                self._closing = loop.call_later(self._close_s, self.abort)

    def _lose(self, outcome: str) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.is_lost(outcome)


def whole_frames(data: bytes, *, frame_bytes_max: int) -> int:
    """How many of these bytes are whole frames of a client (RFC 6455 §5.2): two bytes, perhaps a longer
    length, a mask, the payload. All of them where a frame is to be refused for its length."""
    end = 0
    while end + 2 <= len(data):
        length = data[end + 1] & 0x7F
        more = {126: 2, 127: 8}.get(length, 0)
        if more:
            if end + 2 + more > len(data):
                break
            length = int.from_bytes(data[end + 2 : end + 2 + more], "big")
        if length > frame_bytes_max or not data[end + 1] & _MASKED:
            return len(data)
        size = 2 + more + _MASK_BYTES + length
        if end + size > len(data):
            break
        end += size
    return end


def _discard(data: bytes) -> None:
    pass
