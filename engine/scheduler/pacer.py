"""An even pace: so many requests a second, with a little room for lateness."""

from __future__ import annotations

import math


class Pacer:
    """The generic cell rate algorithm (ITU-T I.371): one number, the moment at which the next request is due.

    `burst_s` is how far requests may run ahead of the even pace, in seconds: what a late timer has missed is
    made up, and no more. `rate_per_s` may be changed at any time; infinity is no pace at all.
    """

    __slots__ = ("_due", "burst_s", "rate_per_s")

    def __init__(self, rate_per_s: float = math.inf, burst_s: float = 0.05) -> None:
        self.rate_per_s = rate_per_s
        self.burst_s = burst_s
        self._due = -math.inf

    def wait_s(self, now: float) -> float:
        """Seconds until a request may go, 0 for now."""
        return max(0.0, self._due - self.burst_s - now) if self.rate_per_s < math.inf else 0.0

    def take(self, now: float) -> None:
        """Count a request that goes now."""
        self._due = max(self._due, now) + 1.0 / self.rate_per_s
