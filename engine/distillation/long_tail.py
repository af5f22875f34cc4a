"""Rules outside every cluster: too rare for a topic, and now and then what a rare case needs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from engine.prompt import CompiledPrompt, next_instruction_id
from engine.types import FloatVector, Instruction, MicroRule, Sample

_ROWS_PER_BLOCK = 2048
# A rule that speaks for one failure only would be learnt by heart.
_LEAST_VOTES = 2


class LongTailLibrary:
    """Rules that no cluster holds, and which of them speak for what the student still gets wrong.

    `rules` are all rules, `vectors` (n, d) float32 their unit vectors in the same order, `outside` the places
    of those in no cluster.
    """

    def __init__(self, rules: Sequence[MicroRule], vectors: FloatVector, outside: Sequence[int]) -> None:
        self._rules = rules
        self._vectors = vectors
        self._row_of = {rule.sample_id: row for row, rule in enumerate(rules)}
        self._outside: dict[str, list[int]] = defaultdict(list)
        for row in outside:
            self._outside[rules[row].label].append(int(row))

    def speaking_for(
        self, samples: Sequence[Sample], predicted: Mapping[str, str | None], *, most: int
    ) -> list[MicroRule]:
        """At most `most` rules that stand nearest to training rows decided wrongly, most often first.

        Each such row votes for the rule of its label that is nearest to its own rule, its own where that is
        outside every cluster. A rule needs two votes.
        """
        failed: dict[str, list[int]] = defaultdict(list)
        for sample in samples:
            row = self._row_of.get(sample.id)
            if row is not None and predicted[sample.id] not in {None, sample.label}:
                failed[sample.label].append(row)
        votes: Counter[int] = Counter()
        for label, rows in failed.items():
            if outside := self._outside.get(label):
                votes.update(self._nearest(rows, np.array(outside)).tolist())
        ranked = sorted(votes, key=lambda row: (-votes[row], self._rules[row].sample_id))
        return [self._rules[row] for row in ranked if votes[row] >= _LEAST_VOTES][:most]

    def _nearest(self, rows: Sequence[int], outside: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each of `rows` the nearest of `outside`."""
        found = np.empty(len(rows), np.int64)
        for start in range(0, len(rows), _ROWS_PER_BLOCK):
            block = self._vectors[rows[start : start + _ROWS_PER_BLOCK]]
            found[start : start + len(block)] = outside[(block @ self._vectors[outside].T).argmax(axis=1)]
        return found


def taking_up(prompt: CompiledPrompt, rule: MicroRule, name: str) -> CompiledPrompt:
    """`prompt` with `rule` as an instruction of its own, recorded as the edit `name` (C9)."""
    identity = next_instruction_id([one.id for one in prompt.all_instructions()])
    new = Instruction(id=identity, text=rule.instruction, rule_ids=(rule.sample_id,), edits=(name,))
    return prompt.with_instruction(new)
