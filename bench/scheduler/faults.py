"""The same job with and without faults of the server."""

from __future__ import annotations

from typing import Any

from bench.fake_server import FakeServer
from bench.scheduler.running import run_client
from bench.scheduler.workload import Task

FAULTS = {"error_500": 0.05, "disconnect": 0.02, "hang": 0.01, "malformed": 0.01}
_LATENCY_S = 0.5


def measure_faults(requests: int, deadline_s: float = 5.0) -> list[dict[str, Any]]:
    """5% 500s, 2% disconnects, 1% hangs, 1% malformed bodies, `deadline_s` for an attempt; `ratio` is wall
    time less one deadline to that of the job without faults, `twice` how many requests the server answered
    usably more than once (as it does where it is held up for longer than the deadline).
    """
    rows = []
    base = 0.0
    for name, faults in (("no faults", {}), ("faults", FAULTS)):
        with FakeServer(faults=faults, latency_s=_LATENCY_S, seed=7) as server:
            task = Task("ours", server.url, requests, 512, folder="", timeout_s=deadline_s, tuned=True)
            found = run_client(task)
            seen = server.seen(keys=True)
        late = deadline_s if faults else 0.0
        base = base or found["wall_s"]
        rows.append(
            {
                "name": f"pld, {name}",
                "requests": requests,
                "answers": found["answers"],
                "failures": sum(found["failures"].values()),
                "retries": found["retries"],
                "twice": sum(one["usable"] > 1 for one in seen["keys"].values()),
                "seconds": round(found["wall_s"], 2),
                "ratio": round((found["wall_s"] - late) / base, 3),
            }
        )
    return rows
