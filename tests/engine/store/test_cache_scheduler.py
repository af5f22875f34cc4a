"""Scheduler and response cache together, in a process that is killed (C2)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.scheduler import Limits, Scheduler
from engine.store.cache import ResponseStore, RunJournal
from engine.types import Answer, Result
from tests.support.fakes import ScriptedModel, request

ROOT = Path(__file__).resolve().parents[3]
N, CONCURRENCY, MAX_UNCOMMITTED = 2000, 16, 32

_CHILD = """
import asyncio, sys
from tests.engine.store.test_cache_scheduler import run_job
asyncio.run(run_job(sys.argv[1], sys.argv[2], latency_s=0.002))
"""


async def run_job(folder: str, log: str, *, latency_s: float) -> list[Result[Answer]]:
    """All requests of one run; each sending and each result is a line of the log, written through."""
    with ResponseStore(folder) as store, Path(log).open("ab", buffering=0) as lines:  # noqa: ASYNC230
        model = ScriptedModel(latency_s=lambda text, attempt: latency_s)
        model.on_send = lambda asked: lines.write(b"sent %s\n" % asked.id.encode()) and None
        scheduler = Scheduler(RunJournal(store, "run"), max_uncommitted=MAX_UNCOMMITTED)
        lane = scheduler.chat(model, Limits(concurrency=CONCURRENCY))
        done = []
        async with lane.stream((request(f"r{i}") for i in range(N)), stage="s", total=N) as results:
            async for result in results:
                lines.write(b"done %s\n" % result.id.encode())
                done.append(result)
        return done


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, kills: int) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    log.touch()
    for _ in range(kills):
        before = log.read_bytes().count(b"sent")
        child = subprocess.Popen([sys.executable, "-c", _CHILD, str(folder), str(log)], cwd=ROOT)
        while log.read_bytes().count(b"sent") < before + 300 and child.poll() is None:
            os.sched_yield()
        os.kill(child.pid, signal.SIGKILL)
        child.wait(60)
    done_before = {line.split()[1] for line in log.read_bytes().splitlines() if line.startswith(b"done")}

    results = asyncio.run(run_job(str(folder), str(log), latency_s=0.0))
    assert sorted(r.id for r in results) == sorted(f"r{i}" for i in range(N))
    assert all(isinstance(r.outcome, Answer) and r.outcome.text == f"answer to {r.id}" for r in results)
    sources = {r.id.encode(): r.source for r in results}
    assert all(sources[request_id] == "cached" for request_id in done_before), "what was counted survives"
    sent = [line for line in log.read_bytes().splitlines() if line.startswith(b"sent")]
    assert len(sent) - len(set(sent)) <= kills * (CONCURRENCY + MAX_UNCOMMITTED)


def test_a_second_run_pays_nothing(tmp_path: Path) -> None:
    first = asyncio.run(run_job(str(tmp_path), str(tmp_path / "log"), latency_s=0.0))
    second = asyncio.run(run_job(str(tmp_path), str(tmp_path / "log"), latency_s=0.0))
    assert {r.source for r in first} == {"sent"}
    assert {r.source for r in second} == {"cached"}
    assert {r.id: r.outcome for r in first} == {r.id: r.outcome for r in second}
