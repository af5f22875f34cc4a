"""Rate limits as a strict provider enforces them. Time is passed in; nothing here waits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bench.fake_server.behaviour import Behaviour

MIN_REQUESTS_OF_TOKENS = 10
"""A bucket of tokens holds at least this many requests of the mean size seen so far."""

_ROUNDING = 1e-9  # a client on the very rate must not fail by a float's last digit

LimitName: TypeAlias = Literal["requests", "tokens"]


def told_seconds(wait_s: float, how: Literal["fractional", "integer", "none"]) -> str | None:
    """A wait as a client is told it: never too short, None where it is not told."""
    if how == "none":
        return None
    return str(math.ceil(wait_s)) if how == "integer" else f"{math.ceil(wait_s * 1000) / 1000:.3f}"


class Bucket:
    """Holds `depth`, refills at `rate` per second, starts full. Kept as what is missing from it.

    While `held_s` is above 0 it also holds what has refilled in so many seconds: what is taken then came
    spread over them.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.held_s = 0.0
        self._missing = 0.0
        self._at = float("-inf")

    def missing(self, now: float) -> float:
        """How much was taken and has not come back."""
        left = self._missing - (now - self._at) * self.rate
        return max(-self.held_s * self.rate, left)

    def wait_s(self, now: float, amount: float, depth: float) -> float:
        """Seconds until `amount` can be taken; 0.0: now. More than the depth passes a full bucket."""
        over = self.missing(now) + min(amount, depth) - depth
        return over / self.rate if over > _ROUNDING * max(1.0, depth) else 0.0

    def take(self, now: float, amount: float) -> None:
        """Take `amount`, be it there or not; a negative one gives back."""
        self._missing = max(-self.held_s * self.rate, self.missing(now) + amount)
        self._at = max(self._at, now)


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit, as a provider's headers tell it: what may still pass now, and when the bucket is full."""

    name: LimitName
    per_minute: float
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit a request has met, and in how many seconds it would pass."""

    name: LimitName
    per_minute: float
    wait_s: float


class Limits:
    """Requests and tokens per minute of one `Behaviour`."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._burst_s = behaviour.limit_burst_s
        self._requests = _bucket(behaviour.requests_per_minute)
        self._tokens = _bucket(behaviour.tokens_per_minute)
        self._sizes = 0.0
        self._count = 0

    @property
    def any(self) -> bool:
        """Whether anything is limited at all."""
        return self._requests is not None or self._tokens is not None

    def admit(self, now: float, tokens: float, *, held_s: float = 0.0) -> Refusal | None:
        """Let a request of about `tokens` in, or say which limit it met. A refused one takes nothing.

        `held_s`: the server did not read for so long, and the request came at some moment of that time.
        """
        for held in (self._requests, self._tokens):
            if held:
                held.held_s = held_s
        self._sizes += tokens
        self._count += 1
        limits: tuple[tuple[LimitName, Bucket | None, float], ...] = (
            ("requests", self._requests, 1.0),
            ("tokens", self._tokens, tokens),
        )
        refusals = [
            Refusal(name, bucket.rate * 60, wait)
            for name, bucket, amount in limits
            if bucket and (wait := bucket.wait_s(now, amount, self._depth(name, bucket)))
        ]
        if refusals:
            return max(refusals, key=lambda refusal: refusal.wait_s)
        for _, bucket, amount in limits:
            if bucket:
                bucket.take(now, amount)
        return None

    def settle(self, now: float, tokens: float) -> None:
        """Take the tokens that an answer had beyond the estimate it was let in with."""
        if self._tokens:
            self._tokens.take(now, tokens)

    def standings(self, now: float) -> list[Standing]:
        """Every limit as it stands."""
        found: list[Standing] = []
        limits: tuple[tuple[LimitName, Bucket | None], ...] = (
            ("requests", self._requests),
            ("tokens", self._tokens),
        )
        for name, bucket in limits:
            if bucket:
                missing = max(0.0, bucket.missing(now))
                remaining = max(0, int(self._depth(name, bucket) - missing + _ROUNDING))
                found.append(Standing(name, bucket.rate * 60, remaining, missing / bucket.rate))
        return found

    def _depth(self, name: LimitName, bucket: Bucket) -> float:
        mean = self._sizes / self._count if self._count else 1.0
        least = 1.0 if name == "requests" else MIN_REQUESTS_OF_TOKENS * max(1.0, mean)
        return max(least, bucket.rate * self._burst_s)


def _bucket(per_minute: float) -> Bucket | None:
    return Bucket(per_minute / 60) if per_minute else None
