"""CPU time of a server with all its processes."""

from __future__ import annotations

import os
from pathlib import Path


def session_cpu_s(session: int) -> float:
    """Seconds of CPU that the processes of a session have used, ended children included.

    Read from /proc: 0 where there is none.
    """
    ticks = sum(_ticks(stat, session) for stat in Path("/proc").glob("[0-9]*/stat"))
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(stat: Path, session: int) -> int:
    """Clock ticks of a process of that session, else 0; fields as in proc(5), behind the program's name."""
    try:
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0
    return sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
