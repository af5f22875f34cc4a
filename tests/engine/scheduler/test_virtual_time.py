"""The loop that the other tests stand on."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.scheduler import Scheduler
from engine.scheduler.vitals import Heartbeat
from tests.support.fakes import ScriptedModel, requests
from tests.support.virtual_time import DeadlockError, run_virtual, virtual_loop


def test_what_waits_for_nothing_is_found_out() -> None:
    with pytest.raises(DeadlockError, match="nothing is left"):
        run_virtual(asyncio.Event().wait())  # type: ignore[arg-type]


def test_a_beating_heart_hides_no_deadlock() -> None:
    async def check() -> None:
        heart = Heartbeat(lambda: False)
        heart.start()
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="beating"):
        run_virtual(check())


def test_a_stream_that_hangs_is_found_out() -> None:
    class Hanging(ScriptedModel):
        async def complete(self, requests: object) -> object:  # type: ignore[override]
            return await asyncio.Event().wait()

    async def check() -> None:
        async with Scheduler(None).chat(Hanging(max_batch=2)).stream(requests(5), stage="s") as results:
            async for _ in results:
                pass

    with pytest.raises(DeadlockError):
        run_virtual(check())


def test_long_waits_are_no_deadlocks() -> None:
    async def check() -> float:
        heart = Heartbeat(lambda: False)
        heart.start()
        for _ in range(5):
            await asyncio.sleep(80_000)
        heart.stop()
        began = time.monotonic()
        await asyncio.sleep(1e6)
        return time.monotonic() - began

    assert run_virtual(check()) == pytest.approx(1e6)


def test_computing_makes_timers_late_and_takes_cpu() -> None:
    async def check() -> None:
        loop = virtual_loop()
        began = loop.time()
        loop.call_later(0.1, loop.burn, 2.0)
        await asyncio.sleep(0.5)
        assert loop.time() - began == pytest.approx(2.1)
        assert time.process_time() == 2.0

    run_virtual(check())
