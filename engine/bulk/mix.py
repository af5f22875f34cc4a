"""An alarm when the labels of a job are no longer mixed as they were on validation.

It may be the traffic that has changed, or the input (another column, another language), or the student: all
are worth a look, none is a reason to stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.events import EventSink, Notice

FIRST_WINDOW = 500
WINDOW = 5_000
FALSE_ALARMS = 0.01
"""The chance that a whole job, however long, warns though its texts are drawn as validation's were."""

# What is certain need not matter: a share has to be off by a quarter of itself, and by a percentage point.
_LEAST_RATIO = 1.25
_LEAST_DIFFERENCE = 0.01


class LabelMix:
    """Compares the labels of distinct texts, window by window, with the student's on validation.

    The first window has 500 texts, so that a wrong input is told early, the others 5,000. In each, Fisher's
    exact test is made for every label on the two counts (validation is a sample too). Its level is
    `FALSE_ALARMS` divided among the labels and, as 6 / (π k)² for window k, among all windows to come; so the
    chance of any false warning is at most `FALSE_ALARMS`. Equal texts count once: a text that is sent a
    thousand times is no change of a thousand rows. One warning per label and call.
    """

    def __init__(self, labels: Sequence[str], expected: Mapping[str, int], emit: EventSink) -> None:
        """`expected` counts the student's answers on validation, by label."""
        self._labels = labels
        self._expected = [expected.get(label, 0) for label in labels]
        self._emit = emit
        self._counts = [0] * len(labels)
        self._left = FIRST_WINDOW
        self._windows = 0
        self._told: set[int] = set()

    def count(self, label: int) -> None:
        """Count one text by the index of its label."""
        self._counts[label] += 1
        self._left -= 1
        if self._left == 0:
            self._windows += 1
            self._compare()
            self._counts = [0] * len(self._labels)
            self._left = WINDOW

    def _compare(self) -> None:
        level = FALSE_ALARMS * 6 / (math.pi * self._windows) ** 2 / len(self._labels)
        n, size = sum(self._expected), sum(self._counts)
        for index, (was, now) in enumerate(zip(self._expected, self._counts, strict=True)):
            before, share = was / n, now / size
            small = abs(share - before) < _LEAST_DIFFERENCE
            if index in self._told or small or max(share, before) < _LEAST_RATIO * min(share, before):
                continue
            if fisher(was, n, now, size) < level:
                self._told.add(index)
                self._emit(
                    Notice(
                        f"label mix: {self._labels[index]} is {share:.1%} of the last {size:,} texts, and "
                        f"was {before:.1%} of the {n:,} on validation: look at some of these rows",
                        warning=True,
                    )
                )


def fisher(a: int, n: int, b: int, m: int) -> float:
    """The two-sided p-value of Fisher's exact test, as twice the smaller tail, at most 1.

    Whether `a` of `n` and `b` of `m` have the same share: given their sum, `b` is hypergeometric.
    """
    total, drawn = n + m, a + b
    step = 1 if b * n > a * m else -1
    end = min(m, drawn) if step > 0 else max(0, drawn - n)
    # log of C(m, b) C(n, drawn - b) / C(total, drawn)
    term = math.exp(_log_choose(m, b) + _log_choose(n, drawn - b) - _log_choose(total, drawn))
    tail = term
    for x in range(b, end, step):
        if step > 0:
            term *= (m - x) * (drawn - x) / ((x + 1) * (n - drawn + x + 1))
        else:
            term *= x * (n - drawn + x) / ((m - x + 1) * (drawn - x + 1))
        tail += term
        if term < 1e-12 * tail:
            break
    return min(1.0, 2.0 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def predicted_on_validation(
    manifest: Mapping[str, Any], prompt_sha256: str, student: str
) -> dict[str, int] | None:
    """How often the student answered each label on validation, from the manifest of a compilation.

    None where it does not say, or says it of another prompt or student: their mix may be another one.
    """
    judged = manifest.get("validation")
    if not judged or (judged.get("prompt_sha256"), judged.get("student")) != (prompt_sha256, student):
        return None
    counts: dict[str, int] = {}
    for answers in judged["compiled"]["confusion"].values():
        for label, count in answers.items():
            counts[label] = counts.get(label, 0) + count
    counts.pop("", None)  # answers that were no label
    return counts if any(counts.values()) else None
