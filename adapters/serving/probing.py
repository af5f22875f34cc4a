"""What a vLLM server says of itself: whether it is ready, and what it can hold and cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from engine.types import Message

_ASK_S = 10.0
_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class ServerFacts:
    """What a server told; None where it does not say."""

    max_model_len: int | None
    """Tokens of a prompt with its answer, at most."""
    block_size: int | None
    """Tokens of a block of the prefix cache: only whole blocks are found again."""
    caching: bool | None
    prompt_tokens: int | None
    """Tokens of the messages that were asked about, chat template included."""


class Probe:
    """Asks one server. `key` is what it wants from its clients, if anything."""

    def __init__(self, url: str, name: str, key: str | None) -> None:
        self._url = url
        self._name = name
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __aenter__(self) -> Probe:
        self._session = aiohttp.ClientSession(
            self._url, headers=self._headers, timeout=aiohttp.ClientTimeout(total=_ASK_S)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ready(self) -> bool:
        """Whether it is healthy and serves the model by its name."""
        return await self._body("/health") is not None and await self._card() is not None

    async def facts(self, messages: Sequence[Message]) -> ServerFacts:
        """What it says of itself, and how long the messages are to it; no messages, no length."""
        card = await self._card() or {}
        found = _CACHE.search((await self._body("/metrics") or b"").decode("utf-8", "replace"))
        cache = dict(_LABEL.findall(found[1])) if found else {}
        return ServerFacts(
            max_model_len=_count(card.get("max_model_len")),
            block_size=_count(cache.get("block_size")),
            caching={"True": True, "False": False}.get(cache.get("enable_prefix_caching", "")),
            prompt_tokens=await self._tokens(messages) if messages else None,
        )

    async def _card(self) -> dict[str, Any] | None:
        cards = _object(await self._body("/v1/models")).get("data")
        if not isinstance(cards, list):
            return None
        return next((one for one in cards if isinstance(one, dict) and one.get("id") == self._name), None)

    async def _tokens(self, messages: Sequence[Message]) -> int | None:
        question = {
            "model": self._name,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "add_generation_prompt": True,
        }
        return _count(_object(await self._body("/tokenize", question)).get("count"))

    async def _body(self, path: str, question: dict[str, Any] | None = None) -> bytes | None:
        """The body of a good answer, else None."""
        method, data = ("GET", None) if question is None else ("POST", orjson.dumps(question))
        try:
            async with self._session.request(
                method, path, data=data, headers={"Content-Type": "application/json"}
            ) as answer:
                return await answer.read() if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None


def _object(body: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else None
