"""Settings of the interpreter for long jobs: the garbage collector's, and which event loop is used."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG_OBJECTS = 20_000
# CPython 3.12 starts with a few hundred frozen objects of its own; whoever calls gc.freeze() has thousands
_FROZEN_BY_OTHERS = 1_000


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for `asyncio.Runner`: uvloop's where it is installed (the extra `fast`), else asyncio's."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class _Collector:
    """The garbage collector of this process, as several jobs want it at once.

    The first job in sets it, the last one out puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs = 0
        self._before: tuple[int, int, int] | None = None
        self._set: tuple[int, int, int] | None = None
        self._froze = False

    def enter(self) -> None:
        with self._lock:
            self._jobs += 1
            if self._jobs > 1:
                return
            before = gc.get_threshold()
            if not gc.isenabled() or not before[0]:
                return
            if gc.get_freeze_count() < _FROZEN_BY_OTHERS:
                gc.collect()  # garbage that was frozen with the rest would stay for the whole job
                gc.freeze()
                self._froze = True
            if before[0] < _YOUNG_OBJECTS:
                gc.set_threshold(_YOUNG_OBJECTS, *before[1:])
                self._before, self._set = before, gc.get_threshold()

    def leave(self) -> None:
        with self._lock:
            self._jobs -= 1
            if self._jobs:
                return
            # thresholds that somebody set meanwhile are theirs
            if self._before is not None and gc.get_threshold() == self._set:
                gc.set_threshold(*self._before)
            if self._froze:
                gc.unfreeze()
            self._before, self._set, self._froze = None, None, False


_collector = _Collector()


@contextmanager
def long_job() -> Iterator[None]:
    """Spare a job with much in flight most of the garbage collector's work; all is put back at the end.

    What is loaded by now (modules, classes: it never becomes garbage) is frozen, so that no collection
    walks it again: enter this after the imports. And the youngest generation may grow to 20,000 objects
    before it is collected: with hundreds of requests in flight the number of live objects swings by more than
    the interpreter's threshold all the time, and each swing would start a collection that finds nothing.
    Collection itself stays on: cycles are still freed, at most some ten megabytes later.

    Nesting, and jobs in several threads, count as one. A collector that is disabled stays as it is; so do
    higher thresholds, and objects that the program has frozen itself.
    """
    _collector.enter()
    try:
        yield
    finally:
        _collector.leave()
