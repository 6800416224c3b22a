"""A server in front of another one, that refuses for a while: faults of a network, on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Way = Literal["serve", "503", "403", "close", "hang"]

_SAYS = {
    "503": ("503 Service Unavailable", "ServiceUnavailable", "Please try again."),
    "403": ("403 Forbidden", "AccessDenied", "Access Denied"),
}


class Refusing:
    """Passes bytes on to a server, or refuses them.

    Args:
        port: of the server on loopback.

    Attributes:
        port: its own.
        n_refused: connections that were refused.
    """

    def __init__(self, port: int) -> None:
        self._inner, self._way, self.n_refused = port, "serve", 0
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._server.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def turn(self, way: Way) -> None:
        """From now on do so; what is under way breaks off."""
        self._way = way
        self._break_off()

    @contextmanager
    def refusing(self, way: Way, seconds: float) -> Iterator[None]:
        """Refuse from now on for so long, while the block runs; it is waited for."""
        self.turn(way)
        timer = threading.Timer(seconds, self.turn, ["serve"])
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def close(self) -> None:
        self._server.close()
        self._break_off()

    def _break_off(self) -> None:
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client, self._way], daemon=True).start()

    def _serve(self, client: socket.socket, way: str) -> None:
        with client, self._held(client), suppress(OSError):
            if way == "serve":
                self._pass_on(client)
                return
            self.n_refused += 1
            if way == "hang":
                while client.recv(65536):
                    pass
            elif way in _SAYS:
                client.sendall(_answer(way, _read_request(client)))
                client.shutdown(socket.SHUT_WR)

    def _pass_on(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._inner)) as server, self._held(server):
            back = threading.Thread(target=_copy, args=[server, client], daemon=True)
            back.start()
            _copy(client, server)
            back.join()

    @contextmanager
    def _held(self, one: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(one)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(one)


def until(condition: object, seconds: float = 60.0) -> float:
    """Wait until `condition()` holds; how long that took."""
    assert callable(condition)
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + seconds, "it did not come"
        time.sleep(0.02)
    return time.monotonic() - begin


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _read_request(client: socket.socket) -> bytes:
    """One request, without a body that waits to be asked for; its method."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    left = 0 if b"expect" in fields else int(fields.get(b"content-length", b"0")) - len(body)
    while left > 0 and (more := client.recv(65536)):
        left -= len(more)
    return head.split(b" ", 1)[0]


def _answer(way: str, method: bytes) -> bytes:
    status, code, text = _SAYS[way]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return (head if method == b"HEAD" else head + body).encode()
