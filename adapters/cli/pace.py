"""How fast a stage goes, and how long it will still take."""

from __future__ import annotations

from collections import deque
from itertools import pairwise


class Pace:
    """How fast a model answers, from the last minute, and so how long the rest will take.

    Only answers that were sent for count. What comes from the cache, or was done by an earlier call, comes in
    bursts: time in which nothing else got done is left out, lest a burst promises a quick end, and the next
    stretch of slow answers an endless one.
    """

    _WINDOW_S = 60.0
    _LEAST_S = 5.0

    def __init__(self, now: float) -> None:
        self._samples = deque([(now, 0, 0)])
        self.eta_s: float | None = None
        """Seconds that are left; None where nobody can say."""

    def add(self, now: float, done: int, sent: int, total: int | None) -> None:
        """Running totals as of `now`; kept once a second."""
        if now - self._samples[-1][0] < 1.0:
            return
        self._samples.append((now, done, sent))
        while now - self._samples[0][0] > self._WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()
        seconds, answers = 0.0, 0
        for (began, done_then, sent_then), (ended, done_now, sent_now) in pairwise(self._samples):
            if sent_now > sent_then or done_now == done_then:
                seconds += ended - began
                answers += sent_now - sent_then
        known = total is not None and answers > 0 and seconds >= self._LEAST_S
        self.eta_s = max(0, (total or 0) - done) * seconds / answers if known else None
