"""What the server saw, so that a test or a benchmark can judge its client."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.fake_server.behaviour import FaultName
from bench.fake_server.lapses import Planted
from bench.fake_server.replies import Reply

HISTOGRAM_STEP_S = 0.1


@dataclass(slots=True)
class Tally:
    """How often one body came, was let in past the limits, and was answered usably."""

    seen: int = 0
    admitted: int = 0
    usable: int = 0


class Counts:
    """Totals since the start or the last reset.

    Memory: 8 bytes an arrival, a tally for each distinct body where bodies are told apart, and an entry for
    each lapse.
    """

    def __init__(self, in_flight: int = 0) -> None:
        self.keys: dict[bytes, Tally] = {}
        self.in_flight = in_flight
        self.peak_in_flight = in_flight
        self.by_status: Counter[int] = Counter()
        self.by_fault: Counter[FaultName] = Counter()
        self.refused: Counter[str] = Counter()
        self.planted: list[tuple[bytes, Planted]] = []
        self.usable = 0
        self.abandoned = 0
        self.invalid = 0
        self.prompt_tokens = self.completion_tokens = self.thinking_tokens = self.cached_tokens = 0
        self._arrivals = array("d")
        self._cpu_from = time.process_time()

    def arrived(self, now: float) -> None:
        """A model request is complete, at `now` seconds of a monotonic clock."""
        self._arrivals.append(now)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def tally(self, key: bytes) -> Tally:
        """The tally of one body."""
        tally = self.keys.get(key)
        if tally is None:
            tally = self.keys[key] = Tally()
        return tally

    def answered(self, reply: Reply) -> None:
        """All that there was to send is sent; status 0: nothing was."""
        self.in_flight -= 1
        if reply.status:
            self.by_status[reply.status] += 1
        key, usage = reply.key, reply.usage
        if reply.usable:
            self.usable += 1
            if key is not None:
                self.tally(key).usable += 1
        if reply.planted is not None and key is not None:
            self.planted.append((key, reply.planted))
        if usage is not None:
            self.prompt_tokens += usage.input_tokens
            self.completion_tokens += usage.output_tokens
            self.thinking_tokens += usage.thinking_tokens
            self.cached_tokens += usage.cached_tokens or 0

    def gave_up(self) -> None:
        """The client hung up before its answer was whole."""
        self.in_flight -= 1
        self.abandoned += 1

    def to_json(self, *, keys: bool = False) -> dict[str, Any]:
        """Everything, for `/fake/seen`. Times are seconds of the server's monotonic clock."""
        times = np.array(self._arrivals, dtype=np.float64)
        document: dict[str, Any] = {
            "requests": len(times),
            "usable": self.usable,
            "by_status": {str(status): n for status, n in sorted(self.by_status.items())},
            "by_fault": dict(sorted(self.by_fault.items())),
            "by_lapse": dict(sorted(Counter(one.lapse for _, one in self.planted).items())),
            "refused": dict(sorted(self.refused.items())),
            "abandoned": self.abandoned,
            "invalid": self.invalid,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "tokens": {
                "prompt": self.prompt_tokens,
                "completion": self.completion_tokens,
                "thinking": self.thinking_tokens,
                "cached": self.cached_tokens,
            },
            "arrivals": _arrivals(times),
            "distinct": len(self.keys),
            "cpu_s": time.process_time() - self._cpu_from,
        }
        if keys:
            document["keys"] = {
                key.hex(): {"seen": one.seen, "admitted": one.admitted, "usable": one.usable}
                for key, one in self.keys.items()
            }
            document["planted"] = [{"key": key.hex(), **asdict(one)} for key, one in self.planted]
        return document


def busiest(times: npt.NDArray[np.float64], window_s: float) -> int:
    """The most of the ascending `times` (n,) that lie in any half-open window of `window_s` seconds."""
    if not len(times):
        return 0
    before = np.searchsorted(times, times - window_s, side="right")
    return int((np.arange(1, len(times) + 1) - before).max())


def _arrivals(times: npt.NDArray[np.float64]) -> dict[str, Any]:
    if not len(times):
        return {"first_s": None, "last_s": None, "most_in_60s": 0, "most_in_100ms": 0, "per_100ms": []}
    steps = ((times - times[0]) / HISTOGRAM_STEP_S).astype(np.int64)
    return {
        "first_s": float(times[0]),
        "last_s": float(times[-1]),
        "most_in_60s": busiest(times, 60.0),
        "most_in_100ms": busiest(times, 0.1),
        "per_100ms": np.bincount(steps).tolist(),
    }
