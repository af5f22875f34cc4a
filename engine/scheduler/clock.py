"""Time as the scheduler sees it."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """The monotonic clock. Another `Clock` has to agree with the event loop's own timers."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Let others run for `seconds`."""
        await asyncio.sleep(seconds)
