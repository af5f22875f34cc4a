"""How many requests a model takes at once, found out as TCP does: slow start, then growth until a refusal.

Only rate limits (429, 503) shrink the number; a row of other errors holds it where it is.
"""

from __future__ import annotations

import math

from engine.scheduler.pacer import Pacer

_START = 16
_START_SHARE = 8  # of the cap
_LEAST_CUT = 0.05  # of the number in use, at a refusal
_MOST_CUT = 0.5  # in slow start the number had doubled within one round trip
_OF_LOST_TIME = 0.5
_RECENT_S = 2.0
_COOLDOWN_S = 1.0  # a stall of either side brings refusals one after another that say nothing new
_MANY_REFUSALS = 5
_RECOVERY_S = 4.0
_PAUSES_PER_RECOVERY = 20  # a pause must not cost more than a few percent of the time
_IN_USE = 0.8
_IN_USE_AT_FIRST = 0.5  # a burst of answers opens slots faster than they can be filled
_HOLD_S = 1.0
_MANY_ERRORS = 8  # without an answer between them: the model is in trouble, and not just now and then
_PACE = 1.2  # of the rate that the number amounts to: smooths bursts, and leaves the number in charge
_BURST_S = 0.02
_LEAST = 0.01
_MEMORY = 0.05  # weight of one answer in the mean latency
_SHORTEST_S = 1e-4


class Congestion:
    """A number of requests in flight, between a fraction of one and `cap`.

    - Slow start: from `start` (None: an eighth of the cap, or 16), one more for each answer, so it doubles in
      a round trip, while half of it is in use.
    - A refusal cuts it, once per episode and cooldown, by the share that was refused of what came back in the
      last seconds, refusals of requests that were already under way included: a burst that a stall of either
      side has made costs a few percent. It is at least a twentieth, or half the share of the time that pauses
      take, and half at most.
    - What was in use is remembered as the ceiling that failed. From the cut it follows the curve of CUBIC
      (RFC 9438): quickly back to just below the ceiling, slowly past it, then faster. The longer the provider
      makes everyone wait, the more rarely the ceiling is tried.
    - After a refusal requests are also spread evenly, at the rate that the number amounts to by the mean
      latency; below two requests in flight that pace alone is the limit.
    """

    def __init__(self, cap: int, *, adaptive: bool = True, start: int | None = None) -> None:
        self.cap = cap
        self.pacer = Pacer(burst_s=_BURST_S)
        self.limit = cap
        """How many requests may be in flight now; at least one."""
        self.settled = False
        """Whether an answer changes nothing: no refusal yet, and the cap is reached."""
        self.unpaced = True
        """Whether requests may go as fast as slots get free: no refusal yet."""
        first = max(_START, cap // _START_SHARE) if start is None else start
        self._limit = float(min(cap, first) if adaptive else cap)
        self._ceiling = math.inf
        self._refusals = 0
        self._answers = 0
        self._errors = 0
        self._recent = 0.0  # answers, counting e times less for every `_RECENT_S` that they are older
        self._recent_at = 0.0
        self._answers_since = 0  # since the last cut
        self._refusals_since = 0  # of requests that were sent after the last cut
        self._refusals_of_cut = 0  # of those that were sent before it
        self._cut_at = -math.inf
        self._resumed_at = -math.inf
        self._grew_at = -math.inf
        self._latency_s = 0.0
        self._pace_latency_s = 0.0
        self._cut = 0.0
        self._least_cut = _LEAST_CUT
        self._recovery_s = _RECOVERY_S
        self._grown_s = 0.0  # how long it has been growing since the last cut
        self._last = -math.inf
        self._hold_until = -math.inf
        self._changed()

    def answered(self, now: float, latency_s: float, in_flight: int) -> None:
        """An answer came after `latency_s`; `in_flight` requests were under way, it included."""
        self._answers += 1
        self._answers_since += 1
        self._errors = 0
        self._age(now)
        self._recent += 1.0
        latency_s = max(latency_s, _SHORTEST_S)
        self._latency_s += max(_MEMORY, 1.0 / self._answers) * (latency_s - self._latency_s)
        in_use = _IN_USE_AT_FIRST if self._ceiling == math.inf else _IN_USE
        growing = now >= self._hold_until and (
            in_flight >= in_use * self.limit or self.pacer.wait_s(now) > 0.0
        )
        if self._ceiling == math.inf:
            if growing and self._limit < self.cap:
                self._limit = min(float(self.cap), self._limit + 1.0)
                self._grew_at = now
            self._pace_latency_s = self._latency_s
        else:
            # a stall must not slow the pace for longer than it lasts
            self._pace_latency_s = min(self._pace_latency_s, self._latency_s)
            if growing:
                self._grown_s += min(max(now - self._last, 0.0), 0.25)
            distance = self._grown_s / self._recovery_s - 1.0
            self._limit = min(float(self.cap), self._ceiling * (1.0 + self._cut * distance**3))
        self._last = now
        self._changed()

    def refused(
        self, now: float, pause_s: float, in_flight: int, *, sent_at: float, new_episode: bool = True
    ) -> bool:
        """A request sent at `sent_at` was refused, with `in_flight` under way; everyone waits for `pause_s`.

        Whether the number was cut, other than further for the last refusal's reason.
        """
        self._refusals += 1
        self._last = self._hold_until = now + pause_s
        if sent_at < self._cut_at:
            self._refusals_of_cut += 1
            self._deepen(now)
            self._changed()
            return False
        self._refusals_since += 1
        cooling = now - self._cut_at < max(_COOLDOWN_S, 2.0 * self._latency_s) and not self._far_off
        if new_episode and self._answers < self._limit and self._ceiling == math.inf:
            # the first burst was too much at once, which says nothing of how many are
            self._limit = max(1.0, self._limit / 2.0)
        elif new_episode and not cooling:
            self._cut_back(now, pause_s, in_flight)
        else:
            return False
        self._changed()
        return True

    @property
    def _far_off(self) -> bool:
        """Whether so many were refused since the last cut that there is nothing to wait for."""
        return self._refusals_since >= max(_MANY_REFUSALS, 0.5 * self._answers_since)

    def _cut_back(self, now: float, pause_s: float, in_flight: int) -> None:
        slow_start = self._ceiling == math.inf
        if slow_start and now - self._grew_at <= max(_COOLDOWN_S, 2.0 * self._latency_s):
            self._least_cut = _MOST_CUT
        else:
            paused = pause_s / (pause_s + max(now - self._resumed_at, 0.0)) if pause_s > 0.0 else 0.0
            self._least_cut = max(_LEAST_CUT, _OF_LOST_TIME * paused)
        used = min(self._limit, float(max(in_flight, 1))) if self._limit > 1.0 else self._limit
        self._ceiling = max(used, _LEAST)
        self._recovery_s = max(_RECOVERY_S, 0.0 if slow_start else _PAUSES_PER_RECOVERY * pause_s)
        self._pace_latency_s = self._latency_s
        self._cut_at = now
        self._resumed_at = now + pause_s
        self._refusals_of_cut = self._refusals_since
        self._refusals_since = self._answers_since = 0
        self._cut = 0.0
        self._deepen(now)

    def _deepen(self, now: float) -> None:
        """Cut by what is known by now of the share that was refused."""
        if self._ceiling == math.inf:
            return
        self._age(now)
        share = self._refusals_of_cut / (self._refusals_of_cut + self._recent)
        cut = min(_MOST_CUT, max(self._least_cut, share))
        if cut > self._cut:
            self._cut = cut
            self._limit = min(self._limit, self._ceiling * (1.0 - cut))
            self._grown_s = 0.0

    def _age(self, now: float) -> None:
        self._recent *= math.exp(min(0.0, self._recent_at - now) / _RECENT_S)
        self._recent_at = now

    def failed(self, now: float) -> None:
        """An error that is no rate limit; after many in a row there is no growth for a while."""
        self._errors += 1
        if self._errors >= _MANY_ERRORS:
            self._hold_until = max(self._hold_until, now + _HOLD_S)

    def _changed(self) -> None:
        self.limit = max(1, min(self.cap, math.ceil(self._limit - 1e-9)))
        self.unpaced = self._refusals == 0
        self.settled = self.unpaced and self._limit >= self.cap
        if self._refusals and self._pace_latency_s > 0.0:
            headroom = _PACE if self._limit >= 2.0 else 1.0
            self.pacer.rate_per_s = headroom * self._limit / self._pace_latency_s
