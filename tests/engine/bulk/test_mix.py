"""The alarm on the label mix: it tells a shift, and does not cry wolf."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact, hypergeom

from engine.bulk import classify, mix, predicted_on_validation
from engine.bulk.mix import LabelMix, fisher
from engine.events import Notice
from tests.support.bulk import LABELS, PROMPT, Student, expected, write_ndjson
from tests.support.fakes import Listener


def alarms(shares: list[float], now: list[float], *, n: int, rows: int, seed: int) -> list[str]:
    """What is said of `rows` texts labelled with `now`, after `n` on validation with `shares`."""
    rng = np.random.default_rng(seed)
    labels = [f"label {index}" for index in range(len(shares))]
    counts = rng.multinomial(n, shares)
    listener = Listener()
    alarm = LabelMix(labels, dict(zip(labels, counts.tolist(), strict=True)), listener)
    for label in rng.choice(len(now), rows, p=now).tolist():
        alarm.count(label)
    return [event.text for event in listener.events if isinstance(event, Notice) and event.warning]


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_fisher_is_twice_the_smaller_tail(n: int, m: int, data: Any) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    drawn = hypergeom(n + m, a + b, m)
    tail = drawn.sf(b - 1) if b * n > a * m else drawn.cdf(b)
    assert fisher(a, n, b, m) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_fisher_is_no_smaller_than_the_usual_two_sided_one() -> None:
    for a, n, b, m in ((30, 300, 800, 5000), (3, 300, 200, 5000), (0, 100, 30, 500), (150, 300, 2500, 5000)):
        assert fisher(a, n, b, m) >= 0.5 * fisher_exact([[a, n - a], [b, m - b]]).pvalue


def test_the_rate_of_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 jobs of 60 windows each, drawn as validation was, at most 1% are expected to warn: 3."""
    monkeypatch.setattr(mix, "WINDOW", 500)  # as many looks at fewer rows
    shares = [0.6, 0.25, 0.1, 0.05]
    monkeypatch.setattr(mix, "_LEAST_RATIO", 1.0)
    monkeypatch.setattr(mix, "_LEAST_DIFFERENCE", 0.0)
    rng = np.random.default_rng(7)
    warned = 0
    for _ in range(300):
        listener = Listener()
        counts = rng.multinomial(300, shares).tolist()
        alarm = LabelMix(LABELS4, dict(zip(LABELS4, counts, strict=True)), listener)
        for window in rng.multinomial(500, shares, size=60).tolist():
            alarm._counts, alarm._left = window, 1
            alarm._counts[0] -= 1
            alarm.count(0)
        warned += bool(listener.events)
    assert warned <= 8  # of a binomial with mean 3, more than 8 come once in 300 runs; the seed is fixed


LABELS4 = ("a", "b", "c", "d")


def test_a_shift_is_told_once_for_each_label_with_both_shares() -> None:
    found = alarms([0.7, 0.2, 0.1], [0.4, 0.5, 0.1], n=400, rows=30_000, seed=1)
    assert len(found) == 2
    assert {line.split(" is ")[0] for line in found} == {"label mix: label 0", "label mix: label 1"}
    assert "of the last 500 texts" in found[0]
    assert "of the 400 on validation" in found[0]


def test_a_rare_label_that_becomes_common_is_told() -> None:
    found = alarms([0.995, 0.005], [0.95, 0.05], n=1000, rows=6_000, seed=2)
    assert [line.split(" is ")[0] for line in found] == ["label mix: label 1"]


def test_what_is_certain_but_small_is_not_worth_a_warning() -> None:
    assert alarms([0.5, 0.5], [0.55, 0.45], n=200_000, rows=40_000, seed=3) == []
    assert alarms([0.999, 0.001], [0.992, 0.008], n=200_000, rows=40_000, seed=3) == []


def test_few_texts_are_no_reason_for_an_alarm() -> None:
    assert alarms([0.9, 0.1], [0.1, 0.9], n=400, rows=499, seed=4) == []


def test_a_job_warns_and_goes_on_and_equal_texts_are_one(tmp_path: Path) -> None:
    texts = [f"comment {n}" for n in range(700)]
    first = next(text for text in texts if expected(text) == LABELS[0])
    path = write_ndjson(tmp_path / "rows.ndjson", [*texts, *[first] * 3000])
    for name, counts, warnings in (("as", (100, 100, 100), 0), ("not", (280, 10, 10), 3)):
        listener = Listener()
        found = dict(zip(LABELS, counts, strict=True))
        done = asyncio.run(classify(PROMPT, Student(), path, tmp_path / name, expected=found, emit=listener))
        assert done.rows == 3700
        told = [event for event in listener.events if isinstance(event, Notice)]
        assert len([one for one in told if one.warning]) == warnings


def test_the_mix_on_validation_comes_from_the_manifest() -> None:
    document = {
        "validation": {
            "prompt_sha256": "abc",
            "student": "local",
            "compiled": {"confusion": {"a": {"a": 7, "b": 1, "": 2}, "b": {"a": 3, "b": 5, "": 0}}},
        }
    }
    assert predicted_on_validation(document, "abc", "local") == {"a": 10, "b": 6}
    assert predicted_on_validation(document, "abc", "another") is None
    assert predicted_on_validation(document, "another", "local") is None
    assert predicted_on_validation({"validation": None}, "abc", "local") is None
