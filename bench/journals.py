"""What keeping answers costs in CPU: the response cache beside other ways to keep them.

Every journal is driven as the scheduler drives it: keys are looked up in chunks and finished answers are
committed in groups, one of each at a time, while the event loop works for each request. What counts is CPU
time of the whole process, threads and their quarrel over the interpreter lock included, without that work and
without what the same loop takes when nothing is kept.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.journal_kinds import Cache, IndexedLog, Kept, Log, Nothing, Rows
from engine.ports import Record
from engine.types import Usage

CHUNK, GROUP = 256, 128  # as the scheduler does it
_LOOP_WORK = 700  # turns of a loop per request: some tens of microseconds


_BASE = "SQLite, a row per answer"
JOURNALS: dict[str, Callable[[Path], Kept]] = {
    "log, no index": Log,
    "log, SQLite as its index": IndexedLog,
    _BASE: Rows,
    "response cache": Cache,
}


@dataclass(frozen=True)
class _Task:
    """Requests to look up, and whether those not found are answered and committed."""

    what: str
    numbers: Sequence[int]
    commit: bool


def measure(
    requests: int = 16_384, stored: int = 200_000, payload_bytes: int = 300, repeats: int = 5
) -> list[dict[str, Any]]:
    """CPU microseconds per request, over those of keeping nothing: the median of `repeats` runs.

    Each run starts from a fresh copy of a journal with `stored` answers. `ratio` is to SQLite with a row per
    answer, in the same run.
    """
    new = range(stored, stored + requests)
    rng = random.Random(7)
    known: dict[str, list[int]] = {
        "cached, in the order they were kept": [n % stored for n in range(requests)],
        "cached, in any order": rng.choices(range(stored), k=requests),
    }
    tasks = [_Task("lookup and commit", new, commit=True)]
    tasks += [_Task(what, numbers, commit=False) for what, numbers in known.items()]
    costs: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, journal in JOURNALS.items():
            _fill(journal, folder / name, stored, payload_bytes)
        for _ in range(repeats):
            for task in tasks:
                # beside each other, so that a machine that slows down does so for all of them
                base = _cost(Nothing, None, folder / "run", task, payload_bytes)
                for name, journal in JOURNALS.items():
                    if task.commit or journal is not Log:
                        cost = _cost(journal, folder / name, folder / "run", task, payload_bytes)
                        costs.setdefault((task.what, name), []).append(cost - base)
    rows = []
    for (what, name), found in costs.items():
        median = statistics.median(found)
        rows.append(
            {
                "name": name,
                "what": what,
                "requests": requests,
                "stored": stored,
                "payload_bytes": payload_bytes,
                "runs": repeats,
                "us_per_request": round(median, 1),
                "us_min": round(min(found), 1),
                "us_max": round(max(found), 1),
                "ratio": round(median / statistics.median(costs[what, _BASE]), 3),
            }
        )
    return rows


def _fill(journal: Callable[[Path], Kept], folder: Path, stored: int, payload_bytes: int) -> None:
    async def fill(kept: Kept) -> None:
        for start in range(0, stored, GROUP):
            await kept.commit([_record(n, payload_bytes) for n in range(start, min(start + GROUP, stored))])

    kept = journal(folder)
    try:
        asyncio.run(fill(kept))
    finally:
        kept.close()


def _cost(
    journal: Callable[[Path], Kept], template: Path | None, folder: Path, task: _Task, payload_bytes: int
) -> float:
    """CPU microseconds per request, the loop's own work taken off."""
    shutil.rmtree(folder, ignore_errors=True)
    if template is not None:
        shutil.copytree(template, folder)
        os.sync()  # what the copy has left to write is no part of this
    records = [_record(number, payload_bytes) for number in task.numbers]
    kept = journal(folder)
    gc.collect()
    gc.freeze()  # the records are not the journal's
    try:
        began = time.process_time()
        found, worked = asyncio.run(_drive(kept, records, commit=task.commit))
        cpu_s = time.process_time() - began - worked
    finally:
        gc.unfreeze()
        kept.close()
    expected = 0 if task.commit or template is None else len(records)
    if found != expected:
        raise RuntimeError(f"{folder}: {found} of {expected} answers were found")
    return cpu_s / len(records) * 1e6


async def _drive(kept: Kept, records: Sequence[Record], *, commit: bool) -> tuple[int, float]:
    """How many records were found, and the CPU seconds of the loop's own work."""
    ready: asyncio.Queue[Record | None] = asyncio.Queue(4 * CHUNK)
    answered: asyncio.Queue[Record | None] = asyncio.Queue(2 * GROUP)
    found = 0
    worked = 0.0

    async def feed() -> None:
        nonlocal found
        for start in range(0, len(records), CHUNK):
            chunk = records[start : start + CHUNK]
            known = await kept.lookup([record.key for record in chunk])
            for record in chunk:
                found += known.get(record.key) == record.payload
                await ready.put(record)
        await ready.put(None)

    async def work() -> None:
        nonlocal worked
        number = 0
        while (record := await ready.get()) is not None:
            began = time.thread_time()
            for _ in range(_LOOP_WORK):
                pass
            worked += time.thread_time() - began
            if commit:
                await answered.put(record)
            number += 1
            if number % 4 == 0:
                await asyncio.sleep(0)
        await answered.put(None)

    async def save() -> None:
        group: list[Record] = []
        more = True
        while more:
            record = await answered.get()
            more = record is not None
            if record is not None:
                group.append(record)
            if len(group) == GROUP or (group and not more):
                await kept.commit(group)
                group = []

    async with asyncio.TaskGroup() as tasks:
        for part in (feed, work, save):
            tasks.create_task(part())
    return found, worked


def _record(number: int, payload_bytes: int) -> Record:
    name = b"%d" % number
    key = hashlib.sha256(name).digest()
    payload = name.ljust(payload_bytes, b".")
    return Record(
        key, f"row {number}", "extraction", "openai:model@host", payload, None, Usage(800, 40), 1e-5
    )
