"""A small labelled corpus of our own making, and its configuration: for tests of the whole pipeline."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl

from engine.config import Config
from engine.config_file import load_config

WORDS = {
    "billing": ["invoice", "refund", "charged", "payment", "receipt"],
    "outage": ["offline", "unreachable", "timeout", "crashed", "restarting"],
    "praise": ["wonderful", "thanks", "delighted", "brilliant", "superb"],
}
FILLER = ["the", "a", "our", "this", "was", "today", "it", "again", "with", "support", "team", "page"]


def rows(n: int = 240, seed: int = 1, noise: float = 0.04) -> list[dict[str, str]]:
    """Rows with id, text, label and split; a few labels are wrong, as in life."""
    rng = random.Random(seed)
    made = []
    for number in range(n):
        label = rng.choice(sorted(WORDS))
        words = rng.choices(FILLER, k=7) + rng.sample(WORDS[label], 2) + [f"ticket{number}"]
        rng.shuffle(words)
        if rng.random() < noise:
            label = rng.choice(sorted(WORDS))
        split = "train" if number % 2 == 0 else "validation" if number % 4 == 1 else "test"
        made.append({"id": f"r{number:04d}", "text": " ".join(words), "label": label, "split": split})
    return made


def write(folder: Path, data: list[dict[str, str]] | None = None, more: str = "") -> Path:
    """Write data and configuration into `folder`; returns the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows() if data is None else data).write_parquet(folder / "data.parquet")
    config = folder / "pld.toml"
    config.write_text(
        '[task]\nname = "tickets"\ndescription = "What is this message to support about?"\n'
        f'labels = {sorted(WORDS)!r}\nid = "id"\n'
        '[data]\nfile = "data.parquet"\nsplit = "split"\n'
        '[cluster]\nmethod = "dbscan"\nmin_samples = 3\n[resolve]\nmax_rounds = 3\n' + more,
        encoding="utf-8",
    )
    return config


def config(folder: Path, data: list[dict[str, str]] | None = None, more: str = "") -> Config:
    """The configuration of `write`, loaded."""
    return load_config(write(folder, data, more))
