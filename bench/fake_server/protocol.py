"""HTTP/1.1 as bytes: requests out of a stream, responses into one (RFC 9112). No sockets here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024

_END = b"\r\n\r\n"
_TARGET = re.compile(rb"(/[!-~]*|\*)")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class HttpError(Exception):
    """The bytes are no request that can be served; the connection has to close after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """Request line and headers. Header names are lower-cased; a repeated header is joined by commas."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    content_length: int
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class HttpRequest:
    head: Head
    body: bytes


class RequestReader:
    """Takes a connection's bytes in any pieces and gives its requests, one after the other."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: Head | None = None  # of the request whose body is still coming
        self._searched = 0  # no end of a head starts before here

    def feed(self, data: bytes) -> None:
        """Add what has arrived."""
        self._buffer += data

    @property
    def buffered(self) -> int:
        """Bytes that have arrived and belong to no request yet handed out."""
        return len(self._buffer)

    def next(self) -> HttpRequest | None:
        """The next request, or None until more bytes come. Raises `HttpError`; nothing can follow that."""
        head = self._head
        if head is None:
            head = self._next_head()
            if head is None:
                return None
        length = head.content_length
        if len(self._buffer) < length:
            self._head = head
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._head = None
        return HttpRequest(head, body)

    def _next_head(self) -> Head | None:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: empty lines ahead of a request are skipped
            del buffer[:2]
            self._searched = 0
        end = buffer.find(_END, self._searched)
        if end < 0 and len(buffer) <= MAX_HEAD_BYTES:
            self._searched = max(0, len(buffer) - len(_END) + 1)
            return None
        if end < 0 or end > MAX_HEAD_BYTES:
            raise HttpError(431, f"more than {MAX_HEAD_BYTES} bytes of headers")
        self._searched = 0
        head = parse_head(bytes(buffer[:end]))
        del buffer[: end + len(_END)]
        return head


# a client sends nearly the same head with every request: parse each once
@lru_cache(maxsize=1024)
def parse_head(data: bytes) -> Head:
    """Read a head without its empty line. Raises `HttpError`."""
    line, *fields = data.split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise HttpError(400, "not a request line")
    method, target, version = (part.decode("ascii", "replace") for part in parts)
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpError(505 if version.startswith("HTTP/") else 400, "only HTTP/1.1 is spoken here")
    headers: dict[str, str] = {}
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise HttpError(400, "not a header line")
        key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    if version == "HTTP/1.1" and "host" not in headers:
        raise HttpError(400, "no Host header")
    if "expect" in headers:
        raise HttpError(417, "send the body without asking first")
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    keep_alive = version == "HTTP/1.1" and "close" not in options
    path, _, query = target.partition("?")
    return Head(method, path, query, MappingProxyType(headers), _content_length(headers), keep_alive)


def _content_length(headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise HttpError(411, "send the body with a Content-Length, not chunked")
    given = headers.get("content-length")
    if given is None:
        return 0
    if not _LENGTH.fullmatch(given.encode("latin-1")):
        raise HttpError(400, "not a Content-Length")
    if int(given) > MAX_BODY_BYTES:
        raise HttpError(413, f"more than {MAX_BODY_BYTES} bytes of body")
    return int(given)


def response(
    status: int,
    body: bytes,
    headers: Iterable[tuple[str, str]] = (),
    *,
    content_type: str = "application/json",
) -> bytes:
    """A whole response. `headers` come after Content-Type and Content-Length."""
    more = "".join([f"{name}: {value}\r\n" for name, value in headers])
    head = (
        f"HTTP/1.1 {status} {_phrase(status)}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode("latin-1") + body


def closing(data: bytes) -> bytes:
    """A response that also says that no other will follow on this connection."""
    return data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


@lru_cache(maxsize=64)
def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
