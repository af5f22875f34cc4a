"""asyncio-throttle as the scheduler's gate, to show it beside the even pace that replaced it."""

from __future__ import annotations

import time

from asyncio_throttle.throttler import Throttler


class RequestWindow(Throttler):
    """asyncio-throttle's sliding window as an `engine.scheduler.RequestGate`.

    A throttler lets a whole window go at once, so its period is about 100 ms with the limit scaled to it; the
    limits of all periods of a minute add up to no more than `per_minute`. Whoever waits polls every 2 ms.
    """

    def __init__(self, per_minute: int) -> None:
        burst = max(1, per_minute // 600)
        super().__init__(rate_limit=burst, period=60.0 / (per_minute // burst), retry_interval=0.002)

    def wait_s(self) -> float:
        """0 where the window has room."""
        self.flush()  # type: ignore[no-untyped-call]
        return 0.0 if len(self._task_logs) < self.rate_limit else self.retry_interval

    def take(self) -> None:
        """Count a request that goes now."""
        self._task_logs.append(time.monotonic())
