"""What the resolver is shown: failures of one confusion, each with its nearest successes (M9)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.fences import block, fence
from engine.tokens import estimate_tokens
from engine.types import FloatVector, Sample


@dataclass(frozen=True)
class Confusion:
    """Training rows of `gold` that the student called `predicted`, and rows like them that it got right."""

    gold: str
    predicted: str
    failures: tuple[Sample, ...]
    successes: tuple[Sample, ...]

    def rendered(self, max_edits: int) -> str:
        """The cases as fences, successes beside failures, with the number of edits that they may bring."""
        shown = [
            fence("case", one.text, kind="failure", label=self.gold, predicted=self.predicted)
            for one in self.failures
        ]
        shown += [
            fence("case", one.text, kind="success", label=one.label, predicted=one.label)
            for one in self.successes
        ]
        return block(
            "cases", "\n".join(shown), label=self.gold, predicted=self.predicted, max_edits=max_edits
        )


class CaseSelector:
    """Picks failures and their nearest successes for each confusion.

    Near means near by the vectors of the micro-rules behind the rows; rows without one (their rule was set
    aside) come last, in seeded order. `vectors` has shape (n_rules, dim), unit norm; `row_of` maps a sample
    id to its row.
    """

    def __init__(
        self, vectors: FloatVector, row_of: Mapping[str, int], *, max_tokens: int, max_cases: int | None
    ) -> None:
        self._vectors = vectors
        self._row_of = row_of
        self._max_tokens = max_tokens
        self._max_cases = max_cases

    def confusions(
        self,
        samples: Sequence[Sample],
        predicted: Mapping[str, str | None],
        *,
        most: int,
        rng: np.random.Generator,
    ) -> list[Confusion]:
        """The `most` commonest confusions among `samples`, commonest first; malformed answers aside."""
        failures: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        successes: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            answer = predicted[sample.id]
            if answer == sample.label:
                successes[sample.label].append(sample)
            elif answer is not None:
                failures[sample.label, answer].append(sample)
        commonest = sorted(failures, key=lambda pair: (-len(failures[pair]), pair))[:most]
        return [self._confusion(pair, failures[pair], successes, rng) for pair in commonest]

    def _confusion(
        self,
        pair: tuple[str, str],
        failed: Sequence[Sample],
        successes: Mapping[str, Sequence[Sample]],
        rng: np.random.Generator,
    ) -> Confusion:
        gold, predicted = pair
        shuffled = [failed[i] for i in rng.permutation(len(failed))]
        room = self._max_tokens // 2
        cases = None if self._max_cases is None else max(1, self._max_cases // 2)
        chosen = _fitting(shuffled, room, cases)
        beside: list[Sample] = []
        for label in (gold, predicted):
            near = self._nearest(chosen, successes.get(label, ()), rng)
            beside += _fitting(near, room // 2, None if cases is None else max(1, cases // 2))
        return Confusion(gold, predicted, _by_id(chosen), _by_id(beside))

    def _nearest(
        self, failed: Sequence[Sample], right: Sequence[Sample], rng: np.random.Generator
    ) -> list[Sample]:
        """`right`, those nearest to any of `failed` first."""
        order = rng.permutation(len(right))
        rows = np.array([self._row_of.get(sample.id, -1) for sample in right], dtype=np.int64)
        asked = [self._row_of[sample.id] for sample in failed if sample.id in self._row_of]
        nearness = np.full(len(right), -2.0, dtype=np.float32)
        known = np.flatnonzero(rows >= 0)
        if len(known) and asked:
            wanted = self._vectors[asked]
            for block_rows in np.array_split(known, len(known) // 2048 + 1):
                nearness[block_rows] = (self._vectors[rows[block_rows]] @ wanted.T).max(axis=1)
        # a stable sort of the shuffled order: ties (and rows without a rule) stay in seeded order
        return [right[i] for i in order[np.argsort(-nearness[order], kind="stable")]]


def _fitting(samples: Sequence[Sample], max_tokens: int, most: int | None) -> list[Sample]:
    """The first samples that fit, at least one."""
    chosen: list[Sample] = []
    used = 0
    for sample in samples if most is None else samples[:most]:
        used += estimate_tokens(sample.text) + 24
        if used > max_tokens and chosen:
            break
        chosen.append(sample)
    return chosen


def _by_id(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.id))
