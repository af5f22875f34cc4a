"""Requests and tokens per minute: when the next request of a lane may go (C4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from engine.ports import Clock, Reservation
from engine.scheduler.budget import Budget
from engine.scheduler.pacer import Pacer

_MINUTE_S = 60.0
_TICK_S = 1e-6  # so that no sleep ends a rounding error before what it waits for


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may be asked at most; None: no limit (concurrency: 64, or one batch of the model, or what
    a `Gauged` model says).

    How many requests are best in flight is found out below `concurrency`, from `start` on (None: 16, or an
    eighth of `concurrency` where a server refuses what is too much).
    `concurrency` counts requests in flight, whatever the size of a batch, and so does `requests_per_minute`:
    providers bill a batch of texts by the text. `timeout_s` bounds one attempt from the moment it is sent
    (None: what the scheduler's policy says).
    """

    concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout_s: float | None = None
    start: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute", "start"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0, not {self.timeout_s}")


class RequestGate(Protocol):
    """Decides when one more request may go."""

    def wait_s(self) -> float:
        """Seconds after which to ask again, 0 where a request may go now."""

    def take(self) -> None:
        """Count a request that goes now."""


class RequestPace:
    """Requests per minute at an even pace. What it may run ahead of that pace, a twentieth of a second, is
    taken off the rate, so that any 60 seconds hold at most `per_minute` requests.

    asyncio-throttle's sliding window, which it stands in for, starts a window only when the loop comes to it:
    each is a little late, and nothing makes that up.
    """

    _AHEAD_S = 0.05

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._clock = clock
        self._pacer = Pacer(per_minute / (_MINUTE_S + self._AHEAD_S), self._AHEAD_S)

    def wait_s(self) -> float:
        """Seconds until a request may go, 0 for now."""
        wait = self._pacer.wait_s(self._clock.monotonic())
        return wait + _TICK_S if wait > 0 else 0.0

    def take(self) -> None:
        """Count a request that goes now."""
        self._pacer.take(self._clock.monotonic())


class TokenBucket:
    """Tokens per minute: estimates are taken before sending and corrected by the usage that comes back.

    A bucket that refills evenly and holds a tenth of a second, so that providers with small buckets are not
    overrun; what it holds is taken off the minute, so that any 60 seconds stay within the limit, as far as
    the estimates are right. A request larger than the bucket goes when it is full; what is used beyond it is
    a debt that later ones wait for.
    """

    _BURST_S = 0.1
    _SLACK_S = 1e-4  # so that a wait never ends a rounding error too early

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._clock = clock
        self._capacity = per_minute * self._BURST_S / _MINUTE_S
        self._rate = (per_minute - self._capacity) / _MINUTE_S
        self._level = self._capacity
        self._filled_at = clock.monotonic()

    def wait_s(self, tokens: int) -> float:
        """Seconds until `tokens` may be taken, 0 for now."""
        now = self._clock.monotonic()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        lacking = min(tokens, self._capacity) - self._level
        return lacking / self._rate + self._SLACK_S if lacking > 0 else 0.0

    def take(self, tokens: int) -> None:
        """Count `tokens` from now on."""
        self._level -= tokens

    def settle(self, taken: int, used: int) -> None:
        """Correct what was taken by what was used; a request's own tokens always find room."""
        self._level = min(max(self._capacity, taken), self._level + taken - used)


class RateLimiter:
    """The `Limiter` of one lane: dollars, tokens per minute and requests per minute together.

    `settle` wants the reservation that was made. `requests` takes the place of the even pace of requests.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        *,
        model: str,
        budget: Budget | None = None,
        requests: RequestGate | None = None,
    ) -> None:
        self._clock = clock
        self._model = model
        self._budget = budget
        self._tokens = TokenBucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self._requests = requests
        if requests is None and limits.requests_per_minute:
            self._requests = RequestPace(limits.requests_per_minute, clock)
        self.counts_tokens = self._tokens is not None
        self.counts_cost = budget is not None
        self.unlimited = self._tokens is None and self._requests is None and budget is None
        self.waits_for: Literal["limit", "cost"] = "limit"
        """What `take_now` last found closed."""

    def take_now(self, need: Reservation) -> bool:
        """Reserve where `reserve` would return at once, and say whether."""
        if self._budget is not None and not self._budget.fits(need.cost_usd):
            self.waits_for = "cost"
            return False
        if self._wait_s(need) > 0:
            self.waits_for = "limit"
            return False
        if self._budget is not None:
            self._budget.take(need.cost_usd)
        self._take(need)
        return True

    async def reserve(self, need: Reservation) -> None:
        """Wait until the request may be sent; raises `BudgetError` where it never may."""
        if self._budget is not None:
            await self._budget.reserve(need.cost_usd, self._model)
        try:
            while (wait := self._wait_s(need)) > 0:
                await self._clock.sleep(wait)
        except BaseException:
            if self._budget is not None:
                self._budget.settle(need.cost_usd, 0.0)
            raise
        self._take(need)

    def _wait_s(self, need: Reservation) -> float:
        wait = 0.0 if self._requests is None else self._requests.wait_s()
        return wait if self._tokens is None else max(wait, self._tokens.wait_s(need.tokens))

    def _take(self, need: Reservation) -> None:
        if self._requests is not None:
            self._requests.take()
        if self._tokens is not None:
            self._tokens.take(need.tokens)

    def settle(self, need: Reservation, used: Reservation | None) -> None:
        """Replace a reservation by what was really used; None: unknown, it counts in full."""
        if self._tokens is not None and used is not None:
            self._tokens.settle(need.tokens, used.tokens)
        if self._budget is not None:
            self._budget.settle(need.cost_usd, None if used is None else used.cost_usd)
