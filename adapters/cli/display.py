"""What a person sees while a command works: a live display on a terminal, plain lines elsewhere. All on
stderr.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from engine.events import Event, Notice, StageFinished, StageProgress, StageStarted

_PLAIN_INTERVAL_S = 10.0


class Display:
    """Renders the engine's events. `quiet` keeps warnings only.

    A stage may be entered several times in a row (resolution asks the student again and again): it is shown
    as one, with its figures added up and one closing line.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._began = 0.0
        self._detail = ""
        self._passes: list[StageProgress] = []
        self._last_line = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._quiet:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close_stage()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __call__(self, event: Event) -> None:
        """The engine's event sink."""
        match event:
            case StageStarted():
                self._open_stage(event)
            case StageProgress():
                self._show(event)
            case StageFinished():
                self._detail = event.detail
            case Notice():
                if event.warning or not self._quiet:
                    self.say(f"{'warning: ' if event.warning else ''}{event.text}")

    def say(self, line: str) -> None:
        """One line, above the live display where there is one."""
        self._console.print(line, markup=False, soft_wrap=True)

    def _open_stage(self, event: StageStarted) -> None:
        if event.stage != self._stage:
            self._close_stage()
            self._stage, self._began, self._detail, self._passes = event.stage, time.monotonic(), "", []
            if self._progress is not None:
                self._task = self._progress.add_task(event.stage, total=event.total, figures="")
            elif not self._quiet:
                self.say(f"{event.stage} …")
            self._last_line = time.monotonic()
        self._passes.append(StageProgress(event.stage, 0, 0, 0, 0, 0, 0, 0, 0, 0.0))
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=event.total, completed=0)

    def _show(self, event: StageProgress) -> None:
        if not self._passes:
            return
        self._passes[-1] = event
        figures = _figures(self._passes, time.monotonic() - self._began)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=event.done, figures=figures)
        elif not self._quiet and time.monotonic() - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            self.say(f"{event.stage}: {figures}")

    def _close_stage(self) -> None:
        if not self._stage:
            return
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        if not self._quiet:
            seconds = time.monotonic() - self._began
            told = _figures(self._passes, seconds) if len(self._passes) > 1 else self._detail
            self.say(f"{self._stage}: {told or 'done'} ({seconds:.1f} s)")
        self._stage = ""


def _figures(passes: list[StageProgress], seconds: float) -> str:
    done = sum(one.done for one in passes)
    parts = [f"{done:,} done", f"{done / max(seconds, 0.1):,.0f}/s"]
    for count, what in (
        (sum(one.cached for one in passes), "cached"),
        (sum(one.failed for one in passes), "failed"),
        (sum(one.retries for one in passes), "retries"),
        (sum(one.input_tokens + one.output_tokens for one in passes), "tokens"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    cost = sum(one.cost_usd for one in passes)
    if cost:
        parts.append(f"${cost:,.4f}")
    return ", ".join(parts)
