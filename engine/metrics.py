"""Scores of predictions, how sure they are, and the verdict on a compiled prompt (C8).

Macro-F1 depends on the rows only through how often each gold label met each prediction. Drawing n rows with
replacement makes these counts multinomial, shuffling the predictions makes them hypergeometric; so the counts
are drawn directly, and a thousand resamples cost about the same for a thousand rows as for a million.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.types import Interval, Scores

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Predictions: TypeAlias = Sequence[str | None]
Decision: TypeAlias = Literal["gain", "no gain: do not deploy", "too little data to tell"]

WORTHWHILE = 0.05
"""A gain in macro-F1 that the data must rule out before the verdict says that there is none."""

_VALUES_PER_BLOCK = 2**22


@dataclass(frozen=True, slots=True)
class PairedGain:
    """Macro-F1 of one system minus that of another on the same rows, and its paired bootstrap interval."""

    difference: float
    ci95: Interval


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a compiled prompt is worth (C8), with the numbers behind it.

    `chance_median` and `chance_p99` are percentiles of macro-F1 over permutations of the predictions;
    `gold_labels` is how many labels occur in gold.
    """

    decision: Decision
    n: int
    gold_labels: int
    macro_f1: float
    over_zero_shot: PairedGain
    over_majority: PairedGain
    chance_median: float
    chance_p99: float
    worthwhile: float


def macro_f1(gold: Sequence[str], predicted: Predictions, labels: Sequence[str]) -> float:
    """Macro-F1 alone, as `score` defines it; for choosing between candidates."""
    cells, counts = _tally(labels, gold, predicted)
    return float(_macro_f1(counts, cells[0], cells[1], len(labels)))


def score(
    gold: Sequence[str], predicted: Predictions, labels: Sequence[str], *, seed: int, resamples: int = 1000
) -> Scores:
    """Accuracy, macro-F1 with its percentile bootstrap interval, figures per class and the confusion.

    `labels` is the label set. A prediction that is None or not in it is wrong and counts as malformed, never
    as a class. Macro-F1 is scikit-learn's `f1_score(average="macro", zero_division=0)` over the labels that
    occur in gold or predictions; in the bootstrap, over those that occur in the resample. `per_class` and
    `confusion` hold every label, in the order of `labels`.

    Raises `ValueError` when there are no rows, the lengths differ, a gold label is not in `labels`, or
    `labels` holds "" or a label twice.
    """
    cells, counts = _tally(labels, gold, predicted)
    size = len(labels)
    draws = [_macro_f1(block, cells[0], cells[1], size) for block in _resampled(counts, resamples, seed)]
    table = np.zeros((size, size + 1), np.int64)
    table[cells[0], cells[1]] = counts
    right, support, claimed = table.diagonal(), table.sum(axis=1), table.sum(axis=0)[:size]
    precision, recall, f1 = (
        _ratio(right, claimed),
        _ratio(right, support),
        _ratio(2 * right, support + claimed),
    )
    return Scores(
        n=len(gold),
        accuracy=float(right.sum() / len(gold)),
        macro_f1=float(_macro_f1(counts, cells[0], cells[1], size)),
        ci95=_interval95(np.concatenate(draws)),
        per_class={
            label: {
                "precision": float(precision[k]),
                "recall": float(recall[k]),
                "f1": float(f1[k]),
                "support": int(support[k]),
            }
            for k, label in enumerate(labels)
        },
        confusion={
            label: dict(zip([*labels, ""], table[k].tolist(), strict=True)) for k, label in enumerate(labels)
        },
        malformed_rate=float(table[:, size].sum() / len(gold)),
    )


def paired_gain(
    gold: Sequence[str],
    a: Predictions,
    b: Predictions,
    labels: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
) -> PairedGain:
    """Macro-F1 of `a` minus macro-F1 of `b`; both are scored on the same rows of each resample.

    Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Raises as `score`.
    """
    cells, counts = _tally(labels, gold, a, b)

    def difference(weights: Ints) -> Floats:
        of_a = _macro_f1(weights, cells[0], cells[1], len(labels))
        return of_a - _macro_f1(weights, cells[0], cells[2], len(labels))

    draws = [difference(block) for block in _resampled(counts, resamples, seed)]
    return PairedGain(float(difference(counts)), _interval95(np.concatenate(draws)))


def permutation_p99(
    gold: Sequence[str], predicted: Predictions, labels: Sequence[str], *, seed: int, permutations: int = 1000
) -> float:
    """The 99th percentile of macro-F1 over random permutations of the predictions. Raises as `score`.

    What predictions with these class shares reach by chance: a macro-F1 above it is tied to the rows.
    """
    return float(np.percentile(_permuted(gold, predicted, labels, seed, permutations), 99))


def verdict(
    gold: Sequence[str],
    compiled: Predictions,
    zero_shot: Predictions,
    majority: Predictions,
    labels: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
    permutations: int = 1000,
    worthwhile: float = WORTHWHILE,
) -> Verdict:
    """The verdict of C8 on the predictions of a compiled prompt, against two baselines on the same rows.

    Three things are to be shown: that macro-F1 rises over zero-shot and over the majority class (the lower
    end of each paired interval is above 0), and that it exceeds the 99th percentile over permutations. All
    three shown is a *gain*. What is not shown may be unlikely or merely unclear: an interval that reaches up
    to `worthwhile` is wide, it leaves room for a gain that matters, and so does a 99th percentile that lies
    `worthwhile` or more above the median. When nothing but such wide results stands against a gain, there is
    *too little data to tell*; as there is when gold holds a single label. Otherwise there is *no gain*: with
    much data and an interval closely around 0, that is the answer.

    Raises as `score`.
    """
    value = macro_f1(gold, compiled, labels)
    over_zero_shot = paired_gain(gold, compiled, zero_shot, labels, seed=seed, resamples=resamples)
    over_majority = paired_gain(gold, compiled, majority, labels, seed=seed, resamples=resamples)
    chance = _permuted(gold, compiled, labels, seed, permutations)
    median, p99 = (float(level) for level in np.percentile(chance, [50, 99]))
    gold_labels = len(set(gold))

    # of each thing to be shown: is it, and if not, is there room for it?
    findings = [
        *((gain.ci95.low > 0, gain.ci95.high >= worthwhile) for gain in (over_zero_shot, over_majority)),
        (value > p99, p99 - median >= worthwhile),
    ]
    decision: Decision = "no gain: do not deploy"
    if all(shown for shown, _ in findings):
        decision = "gain"
    elif gold_labels < 2 or all(shown or unclear for shown, unclear in findings):
        decision = "too little data to tell"
    return Verdict(
        decision=decision,
        n=len(gold),
        gold_labels=gold_labels,
        macro_f1=value,
        over_zero_shot=over_zero_shot,
        over_majority=over_majority,
        chance_median=median,
        chance_p99=p99,
        worthwhile=worthwhile,
    )


def _tally(labels: Sequence[str], gold: Sequence[str], *systems: Predictions) -> tuple[Ints, Ints]:
    """The combinations of gold label and predictions that occur, and how often each does.

    Cells are (1 + systems, m): row 0 codes the gold label by its place in `labels`, the others a prediction
    likewise, with `len(labels)` for malformed. Counts are (m,), all above 0, and sum to the number of rows.
    """
    places = {label: k for k, label in enumerate(labels)}
    if len(places) != len(labels) or "" in places:
        raise ValueError("the label set holds an empty label or a label twice")
    if not gold:
        raise ValueError("there are no rows to score")
    if any(len(system) != len(gold) for system in systems):
        raise ValueError(f"{len(gold)} gold labels need as many predictions")
    unknown = set(gold) - places.keys()
    if unknown:
        raise ValueError(f"gold label {min(unknown)!r} is not in the label set")
    malformed = len(labels)
    codes = [[places[label] for label in gold]]
    codes += [[malformed if p is None else places.get(p, malformed) for p in system] for system in systems]
    shape = (len(labels) + 1,) * len(codes)
    keys, counts = np.unique(np.ravel_multi_index(codes, shape), return_counts=True)
    return np.array(np.unravel_index(keys, shape), np.int64), counts.astype(np.int64)


def _macro_f1(weights: Ints, gold: Ints, predicted: Ints, size: int) -> Floats:
    """Macro-F1 where the cell of label `gold[i]` and prediction `predicted[i]` counts `weights[..., i]`."""
    is_gold = np.eye(size + 1)[gold, :size]
    is_claimed = np.eye(size + 1)[predicted, :size]
    right = weights @ (is_gold * is_claimed)
    return _mean_f1(right, weights @ is_gold + weights @ is_claimed)


def _mean_f1(right: Floats, support_plus_claimed: Floats) -> Floats:
    """F1 = 2 right / (support + claimed), averaged over the labels that occur (the last axis)."""
    occurring = np.count_nonzero(support_plus_claimed, axis=-1)
    mean: Floats = _ratio(2 * right, support_plus_claimed).sum(axis=-1) / occurring
    return mean


def _ratio(part: npt.NDArray[np.number], whole: npt.NDArray[np.number]) -> Floats:
    """part / whole, and 0 where whole, and so part, is 0 (scikit-learn's `zero_division=0`)."""
    return np.asarray(part / np.maximum(whole, 1), np.float64)


def _resampled(counts: Ints, resamples: int, seed: int) -> Iterator[Ints]:
    """Bootstrap resamples of the counts, (resamples, m) in all, in blocks of bounded size."""
    rng = np.random.default_rng(seed)
    n = int(counts.sum())
    step = max(1, _VALUES_PER_BLOCK // len(counts))
    for start in range(0, resamples, step):
        yield rng.multinomial(n, counts / n, size=min(step, resamples - start))


def _permuted(
    gold: Sequence[str], predicted: Predictions, labels: Sequence[str], seed: int, permutations: int
) -> Floats:
    """Macro-F1 of `permutations` random orders of the predictions, (permutations,).

    Gold rows of one label after another draw their predictions, without replacement, from those left over.
    """
    rng = np.random.default_rng(seed)
    cells, counts = _tally(labels, gold, predicted)
    size = len(labels)
    support = np.bincount(cells[0], weights=counts, minlength=size).astype(np.int64)
    claimed = np.bincount(cells[1], weights=counts, minlength=size + 1).astype(np.int64)
    left = np.tile(claimed, (permutations, 1))
    right = np.zeros((permutations, size), np.int64)
    for k in np.flatnonzero(support):
        wanted = np.full(permutations, support[k])
        others = left.sum(axis=1)
        for j in np.flatnonzero(claimed):
            others -= left[:, j]
            drawn = rng.hypergeometric(left[:, j], others, wanted)
            left[:, j] -= drawn
            wanted -= drawn
            if j == k:
                right[:, k] = drawn
    return _mean_f1(right.astype(np.float64), (support + claimed[:size]).astype(np.float64))


def _interval95(draws: Floats) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(low), float(high))
