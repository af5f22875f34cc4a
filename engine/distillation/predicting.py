"""The student over labelled rows, with everything kept in the journal: for resolution and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.confidence import NO_CHANCE, Told
from engine.prompt import CompiledPrompt
from engine.scheduler import ChatLane
from engine.student import StudentPrompt, read_prediction
from engine.types import Answer, Failure, Prediction, Result, Sample


@dataclass(frozen=True)
class Predictions:
    """One student's answers on some rows: `labels` by sample id (None: malformed or failed).

    `cut` of the texts were too long for the student, which has answered without their middle. `told` are the
    answers with probabilities, where they were asked for.
    """

    labels: Mapping[str, str | None]
    failures: tuple[Failure, ...]
    cut: int = 0
    told: Sequence[Told] = field(default=(), repr=False)

    def of(self, samples: Sequence[Sample]) -> list[str | None]:
        """The predicted labels in the order of `samples`."""
        return [self.labels[sample.id] for sample in samples]


async def predict(
    lane: ChatLane,
    prompt: CompiledPrompt,
    samples: Sequence[Sample],
    *,
    stage: str,
    probabilities: bool = False,
) -> Predictions:
    """Classify `samples` with `prompt`. A row without an answer counts as None and stands in `failures`.

    `probabilities` keeps those of all labels, 8 bytes for each label of each row, in the order of `samples`.
    """
    student = StudentPrompt(prompt)
    index = {label: number for number, label in enumerate(student.labels)}
    gold = {sample.id: index[sample.label] for sample in samples} if probabilities else {}
    labels: dict[str, str | None] = {}
    failures = []
    told: dict[str, Told] = {}
    cut = 0
    requests = (student.request(sample.id, sample.text) for sample in samples)
    async with lane.stream(requests, stage=stage, total=len(samples)) as results:
        async for result in results:
            outcome: Prediction | Failure = read_prediction(result, student.labels)
            if isinstance(outcome, Failure):
                failures.append(outcome)
                labels[result.id] = None
                continue
            labels[result.id] = outcome.label
            cut += outcome.cut_characters > 0
            if probabilities and outcome.label is not None and outcome.confidence is not None:
                told[result.id] = _told(result, gold[result.id], index, index[outcome.label])
    ordered = [told[sample.id] for sample in samples if sample.id in told]
    return Predictions(labels, tuple(sorted(failures, key=lambda failure: failure.id)), cut, ordered)


def _told(result: Result[Answer], gold: int, index: Mapping[str, int], answer: int) -> Told:
    known = {} if isinstance(result.outcome, Failure) else result.outcome.label_logprobs or {}
    return Told(result.id, gold, answer, np.array([known.get(label, NO_CHANCE) for label in index]))
