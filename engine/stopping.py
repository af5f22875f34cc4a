"""Asking a run to stop: what Ctrl-C does."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import InterruptedRunError


class StopSignal:
    """Set once, by whoever wants the run to end early: what is finished is saved, the rest not begun."""

    def __init__(self) -> None:
        self.requested = False
        self._listeners: list[Callable[[], None]] = []

    def request(self) -> None:
        """Ask the run to stop. Calling it again changes nothing."""
        if not self.requested:
            self.requested = True
            for listener in self._listeners:
                listener()

    def on_request(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a stop is requested, at once if it was already."""
        if self.requested:
            listener()
        else:
            self._listeners.append(listener)

    def check(self) -> None:
        """Raise `InterruptedRunError` if a stop was requested: for the seams between stages."""
        if self.requested:
            raise InterruptedRunError("stopped; everything finished is saved")
