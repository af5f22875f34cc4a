"""What a bulk classification comes to."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.ports import CacheReceipt
from engine.receipts import receipt_json


@dataclass(frozen=True)
class ClassifyResult:
    """Figures of the whole classification, earlier calls included; speed and memory are this call's.

    `rows = classified + failed`. `duplicates` of them were answered by an earlier row with the same text, and
    `review` of the classified ones are unsure; of `cut` ones, which were too long, the student has not seen
    the middle. `temperature` calibrated the confidences; None: they are as the student told them.
    `label_counts` has the rows per label, most frequent first, `confidence_histogram` those in each tenth of
    confidence from 0 to 1. `rows_per_s` counts the rows that this call finished. `peak_rss_mb` is the
    process's largest memory so far, in MB (10⁶ bytes).
    `receipt` tells what the student's prefix cache was worth since the student was opened, not in earlier
    calls; None where the student does not tell, or nothing was left to ask.
    """

    rows: int
    classified: int
    failed: int
    duplicates: int
    review: int
    cut: int
    temperature: float | None
    rows_per_s: float
    peak_rss_mb: float
    seconds: float
    parts: int
    label_counts: Mapping[str, int] = field(hash=False)
    confidence_histogram: tuple[int, ...]
    out: Path
    receipt: CacheReceipt | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `pld classify --json` prints."""
        figures = asdict(self)
        del figures["receipt"]
        return figures | {
            "label_counts": dict(self.label_counts),
            "out": str(self.out),
            "rows_per_s": round(self.rows_per_s, 1),
            "peak_rss_mb": round(self.peak_rss_mb, 1),
            "seconds": round(self.seconds, 3),
            "prefix_cache": receipt_json(self.receipt),
        }


def peak_rss_mb() -> float:
    """The largest resident memory that this process has had, in MB."""
    try:
        # Linux's getrusage also counts what the parent held when it started this process
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, KiB elsewhere
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
