"""Running `pld` as a user would, and what it cost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True)
class Cost:
    """What one process took: CPU seconds of all its threads, wall seconds, peak memory in MB."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def run_pld(arguments: Sequence[str | Path], folder: Path) -> tuple[dict[str, Any], Cost]:
    """Run one `pld … --json` in `folder`. Raises `RuntimeError` with its stderr where it fails."""
    command = [sys.executable, "-c", "from adapters.cli.main import main; main()"]
    command += [*map(str, arguments), "--json", "--quiet"]
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)  # noqa: S603 - our own command
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode != 0:
            raise RuntimeError(err.read().decode(errors="replace").strip())
        document: dict[str, Any] = orjson.loads(out.read())
    unit = 1 if sys.platform == "darwin" else 1024
    cost = Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss * unit / 1e6)
    return document, cost
