"""Bulk classification with the local student, beside the same student called with nothing around it."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from adapters.registry import open_student
from bench.quality import Job, write_job
from bench.subprocesses import run_pld
from engine.store.compiled import load_prompt
from engine.student import StudentPrompt


def texts_of(data: Path, name: str, rows: int, seed: int) -> list[str]:
    """`rows` different texts in the words of a data set: real ones, each with words of another one at its
    end.
    """
    source = pl.read_parquet(data / f"{name}.parquet", columns=["text"])["text"].to_list()
    rng = random.Random(seed)
    return [
        f"{rng.choice(source)} {' '.join(rng.choice(source).split()[:6])} {number}" for number in range(rows)
    ]


def measure(data: Path, name: str, rows: int, repeats: int) -> list[dict[str, Any]]:
    """Rows per second of `pld classify` and of the bare student, the median of `repeats` runs each."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = write_job(Job(name, 7, shuffled=False), data, folder)
        run_pld(["compile", config, "--run", folder / "run"], folder)
        texts = texts_of(data, name, rows, seed=7)
        pl.DataFrame({"text": texts}).write_parquet(folder / "rows.parquet")
        bare = [asyncio.run(_bare(folder / "run", texts)) for _ in range(repeats)]
        ours, memory = [], []
        for number in range(repeats):
            found, cost = run_pld(
                ["classify", folder / "run", folder / "rows.parquet", "-o", folder / f"out-{number}"], folder
            )
            if found["rows"] != rows or found["classified"] + found["failed"] != rows:
                raise RuntimeError(f"{rows} rows went in, {found['classified']} + {found['failed']} came out")
            ours.append(found["rows_per_s"])
            memory.append(cost.peak_mb)
    base = statistics.median(bare)
    return [
        _row("local student, nothing around it", rows, bare, base, None),
        _row("pld classify, local student", rows, ours, base, max(memory)),
    ]


async def _bare(run: Path, texts: list[str]) -> float:
    student = open_student("local:")
    prompt = StudentPrompt(load_prompt(run))
    began = time.monotonic()
    for start in range(0, len(texts), student.max_batch):
        await student.complete(
            [prompt.request("", text) for text in texts[start : start + student.max_batch]]
        )
    return len(texts) / (time.monotonic() - began)


def _row(name: str, rows: int, rates: list[float], base: float, peak_mb: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "rows": rows,
        "runs": len(rates),
        "rows_per_s": round(statistics.median(rates)),
        "rows_per_s_min": round(min(rates)),
        "rows_per_s_max": round(max(rates)),
        "peak_mb": None if peak_mb is None else round(peak_mb),
        "ratio": round(statistics.median(rates) / base, 3),
    }
