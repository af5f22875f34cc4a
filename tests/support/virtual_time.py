"""An event loop whose time jumps: waiting costs nothing, and what waits for nothing at all is an error."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_DAY_OF_BEATS = 20_000


class DeadlockError(AssertionError):
    """Every task waits, and no timer will ever wake one."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at `start` seconds; good for some 90 days (then asyncio no longer sees that a timer is due: its
    clock resolution is lost in the rounding). Only for code without threads and sockets.

    `cpu_s` is the CPU time that code has claimed with `burn`; nothing else takes any.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self.cpu_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds

    def burn(self, seconds: float) -> None:
        """Compute for so long: the clock goes on, and timers that fall due meanwhile are late."""
        self._now += seconds
        self.cpu_s += seconds


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """A timer that only arms itself again (a heartbeat) is no progress: a day of nothing else is a deadlock.

    Jumps are counted, not seconds: a single long sleep is one jump (or one a day, asyncio's longest)."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop
        self._quiet = 0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or timeout == 0:  # somebody is about to run
            self._quiet = 0
            return events
        if timeout is None:
            raise DeadlockError("nothing is left to wait for")
        self._quiet += 1
        if self._quiet > _DAY_OF_BEATS:
            raise DeadlockError("nobody has run for a day, though a timer goes on beating")
        self._loop.jump(timeout)
        return events


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time. The clocks of `time` follow the loop (asyncio-throttle reads one), and
    the process has used no more CPU than the code has claimed.

    Leaked tasks are an error.
    """
    loop = VirtualTimeLoop()
    real = time.monotonic, time.perf_counter, time.process_time
    time.monotonic = time.perf_counter = loop.time
    time.process_time = lambda: loop.cpu_s
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(_leaving_nothing_behind(main))
    finally:
        time.monotonic, time.perf_counter, time.process_time = real


def virtual_loop() -> VirtualTimeLoop:
    """The loop that is running."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeLoop):
        raise TypeError("this loop runs in real time")
    return loop


async def _leaving_nothing_behind(main: Coroutine[Any, Any, T]) -> T:
    result = await main
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        raise AssertionError(f"tasks were left behind: {left}")
    return result
