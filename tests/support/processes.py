"""Whether processes are still there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil


class Pids:
    """The processes that a fake server noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def noted(self) -> list[int]:
        return [int(path.name) for path in self.folder.iterdir()]

    def alive(self) -> list[int]:
        return [pid for pid in self.noted if running(pid)]

    def gone(self) -> bool:
        """Whether all end within a long while."""
        return comes_true(lambda: not self.alive())


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def comes_true(condition: Callable[[], bool], patience_s: float = 60.0) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
