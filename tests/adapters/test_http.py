"""The HTTP client: what it sends, and what it makes of everything that can come back."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Coroutine
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import http
from adapters.http import HttpClient, Reply
from adapters.waiting import reset_after_s, retry_after_s
from engine.errors import ModelError
from engine.types import DOUBTFUL, TRANSIENT, AttemptFailure, Retry, rate_limited
from tests.adapters.responding import Asked, responding
from tests.adapters.responding import http as response

KEY = "sk-planted-2718281828"
GOOD = response(200, {"fine": True})


def client(*bases: str, **options: Any) -> HttpClient:
    return HttpClient(
        "openai:m",
        bases,
        "chat/completions",
        headers={"Authorization": f"Bearer {KEY}"},
        key_hint="set THE_KEY",
        **options,
    )


async def reply_of(to: HttpClient, body: bytes = b"{}") -> Reply:
    reply = await to.post(body)
    assert isinstance(reply, Reply), reply
    return reply


async def failure_of(to: HttpClient, body: bytes = b"{}") -> AttemptFailure:
    failure = await to.post(body)
    assert isinstance(failure, AttemptFailure), failure
    return failure


async def refused_base() -> str:
    """An address that nobody listens at."""
    async with responding(GOOD) as server:
        return server.base


def run(check: Coroutine[Any, Any, None]) -> None:
    asyncio.run(check)


# --- what is sent ---------------------------------------------------------------------------------


def test_bytes_go_out_and_come_back() -> None:
    async def check() -> None:
        async with responding(response(201, b"\x00back")) as server:
            to = client(server.base)
            assert server.connections == 0, "nothing is opened before the first attempt"
            reply = await reply_of(to, b"there \xff")
            assert (reply.status, reply.body) == (201, b"\x00back")
            (asked,) = server.asked
            assert (asked.path, asked.body) == ("/v1/chat/completions", b"there \xff")
            assert asked.headers["authorization"] == f"Bearer {KEY}"
            assert asked.headers["content-type"] == asked.headers["accept"] == "application/json"
            assert asked.headers["accept-encoding"] == "identity"
            await to.aclose()

    run(check())


def test_a_connection_is_used_again_and_cookies_are_not_kept() -> None:
    async def check() -> None:
        async with responding(response(200, b"{}", {"Set-Cookie": "a=b"})) as server:
            to = client(
                server.base.replace("127.0.0.1", "localhost")
            )  # for a bare address none are kept anyway
            for _ in range(3):
                await reply_of(to)
            assert server.connections == 1
            assert not any("cookie" in asked.headers for asked in server.asked)
            await to.aclose()

    run(check())


def test_a_large_body_goes_out_whole() -> None:
    async def check() -> None:
        async with responding(GOOD) as server:
            to = client(server.base)
            body = b"x" * (3 * 2**20)
            await reply_of(to, body)
            assert server.asked[0].body == body
            await to.aclose()

    run(check())


def test_the_client_can_be_closed_twice_and_used_again() -> None:
    async def check() -> None:
        async with responding(GOOD) as server:
            to = client(server.base)
            await to.aclose()
            await reply_of(to)
            await to.aclose()
            await to.aclose()
            await reply_of(to)
            await to.aclose()

    run(check())


def test_one_event_loop_after_another() -> None:
    to: list[HttpClient] = []

    async def first() -> None:
        async with responding(response(200, b"{}", {"Connection": "close"})) as server:
            to.append(client(server.base))
            await reply_of(to[0])

    async def second() -> None:
        with pytest.raises(ModelError, match="nobody answers there"):
            await to[0].post(b"{}")
        await to[0].aclose()

    asyncio.run(first())
    asyncio.run(second())


def test_a_cancelled_attempt_leaves_the_client_usable() -> None:
    async def check() -> None:
        arrived = asyncio.Event()

        def script(asked: Asked) -> bytes:
            arrived.set()
            return response(200, b"half", {"Content-Length": "100"})[:-2]

        async with responding(script) as server:
            to = client(server.base)
            attempt = asyncio.ensure_future(to.post(b"{}"))
            await arrived.wait()
            attempt.cancel()
            await asyncio.wait([attempt])
            assert to._servers[0].in_flight == 0
            server.script = lambda asked: GOOD
            assert (await reply_of(to)).status == 200
            await to.aclose()

    run(check())


# --- nobody there ---------------------------------------------------------------------------------


def test_a_port_that_nobody_answers() -> None:
    async def check() -> None:
        base = await refused_base()
        to = client(base)
        with pytest.raises(
            ModelError, match=r"openai:m: http://127.0.0.1:\d+/v1: nobody answers there; is the"
        ):
            await to.post(b"{}")
        to._servers[0].proven = True
        assert await failure_of(to) == AttemptFailure("unreachable", "nobody answers there", TRANSIENT)
        await to.aclose()

    run(check())


def test_a_host_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def check() -> None:
        to = client("http://no-such-host.invalid/v1")
        with pytest.raises(
            ModelError, match=r"no-such-host.invalid/v1: the host is not known; check its name"
        ):
            await to.post(b"{}")
        await to.aclose()

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    run(check())


def test_tls_where_there_is_none() -> None:
    async def check() -> None:
        async with responding(GOOD) as server:
            to = client(server.base.replace("http:", "https:"))
            with pytest.raises(
                ModelError, match="no TLS connection comes about; does the server want http://"
            ):
                await to.post(b"{}")
            to._servers[0].proven = True
            assert (await failure_of(to)).retry == TRANSIENT
            await to.aclose()

    run(check())


def test_a_port_that_speaks_something_else() -> None:
    async def check() -> None:
        async with responding(b"SSH-2.0-OpenSSH_9.9\r\n\r\n") as server:
            to = client(server.base)
            with pytest.raises(ModelError, match="it does not answer in HTTP; check host and port"):
                await to.post(b"{}")
            to._servers[0].proven = True
            assert (await failure_of(to)).reason == "disconnected"
            await to.aclose()

    run(check())


# --- broken off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (None, "the connection ended before the response began"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "the connection ended before the response began"),
        (response(200, b'{"cut', {"Content-Length": "99"}), "the connection ended before the response did"),
        (
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cut\r\n',
            "the connection ended before the response did",
        ),
    ],
)
def test_a_connection_that_ends_early(sent: bytes | None, what: str, proven: bool) -> None:
    async def check() -> None:
        async with responding(sent) as server:
            to = client(server.base)
            to._servers[0].proven = proven
            assert await failure_of(to) == AttemptFailure("disconnected", what, TRANSIENT, unknown_bill=True)
            assert to._servers[0].in_flight == 0
            await to.aclose()

    run(check())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_response_that_is_too_large(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        large = response(200, b"x" * 1001)
        if chunked:
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            large = head + (b"64\r\n" + b"x" * 100 + b"\r\n") * 11 + b"0\r\n\r\n"
        async with responding(large) as server:
            to = client(server.base)
            failure = await failure_of(to)
            assert (failure.reason, failure.retry) == ("too_large", DOUBTFUL)
            monkeypatch.setattr(http, "MAX_BODY_BYTES", 1100)
            assert len((await reply_of(to)).body) == (1100 if chunked else 1001)
            await to.aclose()

    monkeypatch.setattr(http, "MAX_BODY_BYTES", 1000)
    run(check())


# --- several servers ------------------------------------------------------------------------------


def test_each_attempt_goes_to_the_server_with_the_least_in_flight() -> None:
    async def check() -> None:
        async with responding(GOOD) as one, responding(GOOD) as two:
            to = client(one.base, two.base)
            for _ in range(4):
                await reply_of(to)
            assert (len(one.asked), len(two.asked)) == (2, 2)
            to._servers[0].in_flight = 5  # as if they hung
            for _ in range(3):
                await reply_of(to)
            assert (len(one.asked), len(two.asked)) == (2, 5)
            await asyncio.gather(*(to.post(b"{}") for _ in range(20)))
            assert len(one.asked) < len(two.asked) < len(one.asked) + 12
            await to.aclose()

    run(check())


def test_a_refused_server_rests_for_a_while() -> None:
    async def check() -> None:
        now = 100.0
        dead = await refused_base()
        async with responding(GOOD) as alive:
            to = client(dead, alive.base, monotonic=lambda: now)
            assert (await failure_of(to)).retry == TRANSIENT
            for _ in range(3):
                assert (await reply_of(to)).server.base == alive.base
            now += 5.1
            assert (await failure_of(to)).reason == "unreachable"
            assert (await reply_of(to)).server.base == alive.base
            await to.aclose()

    run(check())


def test_servers_that_all_refuse_are_an_error_only_while_none_has_answered() -> None:
    async def check() -> None:
        bases = [await refused_base(), await refused_base()]
        to = client(*bases)
        assert (await failure_of(to)).retry == TRANSIENT
        with pytest.raises(ModelError) as caught:
            await to.post(b"{}")
        assert all(base in str(caught.value) for base in bases)
        to._servers[1].proven = True
        assert (await failure_of(to)).retry == TRANSIENT
        await to.aclose()

    run(check())


def test_a_server_is_taken_again_as_soon_as_it_has_less_to_do() -> None:
    async def check() -> None:
        async with responding(GOOD) as one, responding(GOOD) as two, responding(GOOD) as three:
            to = client(one.base, two.base, three.base)
            hanging = to._servers[0]
            hanging.in_flight += 1  # a request that takes long
            for _ in range(6):
                await reply_of(to)
            assert [len(server.asked) for server in (one, two, three)] == [0, 3, 3]
            hanging.in_flight -= 1
            await reply_of(to)
            assert len(one.asked) == 1, "of those with as little to do, the one that had least"
            await to.aclose()

    run(check())


@pytest.mark.parametrize(("idle_s", "connections"), [(3.9, 1), (4.1, 2)])
def test_an_idle_connection_is_let_go_before_the_server_closes_it(
    idle_s: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn closes one that was idle for 5 s; to take it up just then would lose a request."""

    async def check() -> None:
        async with responding(GOOD) as server:
            to = client(server.base)
            await reply_of(to)
            later = time.monotonic() + idle_s
            with monkeypatch.context() as patch:
                patch.setattr("aiohttp.connector.monotonic", lambda: later)
                await reply_of(to)
            assert server.connections == connections
            await to.aclose()

    run(check())


# --- statuses -------------------------------------------------------------------------------------

UNUSABLE = [
    (401, "it does not accept the key; set THE_KEY"),
    (403, "it does not accept the key; set THE_KEY"),
    (404, "no such model or no such path; check the model's name"),
    (302, "write the address of the API itself, which usually ends in /v1"),
    (308, "write the address of the API itself, which usually ends in /v1"),
    (204, "write the address of the API itself, which usually ends in /v1"),
]


@pytest.mark.parametrize(("status", "words"), UNUSABLE)
def test_what_makes_a_model_unusable_is_an_error_until_it_has_answered(status: int, words: str) -> None:
    async def check() -> None:
        async with responding(response(status, b"", {"Location": "http://127.0.0.1:9/elsewhere"})) as server:
            to = client(server.base)
            reply = await reply_of(to)
            with pytest.raises(ModelError) as caught:
                to.refusal(reply)
            assert f"openai:m: {server.base} answers HTTP {status}" in str(caught.value)
            assert words in str(caught.value)
            assert "\n" not in str(caught.value)
            reply.server.proven = True
            assert to.refusal(reply) == AttemptFailure(f"http_{status}", f"HTTP {status}", DOUBTFUL)
            await to.aclose()

    run(check())


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize(
    ("status", "reason", "retry"),
    [
        (429, "rate_limited", rate_limited(1.5)),
        (503, "rate_limited", rate_limited(1.5)),
        (408, "http_408", Retry("transient", 1.5)),
        (500, "http_500", Retry("transient", 1.5)),
        (502, "http_502", Retry("transient", 1.5)),
        (504, "http_504", Retry("transient", 1.5)),
        (529, "http_529", Retry("transient", 1.5)),
        (400, "http_400", DOUBTFUL),
        (409, "http_409", DOUBTFUL),
        (422, "http_422", DOUBTFUL),
    ],
)
def test_verdicts_by_status(status: int, reason: str, retry: Retry, proven: bool) -> None:
    async def check() -> None:
        async with responding(response(status, b"whatever it says", {"Retry-After": "1.5"})) as server:
            to = client(server.base)
            reply = await reply_of(to)
            reply.server.proven = proven
            assert to.refusal(reply, "a_word") == AttemptFailure(reason, f"HTTP {status} (a_word)", retry)
            await to.aclose()

    run(check())


def test_an_empty_account_is_an_error_at_any_time() -> None:
    async def check() -> None:
        async with responding(response(402)) as server:
            to = client(server.base)
            reply = await reply_of(to)
            reply.server.proven = True
            with pytest.raises(ModelError, match="HTTP 402: the account has nothing left"):
                to.refusal(reply)
            await to.aclose()

    run(check())


def test_a_web_page_in_place_of_an_answer() -> None:
    async def check() -> None:
        async with responding(response(200, b"\n <!doctype html><title>Hello</title>")) as server:
            to = client(server.base)
            reply = await reply_of(to)
            with pytest.raises(
                ModelError, match="answers with a web page: write the address of the API itself"
            ):
                to.unreadable(reply, "not JSON")
            reply.server.proven = True
            not_json = AttemptFailure("malformed", "not JSON", DOUBTFUL, unknown_bill=True)
            assert to.unreadable(reply, "not JSON") == not_json
            await to.aclose()

    run(check())


# --- how long to wait -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": "-3"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "40", "Retry-After": "1"}, 0.04),
        ({"retry-after-ms": "soon", "Retry-After": "2"}, 2.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        (
            {"Retry-After": formatdate(1_000_090, usegmt=True), "Date": formatdate(1_000_000, usegmt=True)},
            90.0,
        ),
        (
            {"Retry-After": formatdate(1_000_000, usegmt=True), "Date": formatdate(1_000_090, usegmt=True)},
            0.0,
        ),
        ({"Retry-After": formatdate(1_000_000, usegmt=True)}, 0.0),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


LIMITS = ("requests", "tokens")


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("120ms", 0.12),
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("2d", 172_800.0),
        ("0s", 0.0),
        ("59.7", 59.7),
        ("30", 30.0),
        ("", None),
        ("soon", None),
        ("-3s", None),
        ("6m 0s", None),
        ("1x", None),
        ("nan", None),
        ("inf", None),
        ("\u0663s", None),
        ("1767225600", None),  # a moment in time
        ("2026-01-01T00:00:00Z", None),
    ],
)
def test_when_a_limit_is_whole_again(told: str, seconds: float | None) -> None:
    assert reset_after_s({"x-ratelimit-reset-tokens": told}) == (
        None if seconds is None else pytest.approx(seconds)
    )


@pytest.mark.parametrize(
    ("left", "of", "seconds"),
    [
        ((None, None), (None, None), 300.0),  # nobody says which: never too short
        (("0", "5"), (None, None), 300.0),
        (("5", "0"), (None, None), 1.0),
        (("0", "0"), (None, None), 300.0),
        (("-2", "5"), (None, None), 300.0),
        (("5", "5"), (None, None), 300.0),
        (("5", "200"), ("5", "20000"), 1.0),  # 200 tokens are left, and a request wants more
        (("1", "19000"), ("500", "20000"), 300.0),
        (("5", "200"), ("5", None), 300.0),
        ((None, "200"), (None, "20000"), 300.0),
        (("some", "none"), ("5", "x"), 300.0),
        (("1", "1"), ("0", "nan"), 300.0),
    ],
)
def test_the_limit_that_is_used_up_says_when(
    left: tuple[str | None, str | None], of: tuple[str | None, str | None], seconds: float
) -> None:
    headers = {"x-ratelimit-reset-requests": "5m", "x-ratelimit-reset-tokens": "1s"}
    for kind, remaining, limit in zip(LIMITS, left, of, strict=True):
        headers |= {} if remaining is None else {f"x-ratelimit-remaining-{kind}": remaining}
        headers |= {} if limit is None else {f"x-ratelimit-limit-{kind}": limit}
    assert reset_after_s(headers) == seconds


@pytest.mark.parametrize(
    ("status", "headers", "retry"),
    [
        (429, {"x-ratelimit-reset-requests": "90s"}, rate_limited(90.0)),
        (429, {"x-ratelimit-reset-requests": "90s", "Retry-After": "2"}, rate_limited(2.0)),
        (429, {"x-ratelimit-reset-requests": "90s", "retry-after-ms": "20"}, rate_limited(0.02)),
        # it tells how the limits stand, which is not why it is overloaded
        (503, {"x-ratelimit-reset-requests": "90s"}, rate_limited()),
        (500, {"x-ratelimit-reset-requests": "90s"}, TRANSIENT),
    ],
)
def test_a_reset_counts_where_a_limit_refuses_and_no_delay_is_told(
    status: int, headers: dict[str, str], retry: Retry
) -> None:
    async def check() -> None:
        async with responding(response(status, b"", headers)) as server:
            to = client(server.base)
            assert to.refusal(await reply_of(to)).retry == retry
            await to.aclose()

    run(check())


HEADERS = ["Retry-After", "retry-after-ms", "Date"] + [
    f"x-ratelimit-{what}-{kind}" for what in ("reset", "remaining", "limit") for kind in LIMITS
]


@given(
    st.dictionaries(
        st.sampled_from(HEADERS),
        st.text()
        | st.dates().map(str)
        | st.from_regex(r"\A[0-9.]{1,30}(ms|[dhms])?\Z")
        | st.floats().map(str),
    ),
)
def test_no_header_breaks_it(headers: dict[str, str]) -> None:
    for seconds in (retry_after_s(headers), reset_after_s(headers)):
        assert seconds is None or 0 <= seconds < math.inf


# --- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [None, b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", response(401), response(302), response(404)]
)
def test_the_key_is_in_no_error(sent: bytes | None) -> None:
    async def check() -> None:
        async with responding(sent) as server:
            to = client(server.base)
            shown = [repr(to)]
            try:
                reply = await to.post(b"{}")
                shown += [repr(reply), str(reply)]
                if isinstance(reply, Reply):
                    to.refusal(reply)
            except ModelError as exc:
                at: BaseException | None = exc
                while at is not None:
                    shown += [repr(at), str(at), repr(at.args)]
                    at = at.__cause__ or at.__context__
            assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
            assert not [text for text in shown if KEY in text]
            await to.aclose()

    run(check())
