"""What a vLLM server says beside its answers, as pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.adapters.responding import Asked, Script, http

BLOCK = 16
CONTEXT = 8192


def metrics(
    *,
    running: float = 0,
    waiting: float = 0,
    usage: float = 0,
    preemptions: float = 0,
    queries: float = 0,
    hits: float = 0,
    first_token_s: float = 0,
    first_tokens: float = 0,
    engines: int = 1,
    cache: str = f'block_size="{BLOCK}",enable_prefix_caching="True"',
) -> bytes:
    """A page of metrics; the figures are those of each engine."""
    lines = []
    for engine in range(engines):
        figures = {
            "num_requests_running": running,
            "num_requests_waiting": waiting,
            "kv_cache_usage_perc": usage,
            "num_preemptions_total": preemptions,
            "prefix_cache_queries_total": queries,
            "prefix_cache_hits_total": hits,
            "time_to_first_token_seconds_sum": first_token_s,
            "time_to_first_token_seconds_count": first_tokens,
        }
        lines += [f'vllm:{name}{{engine="{engine}"}} {value}' for name, value in figures.items()]
        lines.append(f'vllm:cache_config_info{{{cache},engine="{engine}"}} 1.0')
    return "\n".join([*lines, ""]).encode()


def words(messages: list[dict[str, str]]) -> list[int]:
    """Tokens as a test tokenizer has them: a number for each word."""
    return [sum(word.encode()) * 1000 + len(word) for one in messages for word in one["content"].split()]


def vllm(
    page: Callable[[], bytes] = metrics,
    *,
    name: str = "tiny",
    tokens: Callable[[list[dict[str, str]]], list[int]] = words,
) -> Script:
    """A server with these metrics; `tokens` are those that it makes of messages."""

    def script(asked: Asked) -> bytes:
        pages: dict[str, Callable[[], bytes | dict[str, Any]]] = {
            "/health": lambda: b"",
            "/metrics": page,
            "/v1/models": lambda: {"data": [{"id": name, "max_model_len": CONTEXT}]},
            "/tokenize": lambda: {"tokens": tokens(json.loads(asked.body)["messages"])},
        }
        if asked.path not in pages:
            return http(404)
        return http(body=pages[asked.path]())

    return script
