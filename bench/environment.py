"""Where a measurement was taken."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("pld-engine", "numpy", "scikit-learn", "faiss-cpu", "polars", "orjson", "aiohttp")


def environment() -> dict[str, Any]:
    """Machine, versions and date, as every `pld bench --json` states them."""
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def data_folder() -> Path:
    """The real data sets: data/ in the folder that PLD_DATA names, or in ../shared beside the checkout."""
    default = Path(__file__).resolve().parent.parent.parent / "shared"
    return Path(os.environ.get("PLD_DATA") or default) / "data"
