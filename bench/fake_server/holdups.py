"""When the server itself was held up: by the machine, or by work of its own."""

from __future__ import annotations

import asyncio

_TICK_S = 0.002
_LATE_S = 0.005  # less is how timers are


class Watch:
    """A timer that notices how long the event loop did not run.

    What arrives in such a time is read all at once at its end, though nobody has sent a burst. `held_s` says
    how long the time was while those bytes are being read.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.total_s = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch the running event loop."""
        self._next(asyncio.get_running_loop())

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def held_s(self) -> float:
        """Seconds by which the loop is behind just now; 0 where it is in time, or not watched."""
        if self._timer is None:
            return 0.0
        late = asyncio.get_running_loop().time() - self._due
        return late if late > _LATE_S else 0.0

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        late = self.held_s
        self.longest_s = max(self.longest_s, late)
        self.total_s += late
        self._due = loop.time() + _TICK_S
        self._timer = loop.call_at(self._due, self._next, loop)
