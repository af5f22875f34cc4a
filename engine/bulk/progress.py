"""Progress in rows: the scheduler counts requests, the user counts rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from engine.bulk.entries import Entry
from engine.bulk.tally import Tally
from engine.events import Event, EventSink, RowFigures, StageFinished, StageProgress

_WINDOW_S = 60.0
_LEAST_S = 5.0


class Progress:
    """An `EventSink` that passes the scheduler's events on with `done` and `failed` in rows.

    Rows of earlier calls are in `tally`, and rows that needed no request; a row counts once its answer is on
    disk, be it that of another row with the same text (C2). The stage ends when `finish` is called: parts are
    still written after the last answer. `clock` tells seconds.
    """

    def __init__(self, emit: EventSink, tally: Tally, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self.tally = tally
        self.duplicates = 0
        self.total: int | None = None
        """Rows of all inputs, where that is known."""
        self._share = (0, 0.0)
        self.replayed = 0
        """Rows whose answers an earlier call had brought: they say nothing of the speed."""
        self._before = tally.rows
        self._marks = deque([(clock(), 0)])
        self._last: StageProgress | None = None
        self._end: StageFinished | None = None

    @property
    def fresh(self) -> int:
        """Rows that this call has brought to their end."""
        return self.tally.rows - self._before - self.replayed

    def count(self, entry: Entry, *, duplicate: bool = False, replayed: bool = False) -> None:
        """Count a row."""
        self.tally.count(entry)
        self.duplicates += duplicate
        self.replayed += replayed

    def read(self, rows: int, share: float) -> None:
        """So many rows have been read, which are that share of the input's bytes."""
        self._share = (rows, share)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageProgress):
            self._last = event
            event = replace(event, done=self.tally.rows, failed=self.tally.failed, rows=self._figures())
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

    def _figures(self) -> RowFigures:
        now, rows = self._clock(), self.fresh
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, rows))
            while now - self._marks[0][0] > _WINDOW_S and len(self._marks) > 2:
                self._marks.popleft()
        began, before = self._marks[0]
        rate = (rows - before) / (now - began) if now > began else 0.0
        total = self.total
        read, share = self._share
        if total is None and share > 0:
            total = round(read / share)
        certain = rate > 0 and now - began >= _LEAST_S
        return RowFigures(
            rows_per_s=rate,
            total=total,
            eta_s=max(0, total - self.tally.rows) / rate if total is not None and certain else None,
            duplicates=self.duplicates,
            review=self.tally.review,
            labels=self.tally.label_counts,
            confidence=tuple(self.tally.histogram),
        )
