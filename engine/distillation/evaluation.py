"""What a prompt is worth: its scores beside the baselines, and the verdict (C8)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.confidence import Calibration, Reliability, calibrate, reliability
from engine.distillation.baseline import majority, tfidf_logreg
from engine.distillation.predicting import Predictions, predict
from engine.metrics import Verdict, score, verdict
from engine.ports import CacheReceipt
from engine.prompt import CompiledPrompt
from engine.scheduler import ChatLane
from engine.types import Failure, Sample, Scores, SplitName

STAGE = "evaluation"
ABLATIONS = ("clustered", "resolver_only")
"""Prompts that a compilation with `--ablation` keeps for `evaluate` to score as well."""


@dataclass(frozen=True)
class Evaluation:
    """Systems by name, each with its scores on the same rows; `compiled` is always among them.

    `failures` are rows that a student gave no answer for: they count as wrong. `verdict` is None where the
    zero-shot prompt was left out, for it cannot be told then. `cut` texts were too long for the student with
    the compiled prompt and lost their middle. `confidence` says how far the compiled prompt's can be trusted;
    `calibration` is what validation gives, and None on the test split.
    `receipt` tells what the student's prefix cache was worth, where it does; no file has it.
    """

    split: SplitName
    prompt_sha256: str
    student: str
    systems: Mapping[str, Scores]
    failures: tuple[Failure, ...]
    verdict: Verdict | None
    confidence: Reliability
    calibration: Calibration | None = None
    cut: int = 0
    receipt: CacheReceipt | None = None

    @property
    def compiled(self) -> Scores:
        return self.systems["compiled"]

    def _repr_markdown_(self) -> str:
        """How a notebook shows it."""
        lines = [f"**{self.split}**, {self.compiled.n:,} rows", ""]
        lines += ["| system | accuracy | macro-F1 | 95% interval |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {name} | {one.accuracy:.3f} | {one.macro_f1:.3f} "
            f"| {one.ci95.low:.3f} to {one.ci95.high:.3f} |"
            for name, one in self.systems.items()
        ]
        verdict = "none without zero-shot" if self.verdict is None else self.verdict.decision
        return "\n".join([*lines, "", f"Verdict: **{verdict}**"])

    def to_json(self) -> dict[str, Any]:
        """The content of evaluation.json, and what `pld evaluate --json` prints."""
        return {
            "split": self.split,
            "n": self.compiled.n,
            "prompt_sha256": self.prompt_sha256,
            "student": self.student,
            **{name: scores_json(scores) for name, scores in self.systems.items()},
            "malformed_rate": self.compiled.malformed_rate,
            "failed": len(self.failures),
            "cut": self.cut,
            "confidence": asdict(self.confidence),
            "verdict": None if self.verdict is None else asdict(self.verdict),
        }


def scores_json(scores: Scores) -> dict[str, Any]:
    """Scores as JSON: `ci95` is the interval of macro-F1."""
    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "ci95": [scores.ci95.low, scores.ci95.high],
        "malformed_rate": scores.malformed_rate,
        "per_class": scores.per_class,
        "confusion": scores.confusion,
    }


async def evaluate_prompts(
    lane: ChatLane,
    prompts: Mapping[str, CompiledPrompt],
    samples: Sequence[Sample],
    *,
    split: SplitName,
    train: Sequence[Sample],
    validation: Sequence[Sample] | None,
    seed: int,
    calibration: Calibration | None = None,
) -> Evaluation:
    """Score each prompt on `samples` with the same student, beside the baselines that need no model.

    `prompts` holds `compiled`, and `zero_shot` for a verdict. The majority class comes from `train`; TF-IDF
    with logistic regression is fitted on `train` with its strength chosen on `validation` (None: left out).
    On validation confidence is calibrated, elsewhere `calibration` is tried.
    """
    gold = [sample.label for sample in samples]
    labels = tuple(prompts["compiled"].labels)
    predicted: dict[str, list[str | None]] = {}
    failures: list[Failure] = []
    compiled = Predictions({}, ())
    for name, prompt in prompts.items():
        asked = name == "compiled"
        answers = await predict(lane, prompt, samples, stage=STAGE, probabilities=asked)
        if asked:
            compiled = answers
        predicted[name] = answers.of(samples)
        failures += [Failure(f"{name}: {one.id}", one.reason, one.detail) for one in answers.failures]
    predicted["majority"] = list(majority(train, len(samples)))
    if validation is not None:
        texts = [sample.text for sample in samples]
        predicted["tfidf_logreg"] = list(
            await asyncio.to_thread(tfidf_logreg, train, validation, texts, labels, seed=seed)
        )
    systems = {name: score(gold, answers, labels, seed=seed) for name, answers in predicted.items()}
    judged = None
    if "zero_shot" in predicted:
        judged = verdict(
            gold, predicted["compiled"], predicted["zero_shot"], predicted["majority"], labels, seed=seed
        )
    sha256 = prompts["compiled"].sha256
    found = None
    if split == "validation":
        found = await asyncio.to_thread(calibrate, compiled.told, prompt_sha256=sha256, student=lane.name)
        trust = found.reliability
    else:
        trust = await asyncio.to_thread(_reliability, compiled, calibration, sha256, lane.name)
    return Evaluation(
        split, sha256, lane.name, systems, tuple(failures), judged, trust, found, cut=compiled.cut
    )


def _reliability(
    answers: Predictions, calibration: Calibration | None, prompt_sha256: str, student: str
) -> Reliability:
    if calibration is None:
        return reliability(answers.told, None, "this run has no calibration; compile again")
    return reliability(answers.told, calibration, calibration.why_not(prompt_sha256, student))
