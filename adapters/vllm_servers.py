"""What vLLM servers say of themselves beside the answers: models, cache, load, tokens.

All of it is asked for at the side, with short timeouts: a server that is silent, slow, or no vLLM at all says
nothing, and that is never an error. Endpoints: `/v1/models`, and at the server's root `/health`, `/tokenize`
and `/metrics` (https://docs.vllm.ai/en/stable/usage/metrics/).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import aiohttp
import orjson

from adapters.addresses import RemoteAddress
from adapters.openai_wire import encode
from adapters.prometheus import Metrics
from engine.ports import ServerLoad
from engine.types import Message

_ASK_S = 10.0
_LOAD_S = 1.0
_KEEPALIVE_S = 4.0  # uvicorn closes a connection that was idle for 5 s
_MOST_BYTES = 16 * 2**20
_OK = 200
_JSON = {"Content-Type": "application/json"}
_BOOLEANS = {"True": True, "False": False}
# of hits: finer than a block where the server can find parts of one again
_UNITS = ("cache_hit_alignment_tokens", "block_size")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one server is; None where it does not say."""

    max_model_len: int | None = None
    """Tokens of a prompt with its answer, at most."""
    block_size: int | None = None
    """Tokens of a block of the prefix cache: only whole blocks are found again."""
    caching: bool | None = None
    """Whether it has a prefix cache."""
    engines: int = 1
    """Copies of the model behind the address (data parallel), each with a cache of its own."""
    window: bool | None = None
    """Whether the model has layers that keep a window or a state instead of the whole prompt, as far as the
    server tells: it does not where they are mixed with others, as in Gemma 3."""
    retains: bool | None = None
    """Whether all blocks of such layers stay in the cache (`--prefix-cache-retention-interval None`); by
    vLLM's default only the last ones do, and a beginning may be found from the third request on, or never."""


@dataclass(frozen=True, slots=True)
class ServerCounters:
    """What one server has counted since it was started, whoever has asked; 0 where it does not say."""

    cache_queries: float
    """Prompt tokens that were looked up in the prefix cache."""
    cache_hits: float
    """Those of them that were found."""
    preemptions: float
    first_token_s: float
    """Seconds until the first token, over all answers."""
    first_tokens: float

    def since(self, before: ServerCounters) -> ServerCounters:
        """What was counted since then; all there is where the server was started anew meanwhile."""
        pairs = list(zip(astuple(self), astuple(before), strict=True))
        if any(now < then for now, then in pairs):
            return self
        return ServerCounters(*(now - then for now, then in pairs))


class VllmServers:
    """The servers of one model, asked beside its requests.

    No method raises for a server that is silent or odd: it answers None, or facts that are None. `base` is
    one of the address's URLs. The root of a server is its URL without `/v1` at the end: the path of a proxy
    stays. The object belongs to one event loop at a time; nothing is opened before the first question.
    """

    def __init__(self, address: RemoteAddress, *, api_key: str | None) -> None:
        """`api_key` goes to every server of the address."""
        self.bases = address.urls
        self.fullest = 0.0
        """The highest use of a KV cache, from 0 to 1, that `load` has seen."""
        self._model = address.name
        # identity: a server would compress its metrics several times a second
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "pld"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lengths: dict[str, int | None] = {}
        self._caches: dict[str, ServerFacts] = {}

    async def ready(self, base: str) -> bool:
        """Whether the server is healthy and serves the model by its name."""
        status, _ = await self._ask(f"{_root(base)}/health")
        return status == _OK and self._model in (await self.served_models(base) or ())

    async def served_models(self, base: str) -> list[str] | None:
        """The names by which the server serves models, as it lists them now."""
        cards = await self._cards(base)
        return None if cards is None else [one["id"] for one in cards if isinstance(one.get("id"), str)]

    async def facts(self, base: str, *, anew: bool = False) -> ServerFacts:
        """What the server is. What it has told once, or declined to tell, is not asked again, but `anew`: it
        may be another process than before."""
        if (anew or base not in self._lengths) and (cards := await self._cards(base)) is not None:
            self._lengths[base] = _context(cards, self._model)
        if (anew or base not in self._caches) and (metrics := await self._metrics(base)) is not None:
            self._caches[base] = _cache_facts(metrics)
        return replace(self._caches.get(base, ServerFacts()), max_model_len=self._lengths.get(base))

    async def load(self) -> ServerLoad | None:
        """How busy the servers are; one that does not say within a second counts as absent, all: None."""
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._metrics(base, _LOAD_S)) for base in self.bases]
        told = [metrics for one in asked if (metrics := one.result()) is not None]
        found = [load for metrics in told if (load := _load(metrics)) is not None]
        if not found:
            return None
        usage = max(one.kv_cache_usage for one in found)
        self.fullest = max(self.fullest, usage)
        return ServerLoad(
            servers=len(found),
            running=sum(one.running for one in found),
            waiting=sum(one.waiting for one in found),
            kv_cache_usage=usage,
            preemptions=sum(one.preemptions for one in found),
        )

    async def counters(self, base: str) -> ServerCounters | None:
        """What the server has counted so far."""
        metrics = await self._metrics(base)
        queries = None if metrics is None else metrics.value("vllm:prefix_cache_queries_total")
        if metrics is None or queries is None:
            return None
        return ServerCounters(
            queries,
            metrics.value("vllm:prefix_cache_hits_total") or 0.0,
            metrics.value("vllm:num_preemptions_total") or 0.0,
            metrics.value("vllm:time_to_first_token_seconds_sum") or 0.0,
            metrics.value("vllm:time_to_first_token_seconds_count") or 0.0,
        )

    async def token_ids(self, base: str, messages: Sequence[Message]) -> list[int] | None:
        """The prompt that the chat endpoint makes of the messages, up to where the answer begins."""
        question = {
            "model": self._model,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "add_generation_prompt": True,
        }
        status, body = await self._ask(f"{_root(base)}/tokenize", encode(question))
        tokens = _object(body).get("tokens") if status == _OK else None
        if not isinstance(tokens, list) or not all(type(one) is int for one in tokens):
            return None
        return tokens

    async def aclose(self) -> None:
        """Close the connections. Calling it twice is harmless; the next question opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- asking -----------------------------------------------------------------------------------

    async def _cards(self, base: str) -> list[dict[str, Any]] | None:
        """The models as the server lists them; None where nobody answers."""
        status, body = await self._ask(f"{base}/models")
        if not status:
            return None
        cards = _object(body).get("data") if status == _OK else None
        return [one for one in cards if isinstance(one, dict)] if isinstance(cards, list) else []

    async def _metrics(self, base: str, within_s: float = _ASK_S) -> Metrics | None:
        """Its metrics, none where it has no such page; None where nobody answers."""
        status, body = await self._ask(f"{_root(base)}/metrics", within_s=within_s)
        return Metrics(body if status == _OK else b"") if status else None

    async def _ask(
        self, url: str, question: bytes | None = None, *, within_s: float = _ASK_S
    ) -> tuple[int, bytes]:
        """Status and body; status 0 where nobody answers, or only a gateway says that nobody does."""
        session = self._session
        if session is None or self._loop is not asyncio.get_running_loop():
            session = await self._open()
        method, headers = ("GET", None) if question is None else ("POST", _JSON)
        try:
            async with session.request(
                method,
                url,
                data=question,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=within_s),
            ) as answer:
                body = await _read_capped(answer.content)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, b""
        return (0, b"") if answer.status >= 500 else (answer.status, body)

    async def _open(self) -> aiohttp.ClientSession:
        before = self._session
        if before is not None and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(f"the servers of {self._model} are in use on another event loop")
        self._loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
        session = self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        if before is not None:  # only now: others come while it closes
            await before.close()
        return session


def _root(base: str) -> str:
    return base.removesuffix("/v1")


def _load(metrics: Metrics) -> ServerLoad | None:
    """The load of one server; None where it is no vLLM, or tells none."""
    running = metrics.value("vllm:num_requests_running")
    if running is None:
        return None
    # older versions name it after the GPU
    usage = metrics.value("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", over=max)
    return ServerLoad(
        servers=1,
        running=int(running),
        waiting=int(metrics.value("vllm:num_requests_waiting") or 0),
        kv_cache_usage=usage or 0.0,
        preemptions=int(metrics.value("vllm:num_preemptions_total") or 0),
    )


def _cache_facts(metrics: Metrics) -> ServerFacts:
    """What the server says of its cache: one line for each engine, all alike."""
    lines = metrics.readings("vllm:cache_config_info")
    if not lines:
        return ServerFacts()
    told = lines[0].labels
    units = [unit for name in _UNITS if (unit := _count(told.get(name))) is not None]
    state = told.get("mamba_cache_mode", "none") != "none"
    window = state or _count(told.get("sliding_window")) is not None
    retention = told.get("prefix_cache_retention_interval")
    return ServerFacts(
        block_size=units[0] if units else None,
        caching=_BOOLEANS.get(told.get("enable_prefix_caching", "")),
        engines=len(lines),
        window=window if {"sliding_window", "mamba_cache_mode"} & told.keys() else None,
        retains=None if retention is None else retention == "None",
    )


def _context(cards: Sequence[dict[str, Any]], model: str) -> int | None:
    """The context length of a model; that of the model beneath it where it is an adapter (LoRA)."""
    by_name = {one.get("id"): one for one in cards if isinstance(one.get("id"), str)}
    card = by_name.get(model, {})
    length = _count(card.get("max_model_len"))
    return length or _count(by_name.get(str(card.get("parent")), {}).get("max_model_len"))


async def _read_capped(content: aiohttp.StreamReader) -> bytes:
    """A body; the beginning of one that is larger than any of these can be."""
    parts: list[bytes] = []
    size = 0
    async for part in content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            break
    return b"".join(parts)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int | None:
    """A whole number above 0, also where it is written as text."""
    number = int(value) if type(value) is int or (isinstance(value, str) and value.isdecimal()) else 0
    return number if number > 0 else None
