"""`kill -9` at random moments of one job (by requests that the server has seen), resumed until it is done."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.fake_server import FakeServer
from bench.scheduler.running import run_client, start_client
from bench.scheduler.workload import Task

_CONCURRENCY = 64
_MAX_UNCOMMITTED = 256


def measure_kills(requests: int, kills: int) -> list[dict[str, Any]]:
    """`repeated` requests were sent again though the server had answered them; `bound` is what C2 allows.

    `equal` says whether the output is that of an uninterrupted run, byte for byte.
    """
    with FakeServer(echo="digest", latency_s=0.02) as server, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        task = Task("ours", server.url, requests, _CONCURRENCY, folder="", tuned=True)
        run_client(replace(task, folder=str(folder / "whole"), output=str(folder / "whole.json")))
        server.reset()
        rng = random.Random(7)
        killed = replace(task, folder=str(folder / "killed"), output=str(folder / "killed.json"))
        count = 0
        for moment in sorted(rng.sample(range(1, requests), kills)):
            with start_client(killed) as child:
                while child.poll() is None and server.seen()["requests"] < moment:
                    time.sleep(rng.uniform(0.0, 0.02))
                count += child.poll() is None
        run_client(killed)
        seen = server.seen(keys=True)
        equal = (folder / "whole.json").read_bytes() == (folder / "killed.json").read_bytes()
    return [
        {
            "name": "pld, kill -9",
            "requests": requests,
            "kills": count,
            "repeated": sum(one["seen"] - 1 for one in seen["keys"].values()),
            "bound": count * (_CONCURRENCY + _MAX_UNCOMMITTED),
            "lost": requests - len(seen["keys"]),
            "equal": equal,
        }
    ]
