"""Small clients of the fake server: one on raw bytes, one on aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import orjson

from bench.fake_server import Behaviour, Server, body_key, serving

T = TypeVar("T")


@dataclass(frozen=True)
class Got:
    """One response; `document` is its JSON."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """Posts and gets over one aiohttp session."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def post(self, path: str, document: object) -> Got:
        data = document if isinstance(document, bytes) else orjson.dumps(document)
        async with self.session.post(self.server.url + path, data=data) as answer:
            return Got(answer.status, answer.headers, await answer.read())

    async def get(self, path: str) -> Got:
        async with self.session.get(self.server.url + path) as answer:
            return Got(answer.status, answer.headers, await answer.read())

    async def chat(self, text: str = "hi", **fields: Any) -> Got:
        return await self.post("/v1/chat/completions", chat(text, **fields))


def chat(text: str = "hi", **fields: Any) -> dict[str, Any]:
    """The JSON of a chat request."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def against(use: Callable[[Client], Awaitable[T]], **behaviour: Any) -> T:
    """Run `use` with a client of a server that behaves so."""

    async def main() -> T:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        async with (
            serving(Behaviour(**behaviour)) as server,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            return await use(Client(server, session))

    return asyncio.run(main())


def raw(data: bytes, **behaviour: Any) -> bytes:
    """All that the server sends in answer to these bytes until it closes."""

    async def main() -> bytes:
        async with serving(Behaviour(**behaviour)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            async with asyncio.timeout(10):
                got = await reader.read()
            writer.close()
            await writer.wait_closed()
            return got

    return asyncio.run(main())


def http(
    document: object, path: str = "/v1/chat/completions", *, close: bool = False, method: str = "POST"
) -> bytes:
    """A request in bytes."""
    body = orjson.dumps(document)
    more = "Connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def key_of(document: object) -> str:
    """What the server knows a request with this JSON by."""
    return body_key(orjson.dumps(document)).hex()
