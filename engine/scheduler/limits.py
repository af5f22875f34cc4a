"""Requests and tokens per minute: when the next request of a lane may go (C4)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from asyncio_throttle.throttler import Throttler

from engine.ports import Clock, Reservation
from engine.scheduler.budget import Budget

_MINUTE_S = 60.0
_TICK_S = 1e-6  # so that no sleep ends a rounding error before what it waits for


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may be asked at most; None: no limit (concurrency: 64, or one batch of the model).

    `concurrency` counts requests in flight, whatever the size of a batch, and so does `requests_per_minute`:
    providers bill a batch of texts by the text.
    """

    concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")


class RequestWindow(Throttler):
    """asyncio-throttle's sliding window, held to requests per minute without a minute's burst.

    A throttler lets a whole window go at once, so its period is about 100 ms with the limit scaled to it.
    The period divides the minute and the limits of all periods add up to no more than the minute's: any 60
    seconds hold at most `per_minute` requests. Every waiter polls: one dispatcher has to be the only one, and
    it sleeps until the window has room rather than poll for all of it.
    """

    def __init__(self, per_minute: int) -> None:
        burst = max(1, int(per_minute * 0.1 / _MINUTE_S))
        periods = per_minute // burst
        super().__init__(rate_limit=burst, period=_MINUTE_S / periods, retry_interval=0.002)

    def open_now(self) -> bool:
        """Whether `acquire` would return at once."""
        self.flush()  # type: ignore[no-untyped-call]
        return len(self._task_logs) < self.rate_limit

    async def acquire(self) -> None:
        """Wait until one more request may go, and count it."""
        if not self.open_now():
            await asyncio.sleep(self._task_logs[0] + self.period - time.monotonic() + _TICK_S)
        await super().acquire()  # type: ignore[no-untyped-call]


class TokenBucket:
    """Tokens per minute: estimates are taken before sending and corrected by the usage that comes back.

    A bucket of ten seconds' worth sets the pace; a ledger of the last minute, in steps of a quarter second,
    keeps any 60 seconds within the limit. Usage above the estimate is a debt that later requests wait for; a
    request larger than the limit goes alone. State is constant in the number of requests.
    """

    _BURST_S = 10.0
    _STEP_S = 0.25
    _SLACK_S = 0.001  # so that a wait never ends a rounding error too early

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._rate = per_minute / _MINUTE_S
        self._capacity = self._rate * self._BURST_S
        self._level = self._capacity
        self._filled_at = clock.monotonic()
        self._ledger: dict[int, int] = {}  # step -> tokens, oldest first
        self._total = 0
        self._step_of: dict[int, int] = {}  # id of a reservation under way -> its step

    def wait_s(self, tokens: int) -> float:
        """Seconds until `tokens` may be taken, 0 for now."""
        now = self._advance()
        tokens = min(tokens, self._per_minute)
        lacking = min(tokens, self._capacity) - self._level
        wait = lacking / self._rate + self._SLACK_S if lacking > 0 else 0.0
        excess = self._total + tokens - self._per_minute
        if excess > 0:
            for step, taken in self._ledger.items():
                excess -= taken
                if excess <= 0:
                    return max(wait, self._expiry(step) - now + self._SLACK_S)
        return wait

    def take(self, need: Reservation) -> None:
        """Count `need.tokens` from now on. The object stands for the reservation until it is settled."""
        step = int(self._advance() / self._STEP_S)
        self._level -= need.tokens
        self._total += need.tokens
        self._ledger[step] = self._ledger.get(step, 0) + need.tokens
        self._step_of[id(need)] = step

    def settle(self, need: Reservation, used_tokens: int | None) -> None:
        """Correct a reservation by what was used; None: unknown, it counts in full."""
        now = self._advance()
        step = self._step_of.pop(id(need))
        more = 0 if used_tokens is None else used_tokens - need.tokens
        self._level = min(self._capacity, self._level - more)
        if step not in self._ledger:  # sent over a minute ago: nothing to give back, but debts count from now
            step, more = int(now / self._STEP_S), max(0, more)
        self._ledger[step] = self._ledger.get(step, 0) + more
        self._total += more

    def _advance(self) -> float:
        now = self._clock.monotonic()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        while self._ledger and self._expiry(step := next(iter(self._ledger))) <= now:
            self._total -= self._ledger.pop(step)
        return now

    def _expiry(self, step: int) -> float:
        return (step + 1) * self._STEP_S + _MINUTE_S


class RateLimiter:
    """The `Limiter` of one lane: dollars, tokens per minute and requests per minute together.

    Each `Reservation` object stands for one reservation: pass the same object to `reserve` and `settle`.
    """

    def __init__(self, limits: Limits, clock: Clock, *, model: str, budget: Budget | None = None) -> None:
        self._clock = clock
        self._model = model
        self._budget = budget
        self._tokens = TokenBucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self._requests = RequestWindow(limits.requests_per_minute) if limits.requests_per_minute else None
        self.counts_tokens = self._tokens is not None
        self.counts_cost = budget is not None
        self.unlimited = self._tokens is None and self._requests is None and budget is None

    def open_now(self, need: Reservation) -> bool:
        """Whether `reserve` would return at once."""
        return (
            (self._budget is None or self._budget.fits(need.cost_usd))
            and (self._tokens is None or self._tokens.wait_s(need.tokens) <= 0)
            and (self._requests is None or self._requests.open_now())
        )

    async def reserve(self, need: Reservation) -> None:
        """Wait until the request may be sent; raises `BudgetError` where it never may."""
        if self._budget is not None:
            await self._budget.reserve(need.cost_usd, self._model)
        try:
            if self._tokens is not None:
                while (wait := self._tokens.wait_s(need.tokens)) > 0:
                    await self._clock.sleep(wait)
            # last, so that the moment it lets a request go is the moment the request is sent
            if self._requests is not None:
                await self._requests.acquire()
        except BaseException:
            if self._budget is not None:
                self._budget.settle(need.cost_usd, 0.0)
            raise
        if self._tokens is not None:
            self._tokens.take(need)

    def settle(self, need: Reservation, used: Reservation | None) -> None:
        """Replace a reservation by what was really used; None: unknown, it counts in full."""
        if self._tokens is not None:
            self._tokens.settle(need, None if used is None else used.tokens)
        if self._budget is not None:
            self._budget.settle(need.cost_usd, None if used is None else used.cost_usd)
