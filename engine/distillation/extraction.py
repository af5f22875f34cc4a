"""Phase 1 (M1-M3): one abstract rule per training sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.distillation.answers import ExtractionAnswer, Finding, schema_of
from engine.distillation.asking import ask
from engine.distillation.checks import RuleChecks
from engine.distillation.rates import Rates
from engine.distillation.templating import TaskContext, render
from engine.fences import fence
from engine.scheduler import ChatLane
from engine.types import Failure, Message, MicroRule, Request, Sample

STAGE = "extraction"
MAX_OUTPUT_TOKENS = 2048  # thinking included; an analysis and one rule need a few hundred


@dataclass(frozen=True)
class Extraction:
    """`rules` and `failures` together hold every sample once, each ordered by sample id (C1, C12).

    `by_label` has the figures of each label's samples, `rates` those of all.
    """

    rules: tuple[MicroRule, ...]
    failures: tuple[Failure, ...]
    rates: Rates
    by_label: Mapping[str, Rates]

    def to_json(self) -> dict[str, Any]:
        """The figures as they stand in the manifest, those of each label under `by_label`."""
        labels = {label: _figures(rates) for label, rates in self.by_label.items()}
        return _figures(self.rates) | {"by_label": labels}


def _figures(rates: Rates) -> dict[str, Any]:
    return {"rules": rates.usable} | rates.to_json()


class ExtractionRequests:
    """Renders the teacher's requests: the text with its true label, in one fence."""

    def __init__(self, context: TaskContext) -> None:
        self._system = Message("system", render("extraction_system", context=context.text))
        self._schema = schema_of(ExtractionAnswer, context.labels)

    def __call__(self, sample: Sample) -> Request:
        shown = render("extraction_user", input=fence("input", sample.text, label=sample.label))
        return Request(
            id=sample.id,
            messages=(self._system, Message("user", shown)),
            max_output_tokens=MAX_OUTPUT_TOKENS,
            schema=self._schema,
        )


async def extract_rules(
    lane: ChatLane,
    samples: Sequence[Sample],
    context: TaskContext,
    *,
    checks: RuleChecks | None,
) -> Extraction:
    """Ask the teacher for one rule per training sample.

    Answers that cannot be used are asked again once, then set aside with the reason. Without
    `checks` (the paper's recipe) every answer that can be read is taken as it is.
    """
    by_id = {sample.id: sample for sample in samples}
    ids = sorted(by_id)
    make = ExtractionRequests(context)

    def check(sample_id: str, answer: ExtractionAnswer) -> list[Finding]:
        return [] if checks is None else checks.findings(by_id[sample_id], answer)

    asked = await ask(
        lane,
        ids,
        lambda sample_id: make(by_id[sample_id]),
        ExtractionAnswer,
        stage=STAGE,
        check=check,
        again=checks is not None,
    )
    rules = tuple(
        MicroRule(
            sample_id=one,
            label=by_id[one].label,
            instruction=asked.answers[one].instruction.strip(),
            analysis=asked.answers[one].analysis.strip(),
            request=asked.requests[one],
        )
        for one in ids
        if one in asked.answers
    )
    failures = tuple(asked.failures[one] for one in ids if one in asked.failures)
    labelled: dict[str, list[str]] = {}
    for one in ids:
        labelled.setdefault(by_id[one].label, []).append(one)
    by_label = {label: asked.rates(labelled[label]) for label in sorted(labelled)}
    return Extraction(rules, failures, asked.rates(ids), by_label)
