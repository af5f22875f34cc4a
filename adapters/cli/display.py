"""What a person sees while a command works: a live display on a terminal, plain lines elsewhere. All on
stderr.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from adapters.cli.pace import Pace
from adapters.cli.wording import BETWEEN, dollars, duration, found, packed, rates, short, waiting
from engine.events import (
    ConcurrencyChanged,
    Event,
    Notice,
    StageFinished,
    StageProgress,
    StageStarted,
)

_REFRESHES_PER_S = 5
_PLAIN_INTERVAL_S = 10.0
_CALM_INTERVAL_S = 60.0  # after the first five minutes of a stage: a night's log stays readable
_CONCURRENCY_INTERVAL_S = 5.0
_MOST_BAR = 40
_LEAST_BAR = 5


@dataclass
class _Stage:
    """A stage as it is shown. One that is entered again and again is one, with its figures added up."""

    name: str
    began: float
    total: int | None
    passes: list[StageProgress] = field(default_factory=list)
    pace: Pace = field(init=False)
    paused_until: float = -math.inf
    detail: str = ""

    def __post_init__(self) -> None:
        self.enter(self.total, self.began)

    def enter(self, total: int | None, now: float) -> None:
        self.total = total
        self.pace = Pace(now)
        self.passes.append(StageProgress(self.name, 0, 0, 0, 0, 0, 0, 0, 0, 0.0))

    @property
    def progress(self) -> StageProgress:
        return self.passes[-1]


class Display:
    """Renders the engine's events. `quiet` keeps warnings only. `clock` tells seconds.

    The live display is drawn by a thread of its own, a few times a second; an event is only kept for it.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        # FORCE_COLOR, which many CI systems set, makes Rich take a file for a terminal: ask the file itself
        interactive = None if sys.stderr.isatty() else False
        self.console = console or Console(stderr=True, highlight=False, force_interactive=interactive)
        self._clock = clock
        self._spinner = Spinner("dots", style="progress.spinner")
        self._live: Live | None = None
        self._stage: _Stage | None = None
        self._last_line = 0.0
        self._last_change = -math.inf

    def __enter__(self) -> Display:
        if self.console.is_interactive and not self._quiet:
            self._live = Live(
                get_renderable=self.picture,
                console=self.console,
                refresh_per_second=_REFRESHES_PER_S,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close_stage()
        self.close()

    def close(self) -> None:
        """Take the live display away and give the terminal back."""
        self._stage = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Event) -> None:
        """The engine's event sink."""
        match event:
            case StageProgress():
                self._keep(event)
            case StageStarted():
                self._open_stage(event)
            case StageFinished():
                if self._stage is not None:
                    self._stage.detail = event.detail
            case ConcurrencyChanged():
                self._slow_down(event)
            case Notice():
                if event.warning or not self._quiet:
                    self.say(f"{'warning: ' if event.warning else ''}{event.text}")

    def say(self, line: str) -> None:
        """One line, above the live display where there is one."""
        self.console.print(line, markup=False, soft_wrap=not self.console.is_terminal)

    def picture(self) -> Text:
        """The live display as it stands: a line with a bar, and figures below it; "" between stages."""
        stage = self._stage
        if stage is None:
            return Text(end="")
        now, width = self._clock(), self.console.width
        said = _how_far(stage, now)
        line = Text.assemble(self._spin(now), f" {stage.name} ", no_wrap=True, overflow="ellipsis")
        room = min(_MOST_BAR, width - line.cell_len - len(said) - 1)
        total, _ = _total(stage)
        if total and room >= _LEAST_BAR:
            full = min(room, room * stage.progress.done // total)
            line.append("━" * full, "bar.complete").append("━" * (room - full), "bar.back").append(" ")
        line.append(said)
        for group in _figures(stage, now):
            for text in packed(group, width - 2):
                line.append(f"\n  {text}")
        return line

    def _spin(self, now: float) -> Text:
        frame = self._spinner.render(now)
        return frame if isinstance(frame, Text) else Text("-")

    def _open_stage(self, event: StageStarted) -> None:
        now = self._clock()
        if self._stage is None or event.stage != self._stage.name:
            self._close_stage()
            if self._live is None and not self._quiet:
                self.say(f"{event.stage} …")
            self._last_line = now
            self._stage = _Stage(event.stage, now, event.total)
        else:
            self._stage.enter(event.total, now)

    def _keep(self, event: StageProgress) -> None:
        stage = self._stage
        if stage is None or event.stage != stage.name:
            return
        now = self._clock()
        stage.passes[-1] = event
        stage.pace.add(now, event.done, event.sent, stage.total)
        if self._live is None and not self._quiet:
            interval = _PLAIN_INTERVAL_S if now - stage.began < 300 else _CALM_INTERVAL_S
            if now - self._last_line >= interval:
                self._last_line = now
                cells = [_how_far(stage, now), *(cell for group in _figures(stage, now) for cell in group)]
                self.say(f"{stage.name}: {BETWEEN.join(cells)}")

    def _slow_down(self, event: ConcurrencyChanged) -> None:
        now = self._clock()
        if self._stage is not None and event.stage == self._stage.name:
            self._stage.paused_until = now + event.pause_s
        if not self._quiet and now - self._last_change >= _CONCURRENCY_INTERVAL_S:
            self._last_change = now
            wait = f", after a pause of {event.pause_s:,.0f} s" if event.pause_s >= 1 else ""
            self.say(f"{event.stage}: the provider asks for less: {event.concurrency:,} at a time{wait}")

    def _close_stage(self) -> None:
        stage, self._stage = self._stage, None
        if stage is None or self._quiet:
            return
        seconds = self._clock() - stage.began
        told = stage.detail
        if len(stage.passes) > 1:
            done = sum(one.done for one in stage.passes)
            rate = f"{done / max(seconds, 0.1):,.0f}/s"
            told = ", ".join([f"{done:,} done", rate, *_counts(stage)])
        self.say(f"{stage.name}: {told or 'done'} ({seconds:.1f} s)")


def _how_far(stage: _Stage, now: float) -> str:
    """Done, of how many, and how long the rest will take."""
    done, rows = stage.progress.done, stage.progress.rows
    total, about = _total(stage)
    if not total:
        return f"{f'{done:,} in ' if done else ''}{duration(now - stage.began)}"
    eta_s = stage.pace.eta_s if rows is None else rows.eta_s
    eta = "" if eta_s is None or done >= total else f", ETA {duration(eta_s)}"
    return f"{done:,} of {about}{total:,} ({min(100, 100 * done // total)}%){eta}"


def _total(stage: _Stage) -> tuple[int | None, str]:
    """How many there are in all, and a word where that is an estimate."""
    rows = stage.progress.rows
    if stage.total or rows is None or not rows.total:
        return stage.total, ""
    return rows.total, "about "


def _figures(stage: _Stage, now: float) -> list[list[str]]:
    """Groups of figures, each of which begins a line: rates, what is waited for, counts."""
    lane = stage.progress.lane
    groups = [] if lane is None else [rates(lane), waiting(lane, stage.paused_until - now)]
    rows = stage.progress.rows
    classified = [] if rows is None else found(rows)
    return [group for group in (*groups, classified, _counts(stage)) if group]


def _counts(stage: _Stage) -> list[str]:
    passes = stage.passes
    cells = [
        f"{count:,} {what}"
        for count, what in (
            (sum(one.cached for one in passes), "cached"),
            (sum(one.failed for one in passes), "failed"),
            (sum(one.retries for one in passes), "retries"),
        )
        if count
    ]
    if tokens := sum(one.input_tokens + one.output_tokens for one in passes):
        cells.append(f"{short(tokens)} tokens")
    lane = stage.progress.lane
    cost = sum(one.cost_usd for one in passes)
    if lane is not None and lane.cap_usd is not None:
        cells.append(f"{dollars(lane.spent_usd)} of {dollars(lane.cap_usd)}")
    elif cost:
        cells.append(dollars(cost))
    return cells
