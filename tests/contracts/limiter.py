"""What every `Limiter` does. See `engine.ports.Limiter` for the contract in words.

Run in virtual time. A limiter under test has to allow `per_minute` requests of `tokens` tokens a minute.
"""

from __future__ import annotations

import asyncio
from collections import deque

from engine.ports import Limiter, Reservation
from tests.support.virtual_time import run_virtual


class LimiterContract:
    """Subclass as `TestSomething`; give `limiter` and the rate that it holds."""

    per_minute: float
    """Requests a minute that the limiter allows, for requests of `tokens` tokens."""

    tokens = 100
    efficiency = 0.9
    """The share of the allowed rate that has to be reached over some minutes."""

    def limiter(self) -> Limiter:
        """A fresh limiter. Called with the event loop running, in virtual time."""
        raise NotImplementedError

    # --- the checks ------------------------------------------------------------------------------

    def test_no_minute_holds_more_than_the_limit(self) -> None:
        async def check() -> None:
            times = await self._drive(settle_after_s=0.7, used_tokens=self.tokens)
            assert busiest_minute(times) <= self.per_minute
            assert len(times) >= 2.5 * self.per_minute * self.efficiency

        run_virtual(check())

    def test_slow_answers_cost_no_rate(self) -> None:
        async def check() -> None:
            times = await self._drive(settle_after_s=90.0, used_tokens=self.tokens)
            assert busiest_minute(times) <= self.per_minute
            assert len(times) >= 2.5 * self.per_minute * self.efficiency

        run_virtual(check())

    def test_an_unknown_bill_counts_in_full(self) -> None:
        async def check() -> None:
            times = await self._drive(settle_after_s=0.7, used_tokens=None)
            assert busiest_minute(times) <= self.per_minute

        run_virtual(check())

    def test_a_wait_can_be_cancelled(self) -> None:
        async def check() -> None:
            limiter = self.limiter()
            loop = asyncio.get_running_loop()
            end = loop.time() + 60
            sent = 0
            while loop.time() < end:
                try:
                    async with asyncio.timeout(0.001):
                        need = Reservation(self.tokens, 0.0)
                        await limiter.reserve(need)
                    limiter.settle(need, Reservation(self.tokens, 0.0))
                    sent += 1
                except TimeoutError:
                    await asyncio.sleep(0.5)
            assert 0 < sent <= self.per_minute

        run_virtual(check())

    async def _drive(self, *, settle_after_s: float, used_tokens: int | None) -> list[float]:
        """When requests were let go in two and a half minutes of asking as fast as possible."""
        limiter = self.limiter()
        loop = asyncio.get_running_loop()
        times: list[float] = []
        under_way: deque[tuple[float, Reservation]] = deque()
        end = loop.time() + 150
        used = None if used_tokens is None else Reservation(used_tokens, 0.0)
        while loop.time() < end:
            while under_way and under_way[0][0] <= loop.time():
                limiter.settle(under_way.popleft()[1], used)
            need = Reservation(self.tokens, 0.0)
            await limiter.reserve(need)
            times.append(loop.time())
            under_way.append((loop.time() + settle_after_s, need))
        return [time for time in times if time < end]


def busiest_minute(times: list[float], weights: list[int] | None = None) -> int:
    """The most that any 60 seconds hold: entries, or their weights."""
    weights = weights or [1] * len(times)
    most = inside = first = 0
    for last, time in enumerate(times):
        inside += weights[last]
        while times[first] <= time - 60.0:
            inside -= weights[first]
            first += 1
        most = max(most, inside)
    return most
