"""JSON over HTTP POST, as cheap as aiohttp makes it: bytes in, bytes out, failures told apart.

Connections, TLS, names and parsing are aiohttp's. Its `ClientSession` is left out: it prepares headers,
cookies, redirects, proxies and a writer for every request, which takes more time than the exchange itself,
and here the requests of a model differ in their body alone. What stands in its place is what it uses itself:
the connector, and the protocol of a connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.streams import StreamReader
from yarl import URL

from adapters.waiting import reset_after_s, retry_after_s
from engine.errors import ModelError
from engine.types import DOUBTFUL, TRANSIENT, AttemptFailure, Retry, Usage, rate_limited

MAX_BODY_BYTES = 64 * 2**20
_TOO_LARGE = f"the response is larger than {MAX_BODY_BYTES >> 20} MiB"
_REST_S = 5.0
# uvicorn closes a connection that was idle for 5 s: kept longer, it would be taken up just as it closes
_KEEPALIVE_S = 4.0
_CONNECT_S = 30.0
_API_ITSELF = "write the address of the API itself, which usually ends in /v1"
_TIMEOUTS = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)


@dataclass(slots=True)
class Server:
    """One base URL. `proven` once it has answered usably; `resting_until` by the client's clock.

    `target` tells the connector where to connect; `head` is a request up to the length of its body.
    """

    base: str
    url: URL
    target: ClientRequest | None = field(default=None, repr=False)
    head: bytes = field(default=b"", repr=False)
    in_flight: int = 0
    sent: int = 0
    proven: bool = False
    refused: bool = False
    resting_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP response, with the server that gave it."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    server: Server

    @property
    def is_page(self) -> bool:
        """Whether the body is a web page, as against data."""
        return self.body.lstrip()[:1] == b"<"


class HttpClient:
    """Posts to one path of a model's servers; an attempt goes to the server with the least in flight, or to
    the one that it is given.

    A server that cannot be connected to rests for 5 s while others are there. What makes the model unusable
    raises `ModelError` until a server has answered (`Reply.server.proven`, which the adapter sets); later the
    same is an `AttemptFailure`. There is no deadline on an answer: who waits sets one by cancelling. The
    client belongs to one event loop at a time; nothing is opened before the first attempt. No text of a
    server or a row reaches an error.
    """

    def __init__(
        self,
        what: str,
        bases: Sequence[str],
        path: str,
        *,
        headers: Mapping[str, str],
        key_hint: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`what` names the model in errors, `key_hint` says what to do about a key that is refused."""
        self.what = what
        self._key_hint = key_hint
        self._servers = [Server(base, URL(f"{base}/{path}", encoded=True)) for base in bases]
        # aiohttp's own defaults for these cost time with every request
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "pld",
            **headers,
        }
        if any(char in value for value in self._headers.values() for char in "\r\n\0"):
            raise ModelError(f"{what}: the key holds a line break; {key_hint}")
        self._monotonic = monotonic
        self._connector: aiohttp.TCPConnector | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def servers(self) -> Sequence[Server]:
        """All servers, in the order of their addresses."""
        return self._servers

    async def post(self, body: bytes, server: Server | None = None) -> Reply | AttemptFailure:
        """Send `body`; the response whatever its status, or why there is none.

        Raises `ModelError` as the class says.
        """
        connector = self._connector
        if connector is None or self._loop is not asyncio.get_running_loop():
            connector = await self._open()
        if server is None:
            server = self._servers[0] if len(self._servers) == 1 else self._least_loaded()
        server.in_flight += 1
        server.sent += 1
        reply: Reply | None = None
        failed: Exception | None = None
        try:
            connection = await _connect(connector, server)
            reply = await _exchange(connection, server, body)
        except (aiohttp.ClientError, HttpProcessingError, OSError) as exc:
            failed = exc
        finally:
            server.in_flight -= 1
        if failed is not None:
            # outside the handler: an error raised in it would carry this one, and so the request's headers
            return self._no_reply(server, failed)
        return reply or AttemptFailure("too_large", _TOO_LARGE, DOUBTFUL, unknown_bill=True)

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless; the next attempt opens new ones."""
        connector, self._connector = self._connector, None
        if connector is not None:
            await connector.close()

    def refusal(self, reply: Reply, code: str = "", *, no_model: bool = False) -> AttemptFailure:
        """What a status other than 200 means. `code` is the server's own structured word for it, if any;
        `no_model` that it says there is no such model, whatever the status.

        Raises `ModelError` for what no retry can mend.
        """
        status, proven = reply.status, reply.server.proven
        detail = f"HTTP {status}{code and f' ({code})'}"
        at = f"{self.what}: {reply.server.base} answers {detail}"
        if status == 402:
            raise ModelError(
                f"{at}: the account has nothing left to spend; pay in and run the same command again"
            )
        no_model = no_model or status == 404
        if status in (401, 403) and not proven and not no_model:
            raise ModelError(f"{at}: it does not accept the key; {self._key_hint}")
        if no_model and not proven:
            raise ModelError(
                f"{at}: there is no such model or no such path; check the model's name (GET "
                f"{reply.server.base}/models lists them) and the address, which usually ends in /v1"
            )
        if (status < 400 or status in (405, 501)) and not proven:
            raise ModelError(f"{at}, no data: {_API_ITSELF}")
        after_s = retry_after_s(reply.headers)
        if status == 429 and after_s is None:
            after_s = reset_after_s(reply.headers)
        if status in (429, 503):
            return AttemptFailure("rate_limited", detail, rate_limited(after_s))
        if status == 408 or status >= 500:
            return AttemptFailure(f"http_{status}", detail, Retry("transient", after_s))
        return AttemptFailure(f"http_{status}", detail, DOUBTFUL)

    def unreadable(self, reply: Reply, detail: str, billed: Usage | None = None) -> AttemptFailure:
        """A 200 that holds no answer. Raises `ModelError` for a web page from a server not yet proven."""
        if reply.is_page and not reply.server.proven:
            raise ModelError(f"{self.what}: {reply.server.base} answers with a web page: {_API_ITSELF}")
        return AttemptFailure("malformed", detail, DOUBTFUL, billed, unknown_bill=billed is None)

    # --- servers ----------------------------------------------------------------------------------

    def _least_loaded(self) -> Server:
        now = self._monotonic()
        awake = [server for server in self._servers if server.resting_until <= now]
        if not awake:
            return min(self._servers, key=lambda server: server.resting_until)
        return min(awake, key=lambda server: (server.in_flight, server.sent))

    async def _open(self) -> aiohttp.TCPConnector:
        before = self._connector
        if before is not None and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(f"{self.what} is in use on another event loop")
        self._loop = asyncio.get_running_loop()
        connector = self._connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=300
        )
        for server in self._servers:
            server.target = ClientRequest("POST", server.url, loop=self._loop, headers=self._headers)
            lines = [f"POST {server.url.raw_path_qs} HTTP/1.1"]
            lines += [f"{k}: {v}" for k, v in server.target.headers.items() if k.lower() != "content-length"]
            server.head = "\r\n".join([*lines, "Content-Length: "]).encode()
        if before is not None:  # only now: others come while it closes
            await before.close()
        return connector

    def _no_reply(self, server: Server, exc: Exception) -> AttemptFailure:
        what, hint, unreachable = transport_error(exc)
        if unreachable:
            server.refused = True
            server.resting_until = self._monotonic() + _REST_S
            lost = all(one.refused for one in self._servers) and not any(one.proven for one in self._servers)
        else:
            lost = bool(hint) and not server.proven
        if lost:
            where = ", ".join(one.base for one in self._servers) if unreachable else server.base
            raise ModelError(f"{self.what}: {where}: {what}; {hint}")
        if unreachable:
            return AttemptFailure("unreachable", what, TRANSIENT)
        return AttemptFailure("disconnected", what, TRANSIENT, unknown_bill=True)


def transport_error(exc: Exception) -> tuple[str, str, bool]:
    """What happened, what to do about it ("": it happens to any server), and whether nobody was reached."""
    for kind, what, hint, unreachable in _TRANSPORT_ERRORS:
        if isinstance(exc, kind):
            return what, hint, unreachable
    return "the connection ended before the response began", "", False


# the first that fits counts, so the special kinds stand before the general ones
_TRANSPORT_ERRORS = (
    (
        aiohttp.ClientConnectorCertificateError,
        "its TLS certificate is not trusted",
        "put the certificate in order, or write the host that it is for",
        False,
    ),
    (aiohttp.ClientSSLError, "no TLS connection comes about", "does the server want http:// instead?", False),
    (aiohttp.ClientConnectorDNSError, "the host is not known", "check its name, and the network", True),
    (
        aiohttp.ConnectionTimeoutError,
        f"no connection within {_CONNECT_S:g} s",
        "check the address, and the network",
        True,
    ),
    (
        aiohttp.ClientConnectorError,
        "nobody answers there",
        "is the server running, and the port right?",
        True,
    ),
    (HttpProcessingError, "it does not answer in HTTP", "check host and port in the address", False),
    (aiohttp.ClientPayloadError, "the connection ended before the response did", "", False),
)


async def _connect(connector: aiohttp.TCPConnector, server: Server) -> Connection:
    if server.target is None:
        raise RuntimeError("the client is not open")
    try:
        return await connector.connect(server.target, traces=[], timeout=_TIMEOUTS)
    except TimeoutError as exc:
        raise aiohttp.ConnectionTimeoutError from exc


async def _exchange(connection: Connection, server: Server, body: bytes) -> Reply | None:
    """One request and its response; None where that is too large."""
    protocol = connection.protocol
    if protocol is None or protocol.transport is None:
        raise aiohttp.ServerDisconnectedError
    try:
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        protocol.transport.write(b"%b%d\r\n\r\n%b" % (server.head, len(body), body))
        message, payload = await protocol.read()
        while message.code < 200:  # an interim response
            message, payload = await protocol.read()
        content = await _read_capped(message.headers, payload)
    except BaseException:
        connection.close()
        raise
    if content is None:
        connection.close()
        return None
    connection.release()
    return Reply(message.code, message.headers, content, server)


async def _read_capped(headers: Mapping[str, str], payload: StreamReader) -> bytes | None:
    """The whole body, None where it is too large."""
    length = headers.get("Content-Length", "")
    if length.isascii() and length.isdigit():
        return await payload.read() if int(length) <= MAX_BODY_BYTES else None
    parts: list[bytes] = []
    size = 0
    async for part in payload.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
    return b"".join(parts)
