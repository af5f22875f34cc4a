"""Temperature scaling: what it finds, what it leaves alone, and that its figures are honest."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from engine.confidence import (
    NO_CHANCE,
    Calibration,
    Told,
    calibrate,
    confidence_of,
    expected_calibration_error,
    floored,
    reliability,
)
from engine.errors import RunError

LABELS = ("a", "b", "c", "d")
TOLD = st.lists(
    st.one_of(st.floats(-40, 0), st.sampled_from([NO_CHANCE, -math.inf])), min_size=2, max_size=4
).filter(lambda values: max(values) > -40)


def judged(rows: Sequence[Told]) -> Calibration:
    return calibrate(rows, prompt_sha256="hash", student="student")


def student(n: int, sureness: float, seed: int = 3) -> list[Told]:
    """Rows whose gold labels are drawn by true probabilities, told as if `sureness` times as certain."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(n, len(LABELS)))
    gold = [rng.choice(len(LABELS), p=softmax(row)) for row in logits]
    told = np.log(softmax(sureness * logits, axis=1))
    return [Told(f"r{i}", gold[i], int(told[i].argmax()), told[i]) for i in range(n)]


# --- the error ---------------------------------------------------------------------------------------


def test_the_error_is_the_distance_of_confidence_and_accuracy_in_bins() -> None:
    confidence = np.array([0.2, 0.4, 0.6, 0.9])
    right = np.array([False, True, True, True])
    # bins {.2, .4}: .3 against 1/2; {.6, .9}: .75 against 1
    assert expected_calibration_error(confidence, right, 2) == pytest.approx((0.2 + 0.25) / 2)
    assert expected_calibration_error(confidence, right, 1) == pytest.approx(abs(2.1 - 3) / 4)
    assert expected_calibration_error(np.ones(7), np.ones(7, dtype=bool)) == 0
    with pytest.raises(ValueError, match="no rows"):
        expected_calibration_error(np.array([]), np.array([], dtype=bool))


@given(
    rows=st.lists(st.tuples(st.sampled_from([0.3, 0.5, 0.5001, 0.9]), st.booleans()), min_size=1),
    seed=st.integers(0, 99),
)
def test_the_order_of_rows_does_not_matter_to_the_error(rows: list[tuple[float, bool]], seed: int) -> None:
    def error(some: Sequence[tuple[float, bool]]) -> float:
        return expected_calibration_error(
            np.array([one for one, _ in some]), np.array([right for _, right in some])
        )

    shuffled = list(rows)
    np.random.default_rng(seed).shuffle(shuffled)
    assert error([(float(one), bool(right)) for one, right in shuffled]) == pytest.approx(error(rows))
    assert 0 <= error(rows) <= 1


# --- confidence at a temperature ---------------------------------------------------------------------


@given(values=TOLD, temperature=st.floats(0.1, 100))
def test_confidence_is_the_softmax_and_no_answer_changes(values: list[float], temperature: float) -> None:
    told = dict(zip(LABELS, values, strict=False))
    expected = softmax(floored(np.array([values])) / temperature, axis=1)[0]
    found = {label: confidence_of(told, label, temperature) for label in told}
    for label, share in zip(told, expected, strict=True):
        confidence, margin = found[label]
        assert confidence == pytest.approx(share)
        others = [one for name, (one, _) in found.items() if name != label]
        assert margin == pytest.approx(confidence - max(others), abs=1e-12)
    best = max(told, key=lambda label: told[label])
    assert found[best][0] >= max(confidence for confidence, _ in found.values())


@given(values=st.lists(st.floats(-40, 0), min_size=1, max_size=4))
def test_temperature_1_changes_nothing_where_no_probability_is_0(values: list[float]) -> None:
    told = dict(zip(LABELS, values, strict=False))
    for label in told:
        assert confidence_of(told, label, 1.0) == pytest.approx(confidence_of(told, label), abs=1e-12)


def test_a_probability_of_0_is_raised_but_not_above_another() -> None:
    raised = floored(np.array([[-0.1, NO_CHANCE, -3.0], [-0.1, -math.inf, -20.0], [-0.1, -30.0, -2.0]]))
    assert raised.tolist() == [[-0.1, math.log(1e-6), -3.0], [-0.1, -20.0, -20.0], [-0.1, -30.0, -2.0]]
    assert confidence_of({"a": -0.1, "b": NO_CHANCE}, "b") == (0.0, pytest.approx(-1.0))
    assert confidence_of({"a": 0.0, "b": NO_CHANCE}, "b", 1.0)[0] == pytest.approx(1e-6, rel=1e-4)


# --- calibration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sureness", [0.5, 2.0, 4.0])
def test_finds_how_much_too_sure_a_student_is(sureness: float) -> None:
    rows = student(3000, sureness)
    found = judged(rows)
    assert found.temperature == pytest.approx(sureness, rel=0.1)
    assert found.n == 3000
    assert found.ece_before is not None
    assert found.ece_after is not None
    assert found.ece_after < 0.04 < found.ece_before
    assert found.nll_after is not None
    assert found.nll_before is not None
    assert found.nll_after < found.nll_before
    fresh = reliability(student(3000, sureness, seed=4), found)
    assert fresh.ece_raw is not None
    assert fresh.ece_calibrated is not None
    assert fresh.ece_calibrated < 0.04 < fresh.ece_raw
    assert fresh.temperature == found.temperature


def test_a_student_that_may_be_taken_at_its_word_is() -> None:
    found = judged(student(1000, 1.0))
    assert found.temperature is found.ece_after is None
    assert "no temperature is clearly better" in found.reason
    assert found.ece_before == found.reliability.ece_raw
    assert found.why_not("hash", "student") == found.reason


def test_the_figure_after_is_that_of_rows_the_temperature_was_not_found_on() -> None:
    rows = student(60, 3.0)
    found = judged(rows)
    assert found.temperature is not None
    values = np.stack([row.logprobs for row in rows])
    gold = [row.gold for row in rows]
    fitted = -np.log(softmax(values / found.temperature, axis=1))[range(60), gold].mean()
    assert found.nll_after is not None
    assert found.nll_after > fitted, "held-out rows are less likely than those it was fitted on"


def test_the_order_of_rows_does_not_matter() -> None:
    rows = student(200, 3.0)
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(200)]
    assert judged(shuffled) == judged(rows)


def test_mistakes_at_probability_0_count_but_not_without_end() -> None:
    sure = np.array([0.0, *[NO_CHANCE] * 3])
    rows = [Told(f"r{n}", int(n % 10 == 0), 0, sure) for n in range(200)]
    found = judged(rows)
    assert found.temperature is not None
    confidence, _ = confidence_of(dict(zip(LABELS, sure, strict=True)), "a", found.temperature)
    assert confidence == pytest.approx(0.9, abs=0.05), "as often as it is right"
    assert found.ece_before == pytest.approx(0.1)
    assert found.ece_after is not None
    assert found.ece_after < 0.05


def test_a_student_without_mistakes_is_no_surer_than_the_rows_can_show() -> None:
    told = np.log(np.array([0.7, 0.1, 0.1, 0.1]))
    found = judged([Told(f"r{n}", 0, 0, told) for n in range(100)])
    assert found.temperature is not None
    confidence, _ = confidence_of(dict(zip(LABELS, told, strict=True)), "a", found.temperature)
    assert 0.97 < confidence < 0.998


def test_too_little_to_go_by() -> None:
    few, none = judged(student(49, 3.0)), judged([])
    assert few.temperature is none.temperature is None
    assert "only 49 rows" in few.reason
    assert few.ece_before is not None
    assert "tells no probabilities" in none.reason
    assert (none.n, none.ece_before) == (0, None)
    assert reliability([], few).ece_raw is None
    assert reliability(student(20, 1.0), None, "why").reason == "why"


def test_it_holds_for_its_prompt_and_student_alone() -> None:
    found = judged(student(200, 3.0))
    assert found.why_not("hash", "student") == ""
    assert "another prompt" in found.why_not("other", "student")
    assert "another student" in found.why_not("hash", "other")
    other = reliability(student(200, 3.0), found, found.why_not("hash", "other"))
    assert other.temperature is other.ece_calibrated is None
    assert other.ece_raw is not None


def test_is_read_as_it_was_written_or_not_at_all() -> None:
    for found in (judged(student(200, 3.0)), judged([])):
        document = json.loads(json.dumps(found.to_json()))
        assert document["method"] == "temperature scaling"
        assert Calibration.from_json(document, "calibration.json") == found
    good = judged(student(200, 3.0)).to_json()
    for changed in ({"format": 2}, {"temperature": -1.0}, {"temperature": "1"}):
        with pytest.raises(RunError, match=r"^calibration\.json: .*compile again") as caught:
            Calibration.from_json(good | changed, "calibration.json")
        assert "\n" not in str(caught.value)
    for broken in ([], {"format": 1}, None):
        with pytest.raises(RunError, match="is no calibration"):
            Calibration.from_json(broken, "calibration.json")


@pytest.mark.parametrize("temperature", [None, 0.5, 3.0])
def test_labels_that_were_all_told_no_chance_have_equal_shares(temperature: float | None) -> None:
    confidence, margin = confidence_of(dict.fromkeys("abcd", NO_CHANCE), "b", temperature)
    assert (confidence, margin) == (0.25, 0.0)
