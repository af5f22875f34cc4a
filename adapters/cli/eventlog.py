"""events.jsonl: what a command did and when, a JSON object a line, for whoever looks at a long job later."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from adapters.cli.running import command_line
from engine.events import (
    Attempted,
    ConcurrencyChanged,
    Event,
    EventSink,
    LaneVitals,
    Notice,
    RowFigures,
    StageFinished,
    StageProgress,
    StageStarted,
)

NAME = "events.jsonl"
ATTEMPTS_PER_S = 10

_NAMES = {
    kind: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()  # StageStarted: stage_started
    for kind in (StageStarted, StageProgress, StageFinished, Attempted, ConcurrencyChanged, Notice)
}
_BATCH_S = 1.0
_FAREWELL_S = 5.0
_USERINFO = re.compile(r"://[^/@,\s]*@")


@contextmanager
def logged(folder: Path, display: EventSink) -> Iterator[EventSink]:
    """A sink for the events of work in `folder`: they are shown by `display`, and kept in `folder`."""
    with EventLog(folder, tell=display) as log:

        def emit(event: Event) -> None:
            display(event)
            log(event)

        yield emit


class EventLog:
    """An event sink that appends to `events.jsonl` in `folder`.

    The file is touched only once a request was asked for: a command that fails before leaves nothing behind,
    and from then on the process holds the folder's lock, so that no two write there. A thread does the
    writing; the sink itself never waits, and never raises: what goes wrong with the file ends the log with
    one warning to `tell`. `clock` tells seconds.

    Bounded in size: progress comes once a second at most (every ten seconds after the first ten minutes of a
    stage), and at the end of each stage; of failed attempts `ATTEMPTS_PER_S` are written, and the next line
    has in `suppressed` how many more there were.
    """

    def __init__(self, folder: Path, *, tell: EventSink, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._writer = _Writer(folder / NAME)
        self._opened = self._told = False
        self._paces: dict[str, _Pace] = {}
        self._second = 0.0
        self._attempts = 0
        self._suppressed = 0

    def __enter__(self) -> EventLog:
        command = _USERINFO.sub("://…@", command_line())
        self._put({"event": "process_started", "version": _version(), "command": command, "pid": os.getpid()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._opened:
            return
        self._put_last_progress()
        self._put({"event": "process_ended", "error": kind.__name__ if kind else None})
        self._writer.close()
        self._warn()

    def __call__(self, event: Event) -> None:
        match event:
            case StageProgress():
                self._progress(event)
            case Attempted():
                self._attempted(event)
            case _:
                if isinstance(event, StageStarted | StageFinished):
                    self._put_last_progress()
                self._put(_line(event))
                if isinstance(event, StageFinished):
                    self._writer.flush()
        if not self._opened and isinstance(event, StageProgress | Attempted | ConcurrencyChanged):
            self._opened = True
            self._writer.start()
        self._warn()

    def _progress(self, event: StageProgress) -> None:
        now = self._clock()
        pace = self._paces.get(event.stage)
        if pace is None:
            pace = self._paces[event.stage] = _Pace(began=now)
        if now >= pace.due:
            pace.due = now + (1.0 if now - pace.began < 600 else 10.0)
            pace.waiting = None
            self._put(_line(event))
        else:
            pace.waiting = (time.time(), event)

    def _put_last_progress(self) -> None:
        for pace in self._paces.values():
            if pace.waiting is not None:
                time_s, event = pace.waiting
                pace.waiting = None
                self._put(_line(event), time_s)

    def _attempted(self, event: Attempted) -> None:
        now = self._clock()
        if now - self._second >= 1.0:
            self._second, self._attempts = now, 0
        self._attempts += 1
        if self._attempts <= ATTEMPTS_PER_S:
            self._put(_line(event))
        else:
            self._suppressed += 1

    def _put(self, line: dict[str, Any], time_s: float | None = None) -> None:
        if self._suppressed:
            line["suppressed"] = self._suppressed
            self._suppressed = 0
        self._writer.put(time.time() if time_s is None else time_s, line)

    def _warn(self) -> None:
        if self._writer.error and not self._told:
            self._told = True
            text = f"{self._writer.path}: {self._writer.error}; the event log ends here, the work goes on"
            self._tell(Notice(text, warning=True))


@dataclass(slots=True)
class _Pace:
    """When the progress of a stage is due again, and the latest that was not."""

    began: float
    due: float = 0.0
    waiting: tuple[float, StageProgress] | None = None


class _Writer:
    """Appends lines to a file, in batches, from a thread of its own.

    `error` says what went wrong; from then on lines are dropped. The file ends with a whole line even so, and
    also after a kill: a torn one is taken away when the next process begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error = ""
        self._lines: deque[tuple[float, dict[str, Any]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="pld-events", daemon=True)

    def put(self, time_s: float, line: dict[str, Any]) -> None:
        if not self.error:
            self._lines.append((time_s, line))

    def start(self) -> None:
        self._thread.start()

    def flush(self) -> None:
        """Ask for the lines to be written now; does not wait for it."""
        self._wake.set()

    def close(self) -> None:
        """Write what is left; a disk that hangs is waited for a few seconds, not for ever."""
        self._closing = True
        self._wake.set()
        self._thread.join(_FAREWELL_S)
        if self._thread.is_alive():
            self.error = "the disk does not answer"

    def _work(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, 0o600)
                _cut_torn_line(fd)
                while not self._closing:
                    self._wake.wait(_BATCH_S)
                    self._wake.clear()
                    self._write(fd)
                self._write(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            self.error = f"cannot be written: {exc.strerror or type(exc).__name__}"
            self._lines.clear()

    def _write(self, fd: int) -> None:
        lines = []
        while self._lines:
            lines.append(_encoded(*self._lines.popleft()))
        data = memoryview(b"".join(lines))
        before = os.fstat(fd).st_size
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, before)
            raise


def _cut_torn_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    tail = os.pread(fd, 1 << 16, max(0, size - (1 << 16)))
    if tail and not tail.endswith(b"\n"):
        os.ftruncate(fd, size - len(tail) + tail.rfind(b"\n") + 1)


def _encoded(time_s: float, line: dict[str, Any]) -> bytes:
    at = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
    line = {"time": at.replace("+00:00", "Z"), **line}
    try:
        return orjson.dumps(
            line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATACLASS, default=_values
        )
    except orjson.JSONEncodeError:  # a lone surrogate, from a file name that is not UTF-8
        return json.dumps(line, ensure_ascii=False, default=_values).encode(errors="replace") + b"\n"


def _line(event: Event) -> dict[str, Any]:
    return {"event": _NAMES[type(event)], **_values(event)}


def _values(one: Event | LaneVitals | RowFigures) -> dict[str, Any]:
    """The fields, floats to a millionth: no figure here means more."""
    values = ((each.name, getattr(one, each.name)) for each in fields(one))
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values}


def _version() -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("pld-engine")
    return None
