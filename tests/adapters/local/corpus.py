"""A made-up corpus for the local models: signs of three labels among filler, some labels wrong."""

from __future__ import annotations

import random

from engine.types import SPLITS, Sample

LABELS = ("billing", "outage", "praise")
SIGNS = {
    "billing": [
        "invoice",
        "refund",
        "overcharged",
        "credit card",
        "receipt",
        "payment",
        "tax form",
        "discount",
    ],
    "outage": ["offline", "unreachable", "timeout", "crashed", "error code", "restart", "lagging", "frozen"],
    "praise": ["wonderful", "thank you", "delighted", "brilliant", "superb", "love it", "well done", "kudos"],
}
FILLER = [
    "the",
    "a",
    "our",
    "this",
    "was",
    "today",
    "it",
    "again",
    "with",
    "support",
    "team",
    "page",
    "since",
    "and",
    "please",
    "how",
    "when",
    "my",
    "account",
]


def samples(n: int = 1200, seed: int = 1, noise: float = 0.05) -> list[Sample]:
    """Rows of all splits. Half of them hold a sign of a second label too, but then two of their own."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        label = rng.choices(LABELS, [6, 3, 2])[0]
        parts = rng.choices(FILLER, k=8)
        parts += rng.sample(SIGNS[label], 2)
        if rng.random() < 0.5:
            parts += rng.sample(SIGNS[rng.choice([one for one in LABELS if one != label])], 1)
        rng.shuffle(parts)
        if rng.random() < noise:
            label = rng.choice(LABELS)
        split = SPLITS[(0, 0, 1, 2)[number % 4]]
        rows.append(Sample(f"r{number:04d}", " ".join(parts), label, split))
    return rows


def train(n: int = 1200, seed: int = 1) -> list[Sample]:
    """The training rows alone."""
    return [sample for sample in samples(n, seed) if sample.split == "train"]
