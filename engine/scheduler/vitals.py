"""What can be told of a job while it runs: rates, who is the bottleneck, how late the event loop is."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.events import Bottleneck

_TICK_S = 0.1
_LONGEST_S = 5.0
_BUSY_CORE = 0.9


class Heartbeat:
    """Beats ten times a second while something goes on, more rarely when nothing does, and measures how late
    the event loop comes to its timers.

    `beat` is called each time and says whether anything has happened since.
    """

    def __init__(self, beat: Callable[[], bool]) -> None:
        self._beat = beat
        self._lags: deque[float] = deque(maxlen=300)
        self._timer: asyncio.TimerHandle | None = None
        self._interval_s = _TICK_S
        self._cpu = (0.0, 0.0)
        self.cpu_share = 0.0
        """The part of one core that this process used since the last beat."""

    @property
    def lag_s(self) -> float:
        """The 99th percentile of the lateness of the last beats, in seconds."""
        return sorted(self._lags)[int(len(self._lags) * 0.99)] if self._lags else 0.0

    def start(self) -> None:
        """Beat from now on; calling it again changes nothing."""
        if self._timer is None:
            self._cpu = (time.perf_counter(), time.process_time())
            self._interval_s = _TICK_S
            self._arm()

    def stop(self) -> None:
        """Beat no more; calling it twice is harmless."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval_s
        self._timer = loop.call_at(due, self._strike, loop, due)

    def _strike(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._lags.append(max(0.0, loop.time() - due))
        wall, cpu = time.perf_counter(), time.process_time()
        self.cpu_share = (cpu - self._cpu[1]) / max(wall - self._cpu[0], 1e-6)
        self._cpu = (wall, cpu)
        alive = self._beat()
        self._interval_s = _TICK_S if alive else min(_LONGEST_S, 2.0 * self._interval_s)
        if self._timer is not None:  # else: the beat has stopped it
            self._arm()


@dataclass(frozen=True, slots=True)
class _Mark:
    at: float
    attempts: int
    tokens: int
    waits_for: Bottleneck


class Rates:
    """Requests and tokens of a lane over the last few seconds, and what it mostly waited for."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._marks: deque[_Mark] = deque()
        self._seconds = seconds

    def mark(self, now: float, attempts: int, tokens: int, waits_for: Bottleneck) -> None:
        """Running totals at `now`."""
        self._marks.append(_Mark(now, attempts, tokens, waits_for))
        while self._marks[0].at < now - self._seconds:
            self._marks.popleft()

    @property
    def requests_per_s(self) -> float:
        return self._rate(lambda mark: mark.attempts)

    @property
    def tokens_per_minute(self) -> float:
        return 60.0 * self._rate(lambda mark: mark.tokens)

    @property
    def bottleneck(self) -> Bottleneck:
        return Counter(mark.waits_for for mark in self._marks).most_common(1)[0][0]

    def _rate(self, total: Callable[[_Mark], int]) -> float:
        if len(self._marks) < 2:
            return 0.0
        first, last = self._marks[0], self._marks[-1]
        return (total(last) - total(first)) / max(last.at - first.at, 1e-6)


def bottleneck(waits_for: Bottleneck, cpu_share: float) -> Bottleneck:
    """Who is the bottleneck where a lane waits for `waits_for` and the process uses so much of a core."""
    waiting_on_purpose = waits_for in ("limit", "pause", "cost")
    return "client" if cpu_share >= _BUSY_CORE and not waiting_on_purpose else waits_for
