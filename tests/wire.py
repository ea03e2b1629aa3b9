"""A connection byte by byte: for what no HTTP client does, or not on purpose."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from types import TracebackType

from tests.harness import PATIENCE_S


class Wire:
    def __init__(
        self, port: int, *, receive_bytes: int | None = None, trusts: ssl.SSLContext | None = None
    ) -> None:
        """`receive_bytes`: what the kernel may hold for a reader that does not read."""
        self._socket = socket.socket()
        if receive_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(("127.0.0.1", port))
        if trusts is not None:
            self._socket = trusts.wrap_socket(self._socket, server_hostname="localhost")
        self.data = b""
        self.ended = False

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def ask(self, path: str, *headers: str, method: str = "GET", version: str = "1.1") -> None:
        self.send(request(path, *headers, method=method, version=version))

    def read(self, count: int = 65_536) -> bytes:
        """What comes next; nothing at the end of the connection, however it ended."""
        try:
            data = self._socket.recv(count)
        except ConnectionError:
            data = b""
        self.ended = not data
        self.data += data
        return data

    def read_until(self, part: bytes) -> bytes:
        """Reads on until `part` has come, and returns all up to its end; the rest stays for later."""
        while part not in self.data:
            assert self.read(), f"the connection has ended after {self.data[-300:]!r}"
        before, found, self.data = self.data.partition(part)
        return before + found

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while not self.ended:
            self.read()
        return self.data

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Closes with RST: what is on its way, either way, is lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


def request(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """The bytes of a request without a body."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
