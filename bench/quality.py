"""What the local models reach on real data: compile, evaluate, and the same with shuffled training labels."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from bench.subprocesses import run_pld

DATA_SETS = {
    "hate_speech_offensive": "Is this message hate speech, offensive language without hate, or neither?",
    "stereoset": "Which kind of bias does the sentence play on?",
    "contract_nli": "Does the contract excerpt entail the hypothesis, contradict it, or not mention it?",
    "hatecheck": "Is this text hateful?",
    "openai_moderation": "Which category of harmful content does this text fall under, if any?",
    "logiqa": "Which option answers the question about the passage?",
}


@dataclass(frozen=True)
class Job:
    """One compilation and its evaluation on test."""

    name: str
    seed: int
    shuffled: bool
    ablation: bool = False


def write_job(job: Job, data: Path, folder: Path) -> Path:
    """Make the job's configuration (and its shuffled data) in `folder`; returns the configuration's path."""
    source = data / f"{job.name}.parquet"
    frame = pl.read_parquet(source, columns=["id", "text", "label", "split"])
    labels = sorted(frame["label"].unique())
    if job.shuffled:
        # training labels are dealt out anew; validation and test stay true
        train = frame.filter(pl.col("split") == "train")
        dealt = train.with_columns(pl.col("label").shuffle(seed=job.seed))
        source = folder / f"{job.name}-shuffled.parquet"
        pl.concat([dealt, frame.filter(pl.col("split") != "train")]).write_parquet(source)
    config = folder / "pld.toml"
    config.write_text(
        f'[task]\nname = "{job.name}"\ndescription = "{DATA_SETS[job.name]}"\n'
        f'labels = {labels!r}\nid = "id"\n'
        f'[data]\nfile = "{source}"\nsplit = "split"\n[run]\nseed = {job.seed}\n',
        encoding="utf-8",
    )
    return config


def run_job(job: Job, data: Path) -> dict[str, Any]:
    """One row of figures: test macro-F1 of the prompt and its baselines, CPU seconds, prompt tokens."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_job(job, data, folder)
        flags = ["--ablation"] if job.ablation else []
        compiled, cost = run_pld(["compile", config, "--run", folder / "run", *flags], folder)
        found, _ = run_pld(["evaluate", folder / "run"], folder)
    systems = ("compiled", "clustered", "resolver_only", "zero_shot", "majority", "tfidf_logreg")
    return {
        "name": job.name,
        "seed": job.seed,
        "shuffled": job.shuffled,
        **{system: round(found[system]["macro_f1"], 4) for system in systems if system in found},
        "ci95": [round(value, 4) for value in found["compiled"]["ci95"]],
        "validation_macro_f1": round(compiled["validation"]["macro_f1"], 4),
        "verdict": found["verdict"]["decision"],
        "prompt_tokens": compiled["prompt_tokens"],
        "instructions": compiled["instructions"],
        "cpu_s": round(cost.cpu_s, 1),
        "wall_s": round(cost.wall_s, 1),
        "peak_mb": round(cost.peak_mb),
        "ratio": round(found["compiled"]["macro_f1"] / found["tfidf_logreg"]["macro_f1"], 3),
    }


def measure(
    names: list[str], seeds: list[int], data: Path, *, shuffled: bool, ablation: bool
) -> Iterator[dict[str, Any]]:
    """Every data set with every seed; with `shuffled`, the same on shuffled training labels beside it."""
    for name in names:
        for seed in seeds:
            yield run_job(Job(name, seed, shuffled=False, ablation=ablation), data)
            if shuffled:
                yield run_job(Job(name, seed, shuffled=True), data)


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, median and spread of `compiled` over the seeds of each data set."""
    groups: dict[tuple[str, bool], list[float]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["shuffled"]), []).append(row["compiled"])
    return [
        {
            "name": name,
            "shuffled": shuffled,
            "seeds": len(values),
            "compiled_mean": round(statistics.fmean(values), 4),
            "compiled_median": round(statistics.median(values), 4),
            "compiled_min": min(values),
            "compiled_max": max(values),
        }
        for (name, shuffled), values in groups.items()
    ]
