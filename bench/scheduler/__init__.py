"""The scheduler with the adapter that ships, beside other clients, against the fake server."""

from bench.scheduler.faults import measure_faults
from bench.scheduler.gemini import measure_gemini
from bench.scheduler.kills import measure_kills
from bench.scheduler.limits import measure_limits
from bench.scheduler.memory import measure_memory
from bench.scheduler.speed import measure_cached, measure_latency, measure_speed

__all__ = [
    "measure_cached",
    "measure_faults",
    "measure_gemini",
    "measure_kills",
    "measure_latency",
    "measure_limits",
    "measure_memory",
    "measure_speed",
]
