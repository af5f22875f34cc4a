"""Scores against scikit-learn; the drawn tables against resampling and shuffling row by row; C8."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from engine.metrics import Verdict, macro_f1, paired_gain, permutation_p99, score, verdict
from engine.types import Interval

LABELS = ["none", "spam", "hate", "other"]
ROWS = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None, "no label"])), min_size=1, max_size=60
)


def reference_f1(gold: Sequence[str], predicted: Sequence[str | None]) -> float:
    answers = [p if p in LABELS else "" for p in predicted]
    occurring = [label for label in LABELS if label in gold or label in answers]
    return float(f1_score(gold, answers, labels=occurring, average="macro", zero_division=0))


def noisy(gold: Sequence[str], right: float, seed: int) -> list[str]:
    """Predictions that are right for about a share `right` of the rows, and random otherwise."""
    rng = np.random.default_rng(seed)
    guesses = rng.choice(LABELS, size=len(gold))
    kept = rng.random(len(gold)) < right
    return [g if keep else str(guess) for g, keep, guess in zip(gold, kept, guesses, strict=True)]


def gold_rows(n: int, seed: int = 0) -> list[str]:
    shares = [0.5, 0.3, 0.15, 0.05]
    return [str(label) for label in np.random.default_rng(seed).choice(LABELS, size=n, p=shares)]


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_scores_are_scikit_learns(rows: list[tuple[str, str | None]]) -> None:
    gold = [g for g, _ in rows]
    predicted = [p for _, p in rows]
    answers = [p if p in LABELS else "" for p in predicted]
    scores = score(gold, predicted, LABELS, seed=1, resamples=20)

    assert scores.n == len(rows)
    assert scores.macro_f1 == pytest.approx(reference_f1(gold, predicted), abs=1e-12)
    assert macro_f1(gold, predicted, LABELS) == scores.macro_f1
    assert scores.accuracy == pytest.approx(np.mean([g == p for g, p in rows]))
    assert scores.malformed_rate == pytest.approx(answers.count("") / len(rows))
    assert list(scores.per_class) == list(scores.confusion) == LABELS
    expected = precision_recall_fscore_support(gold, answers, labels=LABELS, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [scores.per_class[label][name] for label in LABELS] == pytest.approx(list(values))
    table = [[scores.confusion[g][p] for p in [*LABELS, ""]] for g in LABELS]
    np.testing.assert_array_equal(table, confusion_matrix(gold, answers, labels=[*LABELS, ""])[:-1])


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_intervals_are_ordered_and_reproducible(rows: list[tuple[str, str | None]], seed: int) -> None:
    gold, predicted = [g for g, _ in rows], [p for _, p in rows]
    scores = score(gold, predicted, LABELS, seed=seed, resamples=50)
    assert 0.0 <= scores.ci95.low <= scores.ci95.high <= 1.0
    assert scores == score(gold, predicted, LABELS, seed=seed, resamples=50)
    assert scores == score(gold[::-1], predicted[::-1], LABELS, seed=seed, resamples=50)
    assert paired_gain(gold, predicted, predicted, LABELS, seed=seed).ci95 == Interval(0.0, 0.0)


def drawn_row_by_row(statistic: Callable[[np.ndarray], float], n: int, times: int) -> Interval:
    rng = np.random.default_rng(99)
    low, high = np.percentile([statistic(rng.integers(n, size=n)) for _ in range(times)], [2.5, 97.5])
    return Interval(float(low), float(high))


def test_the_bootstrap_is_that_of_rows() -> None:
    gold = gold_rows(150)
    a, b = noisy(gold, 0.7, 1), noisy(gold, 0.5, 2)

    def at(rows: np.ndarray, predicted: Sequence[str]) -> float:
        return macro_f1([gold[r] for r in rows], [predicted[r] for r in rows], LABELS)

    of_a = drawn_row_by_row(lambda rows: at(rows, a), 150, 1500)
    of_gain = drawn_row_by_row(lambda rows: at(rows, a) - at(rows, b), 150, 1500)
    drawn = score(gold, a, LABELS, seed=7, resamples=20_000).ci95
    gain = paired_gain(gold, a, b, LABELS, seed=7, resamples=20_000)
    assert (drawn.low, drawn.high) == pytest.approx((of_a.low, of_a.high), abs=0.012)
    assert (gain.ci95.low, gain.ci95.high) == pytest.approx((of_gain.low, of_gain.high), abs=0.012)
    assert gain.difference == pytest.approx(reference_f1(gold, a) - reference_f1(gold, b))


def test_pairing_narrows_the_interval() -> None:
    gold = gold_rows(400)
    a = noisy(gold, 0.7, 1)
    b = [*a[:380], *noisy(gold, 0.1, 3)[380:]]
    gain = paired_gain(gold, a, b, LABELS, seed=7)
    alone = score(gold, a, LABELS, seed=7).ci95
    assert gain.ci95.high - gain.ci95.low < 0.6 * (alone.high - alone.low)


def test_permutations_are_those_of_rows() -> None:
    gold = gold_rows(120)
    predicted: list[str | None] = [*noisy(gold, 0.6, 4)[:110], *[None] * 10]
    rng = np.random.default_rng(5)
    shuffled = [macro_f1(gold, [predicted[r] for r in rng.permutation(120)], LABELS) for _ in range(1500)]
    drawn = permutation_p99(gold, predicted, LABELS, seed=6, permutations=20_000)
    assert drawn == pytest.approx(np.percentile(shuffled, 99), abs=0.012)
    assert drawn == permutation_p99(gold, predicted, LABELS, seed=6, permutations=20_000)


def test_blocks_of_resamples_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = gold_rows(90)
    a, b = noisy(gold, 0.7, 1), noisy(gold, 0.5, 2)
    whole = paired_gain(gold, a, b, LABELS, seed=3, resamples=101)
    monkeypatch.setattr("engine.metrics._VALUES_PER_BLOCK", 100)
    assert paired_gain(gold, a, b, LABELS, seed=3, resamples=101) == whole


def judge(n: int, compiled: float, zero_shot: float, *, shuffled: bool = False) -> Verdict:
    gold = gold_rows(n)
    answers = noisy(gold, compiled, 11)
    if shuffled:
        order = np.random.default_rng(1).permutation(n)
        answers = [answers[row] for row in order]
    return verdict(gold, answers, noisy(gold, zero_shot, 12), ["none"] * n, LABELS, seed=7)


def test_a_clear_gain() -> None:
    found = judge(800, 0.8, 0.4)
    assert found.decision == "gain"
    assert found.over_zero_shot.ci95.low > 0
    assert found.over_majority.ci95.low > 0
    assert found.macro_f1 > found.chance_p99 > found.chance_median
    assert (found.n, found.gold_labels) == (800, 4)


def test_much_data_and_no_difference_is_no_gain() -> None:
    found = judge(20_000, 0.6, 0.6)
    assert found.over_zero_shot.ci95.low < 0 < found.over_zero_shot.ci95.high < 0.05
    assert found.over_majority.ci95.low > 0
    assert found.decision == "no gain: do not deploy"


def test_worse_than_zero_shot_is_no_gain_however_little_data() -> None:
    found = judge(60, 0.2, 0.95)
    assert found.over_zero_shot.ci95.high < 0
    assert found.decision == "no gain: do not deploy"


def test_a_wide_interval_around_0_is_too_little_data() -> None:
    found = judge(60, 0.6, 0.75)
    assert found.over_zero_shot.ci95.low < 0
    assert found.over_zero_shot.ci95.high > 0.05
    assert found.decision == "too little data to tell"


def test_what_counts_as_worthwhile_is_the_callers() -> None:
    gold = gold_rows(2_000)
    rows = gold, noisy(gold, 0.6, 11), noisy(gold, 0.6, 12), ["none"] * 2_000, LABELS
    decisions = {worthwhile: verdict(*rows, seed=7, worthwhile=worthwhile) for worthwhile in (0.001, 0.2)}
    assert decisions[0.001].decision == "too little data to tell"
    assert decisions[0.2].decision == "no gain: do not deploy"


def test_predictions_untied_from_the_rows_are_no_gain() -> None:
    # against a zero-shot answer that is always malformed, and a majority, random labels look like a gain
    gold = gold_rows(4_000)
    random = noisy(gold, 0.0, 3)
    found = verdict(gold, random, [None] * 4_000, ["none"] * 4_000, LABELS, seed=7)
    assert found.over_zero_shot.ci95.low > 0
    assert found.over_majority.ci95.low > 0
    assert found.macro_f1 <= found.chance_p99
    assert found.decision == "no gain: do not deploy"
    assert judge(4_000, 0.8, 0.4, shuffled=True).decision == "no gain: do not deploy"


def test_a_handful_of_right_answers_is_too_little_data() -> None:
    gold = ["none", "spam", "none"]
    found = verdict(gold, gold, ["none"] * 3, ["none"] * 3, LABELS, seed=7)
    assert found.decision == "too little data to tell"


def test_gold_of_one_label_is_too_little_data() -> None:
    found = verdict(["spam"] * 50, ["spam"] * 50, ["none"] * 50, ["none"] * 50, LABELS, seed=7)
    assert found.gold_labels == 1
    assert found.decision == "too little data to tell"


def test_all_malformed() -> None:
    scores = score(["none", "spam"], [None, "?"], LABELS, seed=1)
    assert (scores.accuracy, scores.macro_f1, scores.malformed_rate) == (0.0, 0.0, 1.0)
    assert scores.confusion["none"] == {"none": 0, "spam": 0, "hate": 0, "other": 0, "": 1}


@pytest.mark.parametrize(
    ("gold", "predicted", "labels", "said"),
    [
        ([], [], LABELS, "no rows"),
        (["none"], [], LABELS, "as many predictions"),
        (["nonsense"], ["none"], LABELS, "'nonsense' is not in the label set"),
        (["none"], ["none"], ["none", "none"], "twice"),
        (["none"], ["none"], ["none", ""], "empty label"),
    ],
)
def test_what_is_refused(gold: list[str], predicted: list[str], labels: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        score(gold, predicted, labels, seed=1)
