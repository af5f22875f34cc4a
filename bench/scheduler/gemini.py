"""CPU per request to Gemini: this project's way over google-genai's client, and the SDK's own."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from bench.fake_server import FakeServer
from bench.scheduler.running import run_client, spread
from bench.scheduler.workload import Task

_CONCURRENCY = 64
_SDK = "google-genai's generate_content under a semaphore"
_VARIANTS = (
    (_SDK, "genai", False),
    (f"{_SDK}, tuned", "genai", True),
    ("pld, Gemini", "ours_gemini", False),
    ("pld, Gemini, tuned", "ours_gemini", True),
)


def measure_gemini(requests: int, repeats: int) -> list[dict[str, Any]]:
    """64 in flight against a server that answers at once; the SDK is used as its documentation says, with the
    HTTP client that it makes itself.

    This project's figure holds scheduler, limits and response cache too. `ratio` is CPU to the SDK's; the
    tuned runs have this project's event loop and garbage collection settings, both of them.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in _VARIANTS}
    with FakeServer(count_keys=False) as server:
        for repeat in range(repeats + 1):
            for name, client, tuned in _VARIANTS:
                task = Task(client, server.url, requests, _CONCURRENCY, folder="", tuned=tuned)
                if repeat == 0:  # a warm-up
                    task = replace(task, requests=2 * _CONCURRENCY)
                found = run_client(task)
                if found["answers"] != task.requests:
                    raise RuntimeError(f"{name}: {found['answers']} answers to {task.requests} requests")
                if repeat:
                    runs[name].append(found)
    cpu_us = {name: [one["cpu_s"] / requests * 1e6 for one in found] for name, found in runs.items()}
    base = statistics.median(cpu_us[_SDK])
    return [
        {
            "name": name,
            "in_flight": _CONCURRENCY,
            "requests": requests,
            "runs": repeats,
            **spread("cpu_us", cpu_us[name]),
            **spread("requests_per_s", [requests / one["wall_s"] for one in found], 0),
            "ratio": round(statistics.median(cpu_us[name]) / base, 3),
            "peak_mb": round(max(one["peak_mb"] for one in found)),
        }
        for name, found in runs.items()
    ]
