"""Starting clients, and turning repeated runs into rows."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson

from bench.scheduler.workload import Task


def run_client(task: Task) -> dict[str, Any]:
    """What the client of `task` printed; a folder for its answers is made where it names none.

    Raises `RuntimeError` with its stderr where it fails.
    """
    if not task.folder:
        with tempfile.TemporaryDirectory() as folder:
            return run_client(replace(task, folder=folder))
    with start_client(task) as child:
        out, err = child.communicate()
    if child.returncode != 0:
        raise RuntimeError(f"{task.client}: {err.decode(errors='replace').strip()[-2000:]}")
    found: dict[str, Any] = orjson.loads(out.splitlines()[-1])
    return found


@contextmanager
def start_client(task: Task) -> Iterator[subprocess.Popen[bytes]]:
    """The client's process; killed at the end where it still runs."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.scheduler.clients"]
    child = subprocess.Popen(  # noqa: S603 - our own module
        [*command, orjson.dumps(task.to_json()).decode()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def spread(name: str, values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Median, least and greatest of a figure over the runs."""
    return {
        name: round(statistics.median(values), digits),
        f"{name}_min": round(min(values), digits),
        f"{name}_max": round(max(values), digits),
    }
