"""A deadline for every attempt, with one timer for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class AttemptTimeoutError(TimeoutError):
    """The attempt has passed its deadline (a model may raise a `TimeoutError` of its own)."""


class Deadlines:
    """Attempts of one lane all have the same deadline, so the one begun first is due first: a timer for the
    oldest is enough. (`asyncio.timeout` sets and cancels one for each attempt.)
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._due: dict[asyncio.Task[object], float] = {}  # oldest first
        self._expired: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, attempt: Awaitable[T]) -> T:
        """The result of `attempt`; raises `AttemptTimeoutError` where that takes longer than `seconds`.

        A task has one attempt at a time.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an attempt has to run in a task")
        due = loop.time() + self.seconds
        self._due[task] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._look, loop)
        cancelling = task.cancelling()
        try:
            return await attempt
        except asyncio.CancelledError:
            # ours, unless somebody else has cancelled the task as well
            if task in self._expired and task.cancelling() - 1 <= cancelling:
                raise AttemptTimeoutError(f"no answer within {self.seconds:g} s") from None
            raise
        finally:
            self._due.pop(task, None)
            if task in self._expired:  # taken back even where the model has swallowed it
                self._expired.discard(task)
                task.uncancel()

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._due[task]
            self._expired.add(task)
            task.cancel()
