"""When a failed attempt is repeated, when a lane pauses, and when a job is not worth going on with."""

from __future__ import annotations

import random
from dataclasses import dataclass

from engine.ports import Clock
from engine.types import Retry


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, capped in attempts and in time.

    - `max_attempts` counts the first one; `max_total_s` runs from the first sending of a request.
    - `attempt_deadline_s` bounds one attempt from the moment it is sent; only for models that take one
      request at a time (a batch of an in-process model takes as long as it takes). None: no deadline.
    - A rate limit burns no attempt; a request that was held up by them for `max_rate_limited_s` is given up.
    - `believed_after`: a `doubtful` failure is final when it has come so many times in a row.
    - `retry_share`: more repeated attempts than this share of the answers (and a first round for every slot)
      stop the job: something is wrong that waiting does not cure.
    - `same_failures`: a job whose first outcomes, so many of them, all fail alike is stopped.
    """

    max_attempts: int = 6
    base_delay_s: float = 0.5
    max_delay_s: float = 30.0
    max_total_s: float = 1800.0
    attempt_deadline_s: float | None = 300.0
    max_rate_limited_s: float = 900.0
    first_pause_s: float = 0.5
    max_pause_s: float = 60.0
    believed_after: int = 3
    retry_share: float = 1.0
    same_failures: int = 20

    def delay_s(self, attempts: int, elapsed_s: float, retry: Retry, rng: random.Random) -> float | None:
        """How long to wait before the next attempt after `attempts` failed ones; None: give up."""
        if retry.kind == "no" or attempts >= self.max_attempts:
            return None
        ceiling = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(attempts - 1, 30))
        delay = max(rng.uniform(0.0, ceiling), retry.after_s or 0.0)
        return None if elapsed_s + delay > self.max_total_s else delay


class Pause:
    """A lane's answer to rate limits: everyone waits.

    One pause per episode: the refusals of requests that were sent before the pause began are part of it and
    lengthen it only where the provider says so. Where it does not say how long, pauses double from episode to
    episode until an answer comes through.
    """

    def __init__(self, policy: RetryPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._began_at = -1.0
        self._episodes = 0
        self.until = 0.0
        """The moment, by the clock, from which requests may be sent."""

    def remaining_s(self) -> float:
        """Seconds until requests may be sent again, 0 for now."""
        return max(0.0, self.until - self._clock.monotonic())

    def extend(self, sent_at: float, after_s: float | None) -> bool:
        """Take note of a refusal of a request that was sent at `sent_at`; whether a new episode begins."""
        now = self._clock.monotonic()
        if sent_at >= self._began_at and now >= self.until:
            self._began_at = now
            self._episodes += 1
            unknown = self._policy.first_pause_s * 2.0 ** min(self._episodes - 1, 20)
            self.until = now + (min(unknown, self._policy.max_pause_s) if after_s is None else after_s)
            return True
        if after_s is not None:
            self.until = max(self.until, now + after_s)
        return False

    def answered(self) -> None:
        """An answer came through: the next pause of unknown length is a short one again."""
        self._episodes = 0


class RetryBudget:
    """How many attempts of a lane may be repeated: a share of the answers, and `first` before there are any.

    Old answers do not count for ever: an outage after a million of them is noticed as soon as an early one.
    """

    def __init__(self, share: float, first: int) -> None:
        self._share = share
        self._first = first
        self._left = float(first)
        self._most = 4.0 * first
        self.spent = 0

    def widen(self, first: int) -> None:
        """More slots are in use than before: `first` for these, where that is more."""
        if first > self._first:
            self._left += first - self._first
            self._most = 4.0 * first
            self._first = first

    def answered(self) -> None:
        """An answer came: that much more may be repeated."""
        if self._left < self._most:
            self._left += self._share

    def take(self) -> bool:
        """Count one attempt that is to be repeated; False: no more of them."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        self.spent += 1
        return True
