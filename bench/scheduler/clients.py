"""The clients that are compared, each in a process of its own: `python -m bench.scheduler.clients TASK`.

A client prints one JSON object: how many answers it got, CPU seconds of the whole process and wall seconds
from the first request to the last answer, peak memory, and what else it has to tell. SDKs that import half of
themselves with the first request make one before that.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import nullcontext
from typing import Any

import orjson

from bench.scheduler.workload import (
    MAX_OUTPUT_TOKENS,
    MODEL,
    SYSTEM,
    Task,
    messages,
    request,
    row_text,
    rows,
)
from engine.tuning import long_job, new_event_loop

Client = Callable[[Task], Coroutine[Any, Any, dict[str, Any]]]


class _Meter:
    """CPU and wall seconds since the last start."""

    def start(self) -> None:
        self._cpu, self._wall = _cpu_s(), time.perf_counter()

    def read(self) -> dict[str, float]:
        return {"cpu_s": _cpu_s() - self._cpu, "wall_s": time.perf_counter() - self._wall}


_meter = _Meter()


def until(task: Task) -> Iterator[int]:
    """The rows of a task, up to its seconds."""
    began = time.monotonic()
    for number in rows(task):
        if task.seconds is not None and time.monotonic() - began >= task.seconds:
            return
        yield number


async def bare(task: Task) -> dict[str, Any]:
    """aiohttp and orjson in a worker pool: no limits, no retries, nothing kept."""
    import aiohttp  # noqa: PLC0415 - each client imports what it uses, so that heaps compare

    url = f"{task.url}/v1/chat/completions"
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    todo = until(task)
    answers = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            nonlocal answers
            for number in todo:
                body = {"model": MODEL, "messages": messages(number), "max_tokens": MAX_OUTPUT_TOKENS}
                async with session.post(url, data=orjson.dumps(body), headers=headers) as response:
                    answer = orjson.loads(await response.read())
                answers += bool(answer["choices"][0]["message"]["content"])

        async with asyncio.TaskGroup() as group:
            for _ in range(task.concurrency):
                group.create_task(work())
    return {"answers": answers}


async def ours(task: Task) -> dict[str, Any]:
    """This project's scheduler, response cache, limits and adapter, as `pld compile` uses them."""
    from bench.scheduler.own import openai, run_own  # noqa: PLC0415

    return await run_own(task, openai(task))


async def ours_gemini(task: Task) -> dict[str, Any]:
    """The same with the adapter for Gemini."""
    from bench.scheduler.own import gemini, run_own  # noqa: PLC0415

    model = gemini(task)
    await model.complete([request(-1)])
    _meter.start()
    return await run_own(task, model)


async def genai_sdk(task: Task) -> dict[str, Any]:
    """google-genai as its documentation uses it, under a semaphore."""
    from google import genai  # noqa: PLC0415 - each client imports what it uses
    from google.genai import types  # noqa: PLC0415 - likewise

    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=task.url))
    config = types.GenerateContentConfig(
        system_instruction=SYSTEM.content, max_output_tokens=MAX_OUTPUT_TOKENS, temperature=0.0
    )

    async def ask(number: int) -> bool:
        found = await client.aio.models.generate_content(
            model=MODEL, contents=row_text(number), config=config
        )
        return bool(found.text)

    async with client.aio:
        return await _under_a_semaphore(ask, task)


async def _under_a_semaphore(ask: Callable[[int], Awaitable[bool]], task: Task) -> dict[str, Any]:
    """A task for each request, so many at a time; the first one is asked before the meter starts."""
    await ask(-1)  # what is imported and connected only then is no request's cost
    answers = 0
    slots = asyncio.Semaphore(task.concurrency)

    async def one(number: int) -> None:
        nonlocal answers
        async with slots:
            found = await ask(number)
        answers += found  # only now: others have counted while this one waited

    _meter.start()
    async with asyncio.TaskGroup() as group:
        for number in until(task):
            group.create_task(one(number))
    return {"answers": answers}


async def openai_sdk(task: Task) -> dict[str, Any]:
    """The OpenAI SDK under a semaphore: a task for each of a worker pool's requests."""
    import openai  # noqa: PLC0415 - only where it is installed

    client = openai.AsyncOpenAI(api_key="none", base_url=f"{task.url}/v1", max_retries=0)

    async def ask(number: int) -> bool:
        found = await client.chat.completions.create(
            model=MODEL, messages=messages(number), max_tokens=MAX_OUTPUT_TOKENS
        )
        return bool(found.choices[0].message.content)

    async with client:
        return await _under_a_semaphore(ask, task)


async def litellm_sdk(task: Task) -> dict[str, Any]:
    """litellm's `acompletion` in a worker pool."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm  # noqa: PLC0415 - only where it is installed

    answers = 0
    todo = until(task)

    async def work(numbers: Iterator[int]) -> None:
        nonlocal answers
        for number in numbers:
            found = await litellm.acompletion(
                model=f"openai/{MODEL}",
                messages=messages(number),
                max_tokens=MAX_OUTPUT_TOKENS,
                api_key="none",
                api_base=f"{task.url}/v1",
                num_retries=0,
            )
            answers += bool(found.choices[0].message.content)

    await work(iter([-1]))
    answers = 0
    _meter.start()
    async with asyncio.TaskGroup() as group:
        for _ in range(task.concurrency):
            group.create_task(work(todo))
    return {"answers": answers}


CLIENTS: dict[str, tuple[Client, str]] = {
    "bare": (bare, "aiohttp"),
    "ours": (ours, "aiohttp"),
    "ours_gemini": (ours_gemini, "google.genai"),
    "genai": (genai_sdk, "google.genai"),
    "openai": (openai_sdk, "openai"),
    "litellm": (litellm_sdk, "litellm"),
}
"""Each client, and the package without which it is left out."""


def installed(client: str) -> bool:
    """Whether the client's package is there."""
    return importlib.util.find_spec(CLIENTS[client][1]) is not None


def _cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def _main(argument: str) -> None:
    task = Task(**orjson.loads(argument))
    client, package = CLIENTS[task.client]
    importlib.import_module(package)
    if task.client in ("ours", "ours_gemini"):
        importlib.import_module("bench.scheduler.own")
    with long_job() if task.tuned else nullcontext():
        factory = new_event_loop if task.tuned else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            _meter.start()
            found = runner.run(client(task))
            took = _meter.read()
    unit = 1 if sys.platform == "darwin" else 1024
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    print(orjson.dumps({**took, "peak_mb": peak_mb, **found}).decode())  # noqa: T201


if __name__ == "__main__":
    _main(sys.argv[1])
