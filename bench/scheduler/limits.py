"""How much of a strict limit is used, and how often it is run into."""

from __future__ import annotations

from typing import Any

from bench.fake_server import FakeServer
from bench.scheduler.running import run_client
from bench.scheduler.workload import Task

_REQUESTS_PER_MINUTE = 12_000
_TOKENS_PER_MINUTE = 6_000_000
_CONCURRENCY = 256


def measure_limits(seconds: float) -> list[dict[str, Any]]:
    """A server whose buckets refill evenly and hold a tenth of a second (for tokens: ten mean requests).

    `ratio` is the share of the allowed rate that was used; `refused` the share of attempts that drew a 429;
    `lost` requests without an answer. The last rows configure no limit: concurrency finds it out.
    """
    rows = []
    for name, server, client in (
        (
            "requests per minute",
            {"requests_per_minute": _REQUESTS_PER_MINUTE},
            {"requests_per_minute": _REQUESTS_PER_MINUTE},
        ),
        (
            "requests per minute, by asyncio-throttle",
            {"requests_per_minute": _REQUESTS_PER_MINUTE},
            {"requests_per_minute": _REQUESTS_PER_MINUTE, "throttle": True},
        ),
        (
            "tokens per minute",
            {"tokens_per_minute": _TOKENS_PER_MINUTE},
            {"tokens_per_minute": _TOKENS_PER_MINUTE},
        ),
        ("hidden requests per minute", {"requests_per_minute": _REQUESTS_PER_MINUTE}, {"adaptive": True}),
        ("hidden tokens per minute", {"tokens_per_minute": _TOKENS_PER_MINUTE}, {"adaptive": True}),
        ("hidden concurrency of 40", {"max_in_flight": 40, "overload_status": 503}, {"adaptive": True}),
    ):
        rows.append(_measure(f"pld, {name}", server, client, seconds))
    return rows


def _measure(name: str, server: dict[str, Any], client: dict[str, Any], seconds: float) -> dict[str, Any]:
    latency_s = 0.2
    behaviour = {
        "latency": "uniform",
        "latency_s": latency_s,
        "latency_spread": 0.5,
        "count_keys": False,
        "prompt_tokens": 592,
        "completion_tokens": 8,
        **server,
    }
    with FakeServer(**behaviour) as fake:
        task = Task("ours", fake.url, None, _CONCURRENCY, folder="", seconds=seconds, tuned=True, **client)
        found = run_client(task)
        seen = fake.seen()
    answers = found["answers"]
    if "tokens_per_minute" in server:
        allowed = server["tokens_per_minute"] / 60.0 / 600.0
    elif "requests_per_minute" in server:
        allowed = server["requests_per_minute"] / 60.0
    else:
        allowed = server["max_in_flight"] / latency_s
    arrivals = seen["arrivals"]
    took_s = arrivals["last_s"] - arrivals["first_s"]
    refused = sum(seen["refused"].values())
    return {
        "name": name,
        "seconds": round(took_s, 1),
        "requests": answers + sum(found["failures"].values()),
        "requests_per_s": round(answers / took_s, 1),
        "allowed_per_s": round(allowed, 1),
        "ratio": round(answers / took_s / allowed, 3),
        "refused": round(refused / max(seen["requests"], 1), 5),
        "lost": sum(found["failures"].values()),
        "most_in_60s": arrivals["most_in_60s"],
        "most_in_100ms": arrivals["most_in_100ms"],
        "server_held_up_s": round(seen["held_up"]["total_s"], 2),
    }
