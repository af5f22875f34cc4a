"""One model under `vllm serve`, asked in several ways through pld's scheduler and adapter."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from adapters.addresses import RemoteAddress, parse_vllm
from adapters.serving.command import ServeOptions, added_variables, check_options, vllm_command
from adapters.serving.installation import Installation
from adapters.serving.server import guarded, open_port, until_ready
from adapters.vllm_servers import VllmServers
from bench.student.concurrency import Job, measure_concurrency
from bench.student.cpu import session_cpu_s
from bench.student.made import made_prompt, made_rows, words_of_a_row
from bench.student.timed import TimedChat
from engine.errors import ModelError
from engine.prompt import CompiledPrompt
from engine.scheduler import Scheduler
from engine.student import StudentPrompt
from engine.types import Answer, Message, Request

_NAME = "student"
_HOST = "127.0.0.1"
_THOUGHT_TOKENS = 256
_THINK = (
    "\nThink step by step: say what speaks for each label, and end with the label on a line of its own.\n"
)


PARTS = ("ways", "concurrency")


@dataclass(frozen=True)
class Setting:
    """What is served and asked. `prompt` None: one that is made up; `price_usd` is that of an hour of the
    machine; `flags` are vLLM's own.
    """

    model: str
    vllm: Installation
    prompt: CompiledPrompt | None
    rows: int
    repeats: int
    price_usd: float
    parts: tuple[str, ...] = PARTS
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """One way to ask: its requests, by a row's id and text."""

    name: str
    request: Callable[[str, str], Request]
    labels: tuple[str, ...] = ()
    """What every answer has to be; none: any text."""
    share: float = 1.0
    """Of the rows: a chain of thought takes as long as many labels."""


def measure_student(setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """The rows of each part of `setting`.

    `ways` has one for each way to ask, with medians and spread over the repeats; latencies are those of all
    repeats. `hit_rate` is the share of prompt tokens that came from the prefix cache, `server_cpu_ms` the
    server's CPU time for a row, `usd_per_million` what a million rows cost at the price of an hour. See
    `measure_concurrency` for the other. Raises `ModelError` where the server does not start, or a row gets
    no label.
    """
    return asyncio.run(_measure(setting))


async def _measure(setting: Setting) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    async with _served(setting, ()) as server:
        if "ways" in setting.parts:
            found["ways"] = await _ways(setting, server, _cached_ways(server.prompt))
        if "concurrency" in setting.parts:
            job = Job(server.address, server.prompt, made_rows(-1, server.words))
            found["concurrency"] = await measure_concurrency(job, repeats=setting.repeats)
    if "ways" in setting.parts:
        async with _served(setting, ("--no-enable-prefix-caching",)) as server:
            found["ways"] += await _ways(setting, server, _uncached_ways(server.prompt))
        base = found["ways"][-1]["requests_per_s"]
        for row in found["ways"]:
            row["to_uncached"] = round(row["requests_per_s"] / base, 2)
    return found


def _cached_ways(prompt: CompiledPrompt) -> list[Way]:
    zero_shot, compiled = StudentPrompt(prompt.without_instructions()), StudentPrompt(prompt)
    return [
        Way("zero-shot prompt", zero_shot.request, zero_shot.labels),
        Way("compiled prompt", compiled.request, compiled.labels),
        Way("zero-shot, chain of thought", _thinking(zero_shot), share=0.1),
    ]


def _uncached_ways(prompt: CompiledPrompt) -> list[Way]:
    compiled = StudentPrompt(prompt)
    return [Way("compiled prompt, caching off", compiled.request, compiled.labels, share=0.5)]


def _thinking(prompt: StudentPrompt) -> Callable[[str, str], Request]:
    def request(row_id: str, text: str) -> Request:
        asked = prompt.request(row_id, text)
        system, row = asked.messages
        return Request(row_id, (Message("system", system.content + _THINK), row), _THOUGHT_TOKENS)

    return request


async def _ways(setting: Setting, server: _Server, ways: Sequence[Way]) -> list[dict[str, Any]]:
    runs: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    latencies: dict[str, list[float]] = {way.name: [] for way in ways}
    for repeat in range(setting.repeats):
        for number, way in enumerate(ways):
            wanted = max(1, round(setting.rows * way.share))
            texts = islice(made_rows(1000 * number + repeat, server.words), wanted)
            runs[way.name].append(await _run(server, way, texts, latencies[way.name]))
    return [_row(setting, way.name, runs[way.name], sorted(latencies[way.name])) for way in ways]


async def _run(server: _Server, way: Way, texts: Iterator[str], latencies: list[float]) -> dict[str, float]:
    model = TimedChat(server.address)
    cpu = session_cpu_s(server.session)
    began = time.perf_counter()
    try:
        lane = Scheduler(None).chat(model)
        tokens = answered = 0
        requests = (way.request(str(number), text) for number, text in enumerate(texts))
        async with lane.stream(requests, stage="bench") as results:
            async for result in results:
                if not isinstance(result.outcome, Answer):
                    raise ModelError(f"{way.name}: {result.outcome.reason}: {result.outcome.detail}")
                if way.labels and result.outcome.text not in way.labels:
                    raise ModelError(f"{way.name}: an answer is no label: {result.outcome.text!r}")
                answered += 1
                tokens += result.outcome.usage.input_tokens + result.outcome.usage.output_tokens
        seconds = time.perf_counter() - began
        receipt = await model.receipt()
    finally:
        await model.aclose()
    latencies += model.latencies_s
    hit_rate = None if receipt is None else receipt.hit_rate
    return {
        "requests": answered,
        "requests_per_s": answered / seconds,
        "tokens_per_s": tokens / seconds,
        "hit_rate": 0.0 if hit_rate is None else hit_rate,
        "server_cpu_ms": 1e3 * (session_cpu_s(server.session) - cpu) / answered,
    }


def _row(
    setting: Setting, name: str, runs: Sequence[dict[str, float]], latencies: Sequence[float]
) -> dict[str, Any]:
    def median(figure: str, digits: int) -> float:
        return round(statistics.median(run[figure] for run in runs), digits)

    rates = [run["requests_per_s"] for run in runs]
    rate = statistics.median(rates)
    return {
        "name": name,
        "requests": int(runs[0]["requests"]),
        "runs": len(runs),
        "requests_per_s": round(rate, 2),
        "requests_per_s_min": round(min(rates), 2),
        "requests_per_s_max": round(max(rates), 2),
        "tokens_per_s": median("tokens_per_s", 0),
        "p50_s": round(latencies[len(latencies) // 2], 3),
        "p99_s": round(latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))], 3),
        "hit_rate": median("hit_rate", 4),
        "server_cpu_ms": median("server_cpu_ms", 2),
        "usd_per_million": round(setting.price_usd / 3600 / rate * 1e6, 2),
    }


@dataclass(frozen=True)
class _Server:
    """One that is ready: where it is, the session of its processes, the prompt that it is asked with, and how
    many words make a row of about 200 of its tokens."""

    address: RemoteAddress
    session: int
    prompt: CompiledPrompt
    words: int


@asynccontextmanager
async def _served(setting: Setting, flags: Sequence[str]) -> AsyncIterator[_Server]:
    options = ServeOptions(
        model=setting.model,
        host=_HOST,
        port=open_port(_HOST, 0),
        served_model_name=_NAME,
        extra=(*setting.flags, *flags),
    )
    check_options(options)
    base = f"{options.base_url}/v1"
    address = parse_vllm(f"vllm:{_NAME}@{base}")
    asked = VllmServers(address, api_key=None)

    async def count(text: str) -> int:
        tokens = await asked.token_ids(base, [Message("user", text)])
        if tokens is None:
            raise ModelError(f"{base}: does not count tokens (POST /tokenize)")
        return len(tokens)

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "vllm.log"
        command = vllm_command(options, setting.vllm)
        async with guarded(command, {**os.environ, **added_variables()}, log) as server:
            try:
                if not await until_ready(server, asked, lambda _seconds, _line: None):
                    raise await server.failure()
                prompt = setting.prompt or await made_prompt(count)
                words = await words_of_a_row(count)
            finally:
                await asked.aclose()
            yield _Server(address, server.session, prompt, words)
