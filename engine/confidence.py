"""Whether a student's confidence can be taken at its word, and the temperature that makes it so.

Language models are seldom as often right as they are sure. Temperature scaling (Guo et al., On Calibration of
Modern Neural Networks, 2017) divides the log-probabilities of the labels by one number, found on rows whose
labels are known: above 1 it makes the student humbler. No answer changes, only how sure it is said to be.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.errors import RunError

Floats: TypeAlias = npt.NDArray[np.float64]

FORMAT = 1
METHOD = "temperature scaling"
BINS = 15
FOLDS = 5
LEAST_ROWS = 50
"""Fewer rows say too little of how sure a student may be."""

NO_CHANCE = -9999.0
"""The logarithm of a probability of 0 as vLLM tells it, and of a label that is not told at all."""
_ZERO_BELOW = -1000.0
_FLOOR = math.log(1e-6)
_LOWEST, _HIGHEST = 0.1, 100.0


class Told(NamedTuple):
    """What the student said of one row with a known label: indices of that label and of its own answer, and
    the natural-log probabilities of all labels, shape (n_labels,)."""

    id: str
    gold: int
    answer: int
    logprobs: Floats


@dataclass(frozen=True, slots=True)
class Reliability:
    """Expected calibration error of the `n` answers that came with probabilities, as told (`ece_raw`) and at
    the `temperature` in force. What is None is not known, and `reason` says why there is no temperature."""

    n: int
    ece_raw: float | None
    ece_calibrated: float | None
    temperature: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The temperature for one prompt with one student, or the `reason` why there is none.

    `n` validation rows had an answer with probabilities. `ece` is the expected calibration error, `nll` the
    mean negative log-likelihood of the gold labels in nats; *after* is cross-validated: each row is judged at
    the temperature that the other folds give.
    """

    prompt_sha256: str
    student: str
    n: int
    temperature: float | None = None
    ece_before: float | None = None
    ece_after: float | None = None
    nll_before: float | None = None
    nll_after: float | None = None
    reason: str = ""

    @property
    def reliability(self) -> Reliability:
        """How the rows that it was found on are told; without praise for having been found on them."""
        return Reliability(self.n, self.ece_before, self.ece_after, self.temperature, self.reason)

    def why_not(self, prompt_sha256: str, student: str) -> str:
        """Why it cannot be applied to answers of `student` to that prompt; "" where it can."""
        if self.prompt_sha256 != prompt_sha256:
            return "it was calibrated for another prompt; compile again"
        if self.student != student:
            return f"it was calibrated for another student, {self.student}; compile with this one"
        return self.reason

    def to_json(self) -> dict[str, Any]:
        """The content of calibration.json."""
        return {"format": FORMAT, "method": METHOD, "bins": BINS, "folds": FOLDS, **asdict(self)}

    @staticmethod
    def from_json(document: Any, source: str) -> Calibration:
        """Read calibration.json back. Raises `RunError` where it is none."""
        try:
            if document["format"] != FORMAT:
                raise RunError(
                    f"{source}: format {document['format']!r} is not known to this version ({FORMAT}); "
                    "compile again"
                )
            found = Calibration(**{one.name: document[one.name] for one in fields(Calibration)})
            known = found.temperature is None or _LOWEST <= found.temperature <= _HIGHEST
        except (KeyError, TypeError) as exc:
            raise RunError(f"{source}: is no calibration ({exc!r}); compile again") from exc
        if not known:
            raise RunError(f"{source}: {found.temperature!r} is no temperature; compile again")
        return found


def confidence_of(
    logprobs: Mapping[str, float], label: str, temperature: float | None = None
) -> tuple[float, float]:
    """The probability of `label` among all labels, and how far it lies above the likeliest other one.

    At a `temperature` it is the softmax of the log-probabilities divided by that; a probability of 0 then
    counts as `floored` has it.
    """
    values = list(logprobs.values())
    # in shares of the likeliest: even where all are told a probability of 0 there is something to divide by
    top = max(values)
    if temperature is None:
        shares = {name: math.exp(value - top) for name, value in logprobs.items()}
    else:
        floor = _floor(min(values), values)
        top = max(top, floor)
        shares = {name: math.exp((max(value, floor) - top) / temperature) for name, value in logprobs.items()}
    total = sum(shares.values())
    confidence = shares.pop(label) / total
    return confidence, confidence - max(shares.values(), default=0.0) / total


def calibrate(rows: Sequence[Told], *, prompt_sha256: str, student: str) -> Calibration:
    """Find the temperature at which `rows`, answers on validation, are likeliest, or say why there is none.

    It minimises the negative log-likelihood of the gold labels over the logarithm of the temperature, from
    0.1 to 100, with one more row of average probabilities whose label may be any: so a student that made no
    mistake in n rows is not taken to be surer than n rows can show (the idea of Platt, 1999). A label that
    was told a probability of 0 counts with 1e-6, or with the lowest probability told in that answer where
    that is lower; else one mistake of that kind would be infinitely unlikely.

    Folds go by a hash of the sample id. A temperature is used only where it makes held-out rows likelier than
    the student's own probabilities do, and chance would hardly (the lower end of the 95% interval of the mean
    difference is above 0), and the calibration error of those rows smaller. The order of the rows does not
    matter.
    """
    rows = sorted(rows, key=lambda row: row.id)
    n = len(rows)
    if not n:
        return Calibration(prompt_sha256, student, 0, reason="the student tells no probabilities of labels")
    values, gold, answer = _stacked(rows)
    right = gold == answer
    before = expected_calibration_error(_confidences(rows, None), right)
    if n < LEAST_ROWS:
        why = f"only {n} rows of validation have an answer with probabilities, {LEAST_ROWS} are needed"
        return Calibration(prompt_sha256, student, n, ece_before=before, reason=why)
    fold = np.array([hashlib.sha256(row.id.encode("utf-8", "surrogatepass")).digest()[0] for row in rows])
    fold %= FOLDS
    held_out = np.empty_like(values)
    for number in range(FOLDS):
        inside = fold == number
        if inside.any() and not inside.all():
            held_out[inside] = values[inside] / _best_temperature(values[~inside], gold[~inside])
        else:  # ids that all hash alike
            held_out[inside] = values[inside]
    held_out = _log_softmax(held_out)
    at_gold = np.arange(n), gold
    gains = held_out[at_gold] - _log_softmax(values)[at_gold]
    nll_before, nll_after = _nll(_log_softmax(values), gold), _nll(held_out, gold)
    found = Calibration(
        prompt_sha256,
        student,
        n,
        temperature=_best_temperature(values, gold),
        ece_before=before,
        nll_before=nll_before,
        nll_after=nll_after,
    )
    likelier = gains.mean() > 1.96 * gains.std(ddof=1) / math.sqrt(n)
    after = expected_calibration_error(np.exp(held_out[np.arange(n), answer]), right)
    if likelier and after < before:
        return replace(found, ece_after=after)
    why = "on held-out rows no temperature is clearly better than the student's own probabilities"
    if likelier:
        why = "a temperature makes held-out labels likelier, but the error of the confidence larger"
    return replace(found, temperature=None, reason=why)


def reliability(rows: Sequence[Told], calibration: Calibration | None, why_not: str = "") -> Reliability:
    """How far the confidence of answers on other rows can be trusted, as told and calibrated.

    `why_not` says why there is no calibration, or why it does not apply.
    """
    if not rows:
        return Reliability(0, None, None, None, "the student tells no probabilities of labels")
    rows = sorted(rows, key=lambda row: row.id)
    right = np.array([row.gold == row.answer for row in rows])
    temperature = None if calibration is None or why_not else calibration.temperature
    calibrated = None
    if temperature is not None:
        calibrated = expected_calibration_error(_confidences(rows, temperature), right)
    raw = expected_calibration_error(_confidences(rows, None), right)
    return Reliability(len(rows), raw, calibrated, temperature, why_not)


def expected_calibration_error(confidence: Floats, right: npt.NDArray[np.bool_], bins: int = BINS) -> float:
    """The mean distance of confidence and accuracy over bins of rows, weighted by their rows, from 0 to 1.

    `confidence` and `right` have shape (n,). The bins are of equal mass (Nguyen and O'Connor, 2015), not of
    equal width as Guo's: a good student's confidence lies near 1, where bins of equal width would be one bin.
    Rows of equal confidence stay in one bin, so their order does not matter.
    """
    n = len(confidence)
    if not n:
        raise ValueError("there are no rows to judge")
    ranks = np.searchsorted(np.sort(confidence), confidence)
    bin_of = ranks * bins // n
    excess = np.bincount(bin_of, weights=confidence - right, minlength=bins)
    return float(np.abs(excess).sum() / n)


def floored(logprobs: Floats) -> Floats:
    """Log-probabilities (n, k) with a probability of 0 raised to 1e-6, or to the lowest other one of its row
    where that is lower."""
    told = np.where(logprobs > _ZERO_BELOW, logprobs, np.inf)
    floors = np.minimum(told.min(axis=1, keepdims=True), _FLOOR)
    raised: Floats = np.maximum(logprobs, floors)
    return raised


def _floor(lowest: float, values: Sequence[float]) -> float:
    """`floored` for one answer."""
    if lowest > _ZERO_BELOW:
        return lowest  # nothing to raise
    return min((_FLOOR, *(value for value in values if value > _ZERO_BELOW)))


def _stacked(rows: Sequence[Told]) -> tuple[Floats, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Floored log-probabilities (n, k), gold and answered labels (n,)."""
    values = floored(np.stack([row.logprobs for row in rows]))
    return values, np.array([row.gold for row in rows]), np.array([row.answer for row in rows])


def _confidences(rows: Sequence[Told], temperature: float | None) -> Floats:
    """The confidence of each answer, (n,), as `confidence_of` has it."""
    values = np.stack([row.logprobs for row in rows])
    shares = _log_softmax(values if temperature is None else floored(values) / temperature)
    confidences: Floats = np.exp(shares[np.arange(len(rows)), [row.answer for row in rows]])
    return confidences


def _best_temperature(values: Floats, gold: npt.NDArray[np.intp]) -> float:
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - half a second, needed once in a compilation

    n = len(gold)

    def loss(log_temperature: float) -> float:
        shares = _log_softmax(values / math.exp(log_temperature))
        return float(_nll(shares, gold) - shares.mean() / n)

    found = minimize_scalar(loss, bounds=(math.log(_LOWEST), math.log(_HIGHEST)), method="bounded")
    # four digits are more than any validation set can tell
    return float(f"{math.exp(found.x):.4g}")


def _nll(log_shares: Floats, gold: npt.NDArray[np.intp]) -> float:
    return float(-log_shares[np.arange(len(gold)), gold].mean())


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
