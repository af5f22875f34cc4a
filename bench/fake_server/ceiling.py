"""The server's own ceiling: what is left to measure of a client once the server is the limit.

A client in this process keeps `depth` prepared requests outstanding on each connection and does nothing with
the answers but count their bytes. With `depth` 1 the server does per request what it does for a real client;
above that it saves system calls.
"""

from __future__ import annotations

import http.client
import selectors
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from bench.fake_server.process import call

_WARM_UP_S = 0.3
_STALL_S = 10.0


@dataclass(frozen=True, slots=True)
class Ceiling:
    """`server_cpu_s` and `client_cpu_s` are CPU seconds for 10,000 requests."""

    requests: int
    requests_per_s: float
    server_cpu_s: float
    client_cpu_s: float


def ceiling(
    url: str, *, seconds: float = 2.0, connections: int = 64, depth: int = 1, body_bytes: int = 2400
) -> Ceiling:
    """Drive the server at `url` as hard as it goes. It has to give every request the same answer, at once.

    Raises `ValueError` where it does not: answers of another size, or not 200.
    """
    port = urlsplit(url).port
    if port is None:
        raise ValueError(f"{url}: an address with a port is needed")
    request = chat_request(port, body_bytes)
    size = _response_size(port, request)
    with selectors.DefaultSelector() as selector:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        try:
            for one in sockets:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.setblocking(False)
                selector.register(one, selectors.EVENT_READ)
            driver = _Driver(selector, request * depth, size * depth, depth)
            driver.drive(sockets, _WARM_UP_S)
            before, wall, own = call(port, "GET", "/fake/seen"), time.perf_counter(), time.process_time()
            done = driver.drive(sockets, seconds)
            after, wall, own = (
                call(port, "GET", "/fake/seen"),
                time.perf_counter() - wall,
                time.process_time() - own,
            )
        finally:
            for one in sockets:
                one.close()
    if after["requests"] - before["requests"] != done or after["usable"] - before["usable"] != done:
        raise ValueError("the server did not give every request the same good answer")
    per = done / 10_000
    return Ceiling(done, done / wall, (after["cpu_s"] - before["cpu_s"]) / per, own / per)


def chat_request(port: int, body_bytes: int) -> bytes:
    """A whole chat request whose body has about `body_bytes` bytes."""
    body = orjson.dumps({"model": "fake", "messages": [{"role": "user", "content": "x" * (body_bytes - 63)}]})
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _response_size(port: int, request: bytes) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=_STALL_S) as one:
        one.sendall(request)
        answer = http.client.HTTPResponse(one)
        answer.begin()
        if answer.status != http.HTTPStatus.OK:
            raise ValueError(f"the server answers {answer.status}, not 200")
        head = sum(len(f"{name}: {value}\r\n") for name, value in answer.getheaders())
        return len(b"HTTP/1.1 200 OK\r\n\r\n") + head + len(answer.read())


class _Driver:
    """Sends `payload` (`depth` requests) on a connection whenever `size` bytes of answers have come back."""

    def __init__(self, selector: selectors.DefaultSelector, payload: bytes, size: int, depth: int) -> None:
        self._selector = selector
        self._payload = payload
        self._size = size
        self._depth = depth

    def drive(self, sockets: list[socket.socket], seconds: float) -> int:
        """Keep every connection busy for `seconds`, then let what is outstanding come in.

        Returns the number of requests answered.
        """
        by_number = {one.fileno(): one for one in sockets}
        due = dict.fromkeys(by_number, self._size)
        for one in sockets:
            self._send(one)
        done, until = 0, time.perf_counter() + seconds
        busy = len(sockets)
        while busy:
            events = self._selector.select(_STALL_S)
            if not events:
                raise ValueError("the server stopped answering")
            go_on = time.perf_counter() < until
            for key, _ in events:
                one = by_number[key.fd]
                left = due[key.fd] - len(one.recv(65_536))
                if left > 0:
                    due[key.fd] = left
                    continue
                if left < 0:
                    raise ValueError("the server's answers are not all of one size")
                done += self._depth
                due[key.fd] = self._size
                if go_on:
                    self._send(one)
                else:
                    busy -= 1
        return done

    def _send(self, one: socket.socket) -> None:
        # a payload is far smaller than the socket's buffer, and all of the last one was read
        if one.send(self._payload) != len(self._payload):
            raise ValueError("too many requests at once for the socket: choose a smaller depth")
