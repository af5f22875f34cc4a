"""A server that says exactly what a test tells it to, byte for byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Asked], bytes | Awaitable[bytes | None] | None]
"""A request -> all bytes to send for it, perhaps later; None hangs up at once. After bytes without a length
the server hangs up too."""


@dataclass
class Responding:
    """Where the server is, and what it was asked so far. `script` may be changed at any time."""

    script: Script
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def http(
    status: int = 200, body: bytes | Mapping[str, Any] = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """A response; a mapping as body is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in head.items() if value)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data


def always(response: bytes | None) -> Script:
    """The same to every request."""
    return lambda asked: response


@asynccontextmanager
async def responding(script: Script | bytes | None) -> AsyncIterator[Responding]:
    """A server in this event loop for as long as the block lasts."""
    server = Responding(script if callable(script) else always(script))
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        writers.add(writer)
        try:
            while (asked := await _read(reader)) is not None:
                server.asked.append(asked)
                said = server.script(asked)
                data = await said if isinstance(said, Awaitable) else said
                if data is None:
                    break
                writer.write(data)
                await writer.drain()
                if b"\r\n\r\n" not in data or not _whole(data):
                    break
        except ConnectionError:
            pass
        finally:
            writers.discard(writer)
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**26)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in list(writers):
            writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    try:
        head = await reader.readexactly(1)
        if head == b"\x16":  # a TLS handshake
            return Asked("", {}, head)
        head += await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(first.split(" ")[1], headers, body)


def _whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) == int(value)
    return False
