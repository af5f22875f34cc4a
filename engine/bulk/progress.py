"""Progress in rows: the scheduler counts requests, the user counts rows."""

from __future__ import annotations

from dataclasses import replace

from engine.events import Event, EventSink, StageFinished, StageProgress


class Progress:
    """An `EventSink` that passes the scheduler's events on with `done` and `failed` in rows on disk (C2).

    Rows of earlier calls are among them, and rows that needed no request. The stage ends when `finish` is
    called: parts are still written after the last answer.
    """

    def __init__(self, emit: EventSink) -> None:
        self._emit = emit
        self.done = 0
        self.failed = 0
        self._last: StageProgress | None = None
        self._end: StageFinished | None = None

    def add(self, rows: int, failed: int) -> None:
        """Count rows that have got to the disk, `failed` of them without a label."""
        self.done += rows
        self.failed += failed

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageProgress):
            self._last = event
            event = replace(event, done=self.done, failed=self.failed)
        elif isinstance(event, StageFinished):
            self._end = event
            return
        self._emit(event)

    def finish(self, detail: str, seconds: float) -> None:
        """Tell the final figures and that the stage is done."""
        if self._last is not None:
            self(self._last)
        if self._end is not None:
            self._emit(replace(self._end, detail=detail, seconds=seconds))
