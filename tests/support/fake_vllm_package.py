"""A fake of the package `vllm`: an engine that counts a token for each word and keeps whole prefixes."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from itertools import takewhile
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class VLLMClientError(Exception):
    """As in vllm.exceptions."""


@dataclass
class EngineArgs:
    """The settings that it knows."""

    model: str = ""
    max_model_len: int = 64
    dtype: str = "auto"
    enable_prefix_caching: bool = False
    disable_log_stats: bool = False
    max_num_batched_tokens: int | None = None
    prefix_cache_retention_interval: int | None = 7
    use_tqdm_on_load: bool = True


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    seed: int | None
    logprobs: int | None
    structured_outputs: Any


@dataclass
class StructuredOutputsParams:
    choice: list[str] | None = None
    json: dict[str, Any] | None = None


@dataclass
class World:
    """What the test sees of the engines, and how they behave."""

    loaded: list[dict[str, Any]] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    """The last messages of each call."""
    threads: set[int] = field(default_factory=set)
    closed: int = 0
    cold_requests: int = 1
    """How many requests with a prefix find nothing cached."""
    failure: Exception | None = None
    load_failure: Exception | None = None
    gpu: bool = False


def install(monkeypatch: pytest.MonkeyPatch) -> World:
    """Put the fake in the place of the package."""
    world = World()

    class Llm(_Llm):
        def __init__(self, **settings: Any) -> None:
            super().__init__(world, settings)

    modules = {
        "vllm": {"LLM": Llm, "EngineArgs": EngineArgs},
        "vllm.sampling_params": {
            "SamplingParams": SamplingParams,
            "StructuredOutputsParams": StructuredOutputsParams,
        },
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cuda_alike=lambda: world.gpu)},
        "vllm.exceptions": {"VLLMClientError": VLLMClientError},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return world


class _Llm:
    def __init__(self, world: World, settings: dict[str, Any]) -> None:
        if world.load_failure is not None:
            raise world.load_failure
        world.loaded.append(settings)
        self._world = world
        arguments = EngineArgs(**settings)
        self._max_model_len = arguments.max_model_len
        self._asked: dict[str, list[list[str]]] = {}
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(
                model_config=SimpleNamespace(max_model_len=arguments.max_model_len),
                cache_config=SimpleNamespace(
                    block_size=1, enable_prefix_caching=arguments.enable_prefix_caching
                ),
            ),
            engine_core=SimpleNamespace(shutdown=self._shutdown),
        )

    def _shutdown(self) -> None:
        self._world.closed += 1

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(apply_chat_template=_rendered, encode=lambda text, **_: text.split())

    def chat(self, conversations: list[Any], params: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        world = self._world
        world.threads.add(threading.get_ident())
        if world.failure is not None:
            raise world.failure
        lasts = [conversation[-1]["content"] for conversation in conversations]
        for conversation in conversations:
            for message in conversation:
                message["content"].encode()
            if "refuse me" in conversation[-1]["content"]:
                raise VLLMClientError("this prompt is not taken")
            if len(_rendered(conversation).split()) >= self._max_model_len:
                raise VLLMClientError("too long")
        world.batches.append(lasts)
        return [self._answer(one, asked) for one, asked in zip(conversations, params, strict=True)]

    def _answer(self, conversation: list[dict[str, str]], params: SamplingParams) -> Any:
        tokens = _rendered(conversation).split()
        before = self._asked.setdefault(_rendered(conversation[:-1]), [])
        known = before if len(before) >= self._world.cold_requests else []
        cached = max((len(_common(tokens, one)) for one in known), default=0)
        before.append(tokens)
        held = params.structured_outputs
        text = held.choice[0] if held is not None and held.choice else "free text"
        logprobs = None
        if params.logprobs:
            likely, unlikely = (
                SimpleNamespace(decoded_token=one, logprob=p) for one, p in _chances(held.choice)
            )
            logprobs = [{1: likely, 2: unlikely}]
        said = SimpleNamespace(text=text, token_ids=[1], finish_reason="stop", logprobs=logprobs)
        return SimpleNamespace(outputs=[said], prompt_token_ids=tokens, num_cached_tokens=cached)


def _chances(choices: list[str]) -> list[tuple[str, float]]:
    return [(choices[0], -0.1), (choices[-1], float("-inf") if len(choices) == 1 else -2.4)]


def _rendered(conversation: list[dict[str, str]], **_: Any) -> str:
    return " ".join(f"<{one['role']}> {one['content']}" for one in conversation)


def _common(one: list[str], other: list[str]) -> list[str]:
    pairs = zip(one, other, strict=False)
    return [left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
