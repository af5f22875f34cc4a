"""The student over labelled rows, with everything kept in the journal: for resolution and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.prompt import CompiledPrompt
from engine.scheduler import ChatLane
from engine.student import StudentPrompt, read_prediction
from engine.types import Failure, Prediction, Sample


@dataclass(frozen=True)
class Predictions:
    """One student's answers on some rows: `labels` by sample id (None: malformed or failed)."""

    labels: Mapping[str, str | None]
    failures: tuple[Failure, ...]

    def of(self, samples: Sequence[Sample]) -> list[str | None]:
        """The predicted labels in the order of `samples`."""
        return [self.labels[sample.id] for sample in samples]


async def predict(
    lane: ChatLane, prompt: CompiledPrompt, samples: Sequence[Sample], *, stage: str
) -> Predictions:
    """Classify `samples` with `prompt`. A row without an answer counts as None and stands in `failures`."""
    student = StudentPrompt(prompt)
    labels: dict[str, str | None] = {}
    failures = []
    requests = (student.request(sample.id, sample.text) for sample in samples)
    async with lane.stream(requests, stage=stage, total=len(samples)) as results:
        async for result in results:
            outcome: Prediction | Failure = read_prediction(result, student.labels)
            if isinstance(outcome, Failure):
                failures.append(outcome)
                labels[result.id] = None
            else:
                labels[result.id] = outcome.label
    return Predictions(labels, tuple(sorted(failures, key=lambda failure: failure.id)))
