"""Several vLLM servers of one model, and one that is killed at work."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.addresses import parse_openai
from adapters.openai_compatible import OpenAICompatibleChat
from engine.errors import ModelError
from engine.scheduler import Scheduler
from engine.types import Answer, Message, Request
from tests.vllm.serving import MODEL, Environment, Server, serving

pytestmark = pytest.mark.vllm

LABELS = ("spam", "ok")
SUCCESSES = "vllm:request_success_total"


def rows(count: int) -> Iterator[Request]:
    for number in range(count):
        messages = (Message("system", "Decide."), Message("user", f"row {number}"))
        yield Request(f"r{number}", messages, 32, choices=LABELS)


async def answered(address: str, count: int, progress: Callable[[int], None]) -> int:
    """Ask so many rows; how many were answered with a label. `progress` hears of each answer."""
    model = OpenAICompatibleChat(parse_openai(address))
    try:
        lane = Scheduler(None).chat(model)
        labelled = 0
        async with lane.stream(rows(count), stage="test") as stream:
            async for result in stream:
                labelled += isinstance(result.outcome, Answer) and result.outcome.text in LABELS
                progress(labelled)
    finally:
        await model.aclose()
    return labelled


def test_two_servers_and_one_is_killed(environment: Environment, tiny_model: Path, server: Server) -> None:
    """Both are asked; when one dies at work, who has the other loses no row, who has not is told."""
    with serving(environment, tiny_model, environment.scratch / "second.log") as second:
        address = f"openai:{MODEL}@{server.base},{second.base}"
        before = [one.metric(SUCCESSES) for one in (server, second)]
        assert asyncio.run(answered(address, 64, lambda _: None)) == 64
        shares = [one.metric(SUCCESSES) - was for one, was in zip((server, second), before, strict=True)]
        assert sum(shares) == 64
        assert min(shares) >= 16
        reached = {"both": 0, "alone": 0}

        def kill(who: str, labelled: int) -> None:
            reached[who] = labelled
            if min(reached.values()) >= 50 and second.process.poll() is None:
                os.killpg(second.process.pid, signal.SIGKILL)
                second.process.wait()

        async def check() -> None:
            async with asyncio.TaskGroup() as group:
                both = group.create_task(answered(address, 600, lambda n: kill("both", n)))
                alone = group.create_task(stopped(second.address, 100_000, lambda n: kill("alone", n)))
            assert both.result() == 600
            assert "fails too often" in alone.result()
            assert "\n" not in alone.result()

        asyncio.run(check())


async def stopped(address: str, count: int, progress: Callable[[int], None]) -> str:
    """The error that a run over so many rows ends with."""
    with pytest.raises(ModelError) as raised:
        await answered(address, count, progress)
    return str(raised.value)
