"""An event loop whose time jumps: waiting costs nothing, and what waits for nothing at all is an error."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(AssertionError):
    """Every task waits, and no timer will ever wake one."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at `start` seconds. Only for code without threads and sockets."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise DeadlockError("nothing is left to wait for")
            self._loop.jump(timeout)
        return events


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time. `time.monotonic` follows the loop (asyncio-throttle reads it).

    Leaked tasks are an error.
    """
    loop = VirtualTimeLoop()
    real = time.monotonic
    time.monotonic = loop.time
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(_leaving_nothing_behind(main))
    finally:
        time.monotonic = real


async def _leaving_nothing_behind(main: Coroutine[Any, Any, T]) -> T:
    result = await main
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        raise AssertionError(f"tasks were left behind: {left}")
    return result
