"""The parser: the same requests however the bytes fall, and nothing malformed gets through."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fake_server.protocol import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    HttpError,
    HttpRequest,
    RequestReader,
    parse_head,
    response,
)
from tests.bench.fake_server.client import http, key_of, raw

bodies = st.binary(max_size=40) | st.just(b"\r\n\r\n") | st.just(b"GET / HTTP/1.1\r\n\r\n")


def written(body: bytes, number: int, blank: bytes) -> bytes:
    lines = [
        f"POST /p{number}?q=1 HTTP/1.1",
        "HOST: a",
        f"content-LENGTH:{len(body)}",
        "X-Two: 1",
        "x-two: 2",
    ]
    return blank + "\r\n".join([*lines, "", ""]).encode() + body


def read_all(pieces: list[bytes]) -> list[HttpRequest]:
    reader, found = RequestReader(), []
    for piece in pieces:
        reader.feed(piece)
        while (request := reader.next()) is not None:
            found.append(request)
    assert reader.buffered == 0
    return found


@given(
    st.lists(bodies, min_size=1, max_size=4), st.lists(st.integers(0, 600)), st.sampled_from([b"", b"\r\n"])
)
def test_any_split_gives_the_same_requests(given: list[bytes], cuts: list[int], blank: bytes) -> None:
    stream = b"".join(written(body, number, blank) for number, body in enumerate(given))
    ends = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    found = read_all([stream[a:b] for a, b in pairwise(ends)])
    assert [(one.head.path, one.body) for one in found] == [(f"/p{n}", body) for n, body in enumerate(given)]
    assert all(one.head.query == "q=1" and one.head.headers["x-two"] == "1, 2" for one in found)
    assert read_all([bytes([byte]) for byte in stream]) == found


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    reader = RequestReader()
    reader.feed(data + b"\r\n\r\n")
    with contextlib.suppress(HttpError):
        while reader.next() is not None:
            pass


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"nonsense", 400),
        (b"GET  / HTTP/1.1\r\nHost: a", 400),
        (b"GET relative HTTP/1.1\r\nHost: a", 400),
        (b"GET / HTTP/2.0\r\nHost: a", 505),
        (b"GET / FTP/1.1\r\nHost: a", 400),
        (b"GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nspaced : 1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: a\nb", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", 411),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d" % (MAX_BODY_BYTES + 1), 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1", 417),
    ],
)
def test_what_is_no_request(head: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        parse_head(head)
    assert caught.value.status == status


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_head_without_end_is_refused(end: bytes) -> None:
    reader = RequestReader()
    reader.feed(b"GET / HTTP/1.1\r\nHost: " + b"a" * MAX_HEAD_BYTES + end)
    with pytest.raises(HttpError) as caught:
        reader.next()
    assert caught.value.status == 431


def test_connection_header() -> None:
    assert parse_head(b"GET / HTTP/1.1\r\nHost: a").keep_alive
    assert not parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close").keep_alive
    assert not parse_head(b"GET / HTTP/1.0").keep_alive


def test_a_response_is_framed() -> None:
    data = response(429, b"{}", [("retry-after", "3")])
    head, _, body = data.partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 429 Too Many Requests",
        b"Content-Type: application/json",
        b"Content-Length: 2",
        b"retry-after: 3",
    ]


def test_pipelined_requests_are_answered_in_order() -> None:
    requests = [http({"n": n}, close=n == 2) for n in range(3)]
    got = raw(
        b"".join(requests),
        echo="digest",
        text="{digest}",
        latency="uniform",
        latency_s=0.005,
        latency_spread=1,
    )
    keys = [got.find(key_of({"n": n}).encode()) for n in range(3)]
    assert -1 not in keys
    assert keys == sorted(keys)
    assert got.count(b"HTTP/1.1 200 OK") == 3
    assert got.count(b"Connection: close") == 1


def test_a_malformed_request_is_a_400_and_the_end() -> None:
    got = raw(http({}) + b"garbage\r\n\r\n" + http({}))
    assert got.count(b"HTTP/1.1 ") == 2
    assert got.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 Bad Request" in got


def test_a_chunked_body_is_refused() -> None:
    got = raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 411 ")
