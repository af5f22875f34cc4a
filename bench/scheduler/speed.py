"""CPU per request and requests a second, beside a bare loop and what people would use instead."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from typing import Any

from bench.fake_server import FakeServer, ceiling
from bench.scheduler.clients import installed
from bench.scheduler.running import run_client, spread
from bench.scheduler.workload import Task

_SLOW = {"openai": 10, "litellm": 20}
"""Clients so slow that they are given a part of the requests only: one in so many."""
_VARIANTS = (
    ("bare", False, "bare aiohttp + orjson loop"),
    ("bare", True, "bare loop, tuned"),
    ("ours", False, "pld"),
    ("ours", True, "pld, tuned"),
    ("openai", False, "OpenAI SDK under a semaphore"),
    ("litellm", False, "litellm"),
)


def measure_speed(requests: int, repeats: int) -> list[dict[str, Any]]:
    """64 and 512 in flight against a server that answers at once.

    `ratio` is CPU to the bare loop's (tuned: to the tuned one's in `ratio_tuned`), `rate_ratio` requests a
    second. `counts` says whether the server itself could do twice the bare loop's rate.
    """
    rows = []
    with FakeServer(count_keys=False) as server:
        for concurrency in (64, 512):
            task = Task("bare", server.url, requests, concurrency, folder="")
            runs = _run_all(task, repeats)
            limit = ceiling(server.url, connections=concurrency)
            rows += _rows(runs, concurrency, limit.requests_per_s)
            rows.append(
                {
                    "name": "the fake server's own ceiling",
                    "in_flight": concurrency,
                    "requests_per_s": round(limit.requests_per_s),
                    "server_cpu_us": round(limit.server_cpu_s * 100, 1),
                }
            )
    return rows


def measure_latency(seconds: float, repeats: int) -> list[dict[str, Any]]:
    """512 in flight at 200 ms a request; `ratio` is the rate to the 2,560 a second that this allows."""
    concurrency, latency_s = 512, 0.2
    ideal = concurrency / latency_s
    task = Task("bare", "", int(ideal * seconds), concurrency, folder="")
    with FakeServer(count_keys=False, latency_s=latency_s) as server:
        runs = _run_all(replace(task, url=server.url), repeats, only=("bare", "ours"))
    rows = []
    for (name, _), found in runs.items():
        rates = [one["answers"] / one["wall_s"] for one in found]
        rows.append(
            {
                "name": f"{name}, 200 ms a request",
                "in_flight": concurrency,
                "requests": found[0]["answers"],
                "runs": len(found),
                **spread("requests_per_s", rates, 0),
                "ratio": round(statistics.median(rates) / ideal, 3),
            }
        )
    return rows


def measure_cached(requests: int, repeats: int) -> list[dict[str, Any]]:
    """Answers that the response cache already holds; `ratio` is to 50,000 a second."""
    rows = []
    with FakeServer(count_keys=False) as server, tempfile.TemporaryDirectory() as folder:
        task = Task("ours", server.url, requests, 64, folder=folder, tuned=True)
        run_client(task)
        for tuned in (False, True):
            runs = [run_client(replace(task, tuned=tuned)) for _ in range(repeats)]
            if any(one["sources"] != {"cached": requests} for one in runs):
                raise RuntimeError(f"not every answer came from the cache: {runs}")
            rates = [one["answers"] / one["wall_s"] for one in runs]
            rows.append(
                {
                    "name": f"pld{', tuned' * tuned}, answers from the cache",
                    "requests": requests,
                    "runs": repeats,
                    **spread("cpu_us", [one["cpu_s"] / requests * 1e6 for one in runs]),
                    **spread("requests_per_s", rates, 0),
                    "ratio": round(statistics.median(rates) / 50_000, 3),
                }
            )
    return rows


_Runs = dict[tuple[str, str], list[dict[str, Any]]]


def _run_all(task: Task, repeats: int, only: tuple[str, ...] | None = None) -> _Runs:
    """Every client once, then again: what else the machine does falls on all of them alike."""
    variants = [one for one in _VARIANTS if installed(one[0]) and (only is None or one[0] in only)]
    runs: _Runs = {(name, client): [] for client, _, name in variants}
    for repeat in range(repeats + 1):
        for client, tuned, name in variants:
            share = _SLOW.get(client, 1)
            own = replace(task, client=client, tuned=tuned, requests=(task.requests or 0) // share)
            if repeat == 0:  # a warm-up
                own = replace(own, requests=min(own.requests or 0, 2 * own.concurrency))
            found = run_client(own)
            if found["answers"] != own.requests:
                raise RuntimeError(f"{name}: {found['answers']} answers to {own.requests} requests")
            if repeat:
                runs[name, client].append(found)
    return runs


def _rows(runs: _Runs, concurrency: int, ceiling_per_s: float) -> list[dict[str, Any]]:
    def cpu(one: dict[str, Any]) -> float:
        return float(one["cpu_s"] / one["answers"] * 1e6)

    def rate(one: dict[str, Any]) -> float:
        return float(one["answers"] / one["wall_s"])

    base = runs["bare aiohttp + orjson loop", "bare"]
    tuned = runs["bare loop, tuned", "bare"]
    bare_cpu, tuned_cpu = (statistics.median(map(cpu, found)) for found in (base, tuned))
    bare_rate = statistics.median(map(rate, base))
    rows = []
    for (name, _), found in runs.items():
        cpus, rates = list(map(cpu, found)), list(map(rate, found))
        rows.append(
            {
                "name": name,
                "in_flight": concurrency,
                "requests": found[0]["answers"],
                "runs": len(found),
                **spread("cpu_us", cpus),
                **spread("requests_per_s", rates, 0),
                "ratio": round(statistics.median(cpus) / bare_cpu, 3),
                "ratio_tuned": round(statistics.median(cpus) / tuned_cpu, 3),
                "rate_ratio": round(statistics.median(rates) / bare_rate, 3),
                "peak_mb": round(max(one["peak_mb"] for one in found)),
                "counts": ceiling_per_s >= 2 * bare_rate,
            }
        )
    return rows
