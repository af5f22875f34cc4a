"""A long stream: memory, and how late the event loop is."""

from __future__ import annotations

from typing import Any

from bench.fake_server import FakeServer
from bench.scheduler.running import run_client
from bench.scheduler.workload import Task

_FROM = 100_000


def measure_memory(requests: int) -> list[dict[str, Any]]:
    """`growth_mb` is resident memory at the end less that after 100,000 answers; `loop_lag_ms` the worst
    99th percentile (of half a minute) that was told on the way.
    """
    with FakeServer(count_keys=False) as server:
        task = Task("ours", server.url, requests, 512, folder="", tuned=True)
        found = run_client(task)
    memory = {int(done): size for done, size in found["memory_mb"].items()}
    return [
        {
            "name": "pld, a long stream",
            "in_flight": 512,
            "requests": found["answers"],
            "requests_per_s": round(found["answers"] / found["wall_s"]),
            "cpu_us": round(found["cpu_s"] / found["answers"] * 1e6, 2),
            "memory_mb": round(memory[max(memory)]),
            "growth_mb": round(memory[max(memory)] - memory[min(memory)], 1),
            "growth_from": max(_FROM, min(memory)),
            "loop_lag_ms": found["loop_lag_ms"],
        }
    ]
