"""An async source that ends just as an answer comes in: no request may be left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from engine.ports import FREE, Price
from engine.scheduler import Scheduler
from engine.types import Answer, ChatOutcome, Request
from tests.support.fakes import request


@dataclass
class TickingModel:
    """Answers after so many turns of the event loop."""

    ticks: int
    name: str = "ticking"
    max_batch: int = 1
    max_input_tokens: int = 1000
    price: Price | None = FREE

    async def complete(self, requests: Sequence[Request]) -> Sequence[ChatOutcome]:
        for _ in range(self.ticks):
            await asyncio.sleep(0)
        return [Answer("x")] * len(requests)

    async def aclose(self) -> None:
        pass


async def results_of(model_ticks: int, source_ticks: int) -> int:
    async def source() -> AsyncIterator[Request]:
        yield request("first")
        for _ in range(source_ticks):
            await asyncio.sleep(0)
        yield request("second")

    async def tick() -> None:
        while True:  # noqa: ASYNC110 - turns are what is counted here
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())  # keeps the loop turning, so that both sides count the same turns
    try:
        lane = Scheduler(None).chat(TickingModel(model_ticks))
        async with lane.stream(source(), stage="test") as results:
            return len([result async for result in results])
    finally:
        ticking.cancel()


@pytest.mark.parametrize("model_ticks", range(15))
def test_every_timing_of_the_end_answers_every_request(model_ticks: int) -> None:
    for source_ticks in range(15):
        assert asyncio.run(results_of(model_ticks, source_ticks)) == 2
