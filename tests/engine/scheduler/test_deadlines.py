"""One timer for the deadlines of all attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler import Scheduler
from engine.scheduler.deadlines import AttemptTimeoutError, Deadlines
from tests.support.fakes import ScriptedModel, requests
from tests.support.virtual_time import run_virtual


async def taking(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def left_in(deadlines: Deadlines) -> int:
    return len(deadlines._due) + len(deadlines._expired)


async def timers() -> int:
    return sum(not timer.cancelled() for timer in asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


def test_attempts_within_the_deadline_are_left_alone() -> None:
    async def check() -> None:
        deadlines = Deadlines(10.0)
        assert await deadlines.run(taking(9.9)) == 9.9
        with pytest.raises(ZeroDivisionError):
            await deadlines.run(failing(ZeroDivisionError()))
        assert left_in(deadlines) == 0
        deadlines.close()

    run_virtual(check())


async def failing(error: BaseException, after_s: float = 1.0) -> None:
    await asyncio.sleep(after_s)
    raise error


def test_a_timeout_of_the_model_is_none_of_ours() -> None:
    async def check() -> None:
        deadlines = Deadlines(10.0)
        with pytest.raises(TimeoutError) as caught:
            await deadlines.run(failing(TimeoutError("the socket")))
        assert not isinstance(caught.value, AttemptTimeoutError)
        deadlines.close()

    run_virtual(check())


@given(
    starts=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=30),
    seconds=st.floats(0.5, 20.0),
    data=st.data(),
)
def test_each_attempt_expires_at_its_own_time(
    starts: list[float], seconds: float, data: st.DataObject
) -> None:
    lengths = [data.draw(st.floats(0.0, 40.0)) for _ in starts]

    async def check() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadlines = Deadlines(seconds)
        expired: list[float] = []

        async def attempt(start: float, length: float) -> None:
            await asyncio.sleep(start)
            sent_at = loop.time()
            try:
                await deadlines.run(taking(length))
            except AttemptTimeoutError:
                assert loop.time() == pytest.approx(sent_at + seconds, abs=1e-6)
                assert length >= seconds - 1e-6
                expired.append(sent_at)
            else:
                assert length <= seconds + 1e-6
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

        async with asyncio.TaskGroup() as group:
            for start, length in zip(starts, lengths, strict=True):
                group.create_task(attempt(start, length))
        assert expired == sorted(expired), "the one begun first is due first"
        assert left_in(deadlines) == 0
        assert loop.time() - began <= max(starts) + seconds + 1
        deadlines.close()
        assert await timers() == 0

    run_virtual(check())


async def cancelled_at(moment: float, attempt: Coroutine[Any, Any, Any]) -> BaseException | None:
    task = asyncio.ensure_future(attempt)
    asyncio.get_running_loop().call_later(moment, task.cancel)
    await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def test_a_cancellation_from_outside_stays_one() -> None:
    async def check() -> None:
        deadlines = Deadlines(10.0)
        outcome = await cancelled_at(5.0, deadlines.run(taking(100.0)))
        assert isinstance(outcome, asyncio.CancelledError)
        assert left_in(deadlines) == 0
        deadlines.close()

    run_virtual(check())


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_cancellation_just_as_the_time_is_up_stays_one(ours_first: bool) -> None:
    """Taken for our own timeout it would be lost, and the task that was told to end would go on."""

    async def check() -> None:
        deadlines = Deadlines(10.0)
        task = asyncio.ensure_future(deadlines.run(taking(100.0)))
        loop = asyncio.get_running_loop()
        if ours_first:
            await asyncio.sleep(0)  # the deadline's timer is armed first
            loop.call_at(loop.time() + 10.0, task.cancel)
        else:
            loop.call_at(loop.time() + 10.0, task.cancel)
            await asyncio.sleep(0)
        await asyncio.wait([task])
        assert task.cancelled()
        assert left_in(deadlines) == 0
        deadlines.close()

    run_virtual(check())


def test_a_worker_goes_on_after_timeouts_as_if_nothing_had_been() -> None:
    """A cancellation that is not taken back would make the next scope in this task believe it was meant."""

    async def check() -> None:
        deadlines = Deadlines(10.0)
        task = asyncio.current_task()
        assert task is not None
        for _ in range(3):
            with pytest.raises(AttemptTimeoutError):
                await deadlines.run(taking(100.0))
            assert task.cancelling() == 0
            assert await deadlines.run(taking(1.0)) == 1.0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await asyncio.sleep(5.0)
        deadlines.close()

    run_virtual(check())


@pytest.mark.parametrize("instead", ["answer", "error"])
def test_a_model_that_swallows_the_cancellation_leaves_no_trace(instead: str) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(100.0)
        except asyncio.CancelledError:
            if instead == "error":
                raise ConnectionResetError from None
        return "late, but here"

    async def check() -> None:
        deadlines = Deadlines(10.0)
        task = asyncio.current_task()
        assert task is not None
        if instead == "answer":
            assert await deadlines.run(stubborn()) == "late, but here"
        else:
            with pytest.raises(ConnectionResetError):
                await deadlines.run(stubborn())
        assert task.cancelling() == 0
        assert left_in(deadlines) == 0
        deadlines.close()

    run_virtual(check())


def test_thousands_of_attempts_leave_nothing_behind() -> None:
    async def check() -> None:
        deadlines = Deadlines(10.0)

        async def worker(k: int) -> None:
            for i in range(100):
                try:
                    await deadlines.run(taking(100.0 if (i + k) % 50 == 0 else 0.01))
                except AttemptTimeoutError:
                    continue

        most_timers = 0
        async with asyncio.TaskGroup() as group:
            for k in range(50):
                group.create_task(worker(k))
            await asyncio.sleep(0.005)
            most_timers = await timers()
        assert most_timers <= 50 + 1, "one for each sleep, and one for all deadlines"
        assert left_in(deadlines) == 0
        deadlines.close()
        deadlines.close()  # twice is harmless
        assert await timers() == 0

    run_virtual(check())


def test_a_stream_that_has_ended_keeps_no_timer() -> None:
    async def check() -> None:
        lane = Scheduler(None).chat(ScriptedModel(latency_s=lambda text, attempt: 0.1))
        for _ in range(2):  # and a second one gets a new timer
            async with lane.stream(requests(100), stage="s") as results:
                async for _ in results:
                    pass
            assert await timers() == 0

    run_virtual(check())
