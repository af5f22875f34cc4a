"""Several vLLM servers of one model, and one that is killed at work and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest

from adapters.addresses import parse_openai, parse_vllm
from adapters.openai_compatible import OpenAICompatibleChat
from adapters.vllm import VllmChat
from engine.bulk import classify
from engine.errors import ModelError
from engine.prompt import CompiledPrompt
from engine.scheduler import Limits, Scheduler
from engine.types import Answer, ChatOutcome, Message, Request
from tests.support.bulk import read_out, write_ndjson
from tests.vllm.serving import MODEL, Environment, Server, serving

pytestmark = pytest.mark.vllm

LABELS = ("spam", "ok")
SUCCESSES = "vllm:request_success_total"
ROWS = 5_000
KILLED_AFTER = ROWS // 2
HELD_AFTER = ROWS * 4 // 5


class Held(VllmChat):
    """A student that makes a call with each row, and keeps the last ones back until `go` is set."""

    def __init__(self, address: str, on_row: Callable[[int], None]) -> None:
        super().__init__(parse_vllm(address))
        self.go = asyncio.Event()
        self._on_row = on_row
        self._asked = 0

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        self._asked += 1
        self._on_row(self._asked)
        if self._asked > HELD_AFTER:
            await self.go.wait()
        return await super().complete(requests)


def test_a_job_outlives_a_server_that_is_killed_and_uses_it_again_when_it_is_back(
    environment: Environment, tiny_model: Path, server: Server, tmp_path: Path
) -> None:
    """Every row exactly once, and nobody lends a hand; who has only the dead server is told."""
    texts = [f"row {number}: the bill is wrong" for number in range(ROWS)]
    rows = write_ndjson(tmp_path / "rows.ndjson", texts)
    prompt = CompiledPrompt("Sort the mail.", dict.fromkeys(LABELS, ""))
    killed = asyncio.Event()

    with ExitStack() as servers:
        second = servers.enter_context(serving(environment, tiny_model, environment.scratch / "second.log"))

        def again() -> Server:
            log = environment.scratch / "again.log"
            return servers.enter_context(serving(environment, tiny_model, log, port=second.port))

        async def check() -> None:
            reached = {"both": 0, "alone": 0}

            def kill(who: str, count: int) -> None:
                reached[who] = count
                if reached["both"] >= KILLED_AFTER and reached["alone"] >= 50 and not killed.is_set():
                    os.killpg(second.process.pid, signal.SIGKILL)
                    second.process.wait()
                    killed.set()

            student = Held(f"vllm:{MODEL}@{server.base},{second.base}", lambda n: kill("both", n))
            few = Limits(concurrency=64)  # most of the rows that are held are still to be sent
            try:
                async with asyncio.TaskGroup() as group:
                    job = group.create_task(classify(prompt, student, rows, tmp_path / "out", limits=few))
                    alone = group.create_task(stopped(second.address, 100_000, lambda n: kill("alone", n)))
                    await killed.wait()
                    back = await asyncio.to_thread(again)
                    student.go.set()
            finally:
                await student.aclose()
            assert "fails too often" in alone.result()
            assert "\n" not in alone.result()
            result = job.result()
            assert (result.rows, result.classified, result.failed) == (ROWS, ROWS, 0)
            assert back.metric(SUCCESSES) >= 100, "the rows that were held went there too"
            assert result.receipt is not None
            assert result.receipt.servers == 2

        asyncio.run(check())

    labelled, failures = read_out(tmp_path / "out")
    assert failures.is_empty()
    assert labelled["row"].sort().equals(pl.Series("row", range(ROWS), dtype=labelled["row"].dtype))
    assert set(labelled["label"]) <= set(LABELS)


async def stopped(address: str, count: int, progress: Callable[[int], None]) -> str:
    """The error that a run over so many rows ends with; `progress` hears of each answer."""

    def requests() -> Iterator[Request]:
        for number in range(count):
            messages = (Message("system", "Decide."), Message("user", f"row {number}"))
            yield Request(f"r{number}", messages, 32, choices=LABELS)

    async def run() -> None:
        model = OpenAICompatibleChat(parse_openai(address))
        try:
            labelled = 0
            async with Scheduler(None).chat(model).stream(requests(), stage="test") as stream:
                async for result in stream:
                    labelled += isinstance(result.outcome, Answer) and result.outcome.text in LABELS
                    progress(labelled)
        finally:
            await model.aclose()

    with pytest.raises(ModelError) as raised:
        await run()
    return str(raised.value)
