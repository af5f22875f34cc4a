"""What a sweep brought, for callers and for `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.distillation.evaluation import scores_json
from engine.ports import Within
from engine.prompt import CompiledPrompt
from engine.tokens import estimate_tokens
from engine.types import Failure, Scores


@dataclass(frozen=True)
class Drafted:
    """The prompt that a setting's clusters become, before conflict resolution, and its scores on validation.

    `failures` are requests without an answer, to synthesizer and student; a row without one counts as wrong.
    """

    prompt: CompiledPrompt
    scores: Scores
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class SweptSetting:
    """What one setting makes of the rules.

    `noise` and `largest` count rules: those outside every cluster, those in the largest. `majority_share` is
    the share of the commonest label in a cluster, averaged over the clusters (None without any).
    `missing_labels` have no rule in any cluster.
    """

    eps: float
    min_samples: int
    clusters: int
    noise: int
    largest: int
    majority_share: float | None
    missing_labels: tuple[str, ...]
    drafted: Drafted | None = None

    def to_json(self) -> dict[str, Any]:
        """One entry of `settings`; the prompt's figures are null where none was synthesised."""
        one = self.drafted
        return {
            "eps": self.eps,
            "min_samples": self.min_samples,
            "clusters": self.clusters,
            "noise": self.noise,
            "largest": self.largest,
            "majority_share": self.majority_share,
            "missing_labels": list(self.missing_labels),
            "instructions": None if one is None else len(one.prompt.instructions),
            "prompt_tokens": None if one is None else estimate_tokens(one.prompt.text),
            "prompt_sha256": None if one is None else one.prompt.sha256,
            "validation": None if one is None else scores_json(one.scores),
            "failed": None if one is None else len(one.failures),
        }


@dataclass(frozen=True)
class SweepResult:
    """The settings in the order in which they were asked for, and what they were tried on.

    `centred`: the direction that all rules share was taken off before. `validation_rows` are those that a
    prompt is scored on. `compiled` are the figures of the run itself: its clustering, and its prompt as it
    stands.
    """

    run: Path
    rules: int
    within: Within
    centred: bool
    settings: tuple[SweptSetting, ...]
    validation_rows: int
    compiled: Mapping[str, Any]
    requests: Mapping[str, int]
    cost_usd: float

    def _repr_markdown_(self) -> str:
        """How a notebook shows it."""
        lines = [f"{self.rules:,} rules", ""]
        lines += ["| eps | min_samples | clusters | noise | largest | prompt tokens | macro-F1 |"]
        lines += ["| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        for one in self.settings:
            figures = one.to_json()
            tokens = "" if one.drafted is None else f"{figures['prompt_tokens']:,}"
            f1 = "" if one.drafted is None else f"{one.drafted.scores.macro_f1:.3f}"
            noise, largest = one.noise / self.rules, one.largest / self.rules
            lines.append(
                f"| {one.eps:g} | {one.min_samples} | {one.clusters} | {noise:.0%} | {largest:.0%} "
                f"| {tokens} | {f1} |"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """What `pld sweep --json` prints."""
        return {
            "run": str(self.run),
            "rules": self.rules,
            "within": self.within,
            "centred": self.centred,
            "split": "validation",
            "n": self.validation_rows,
            "settings": [one.to_json() for one in self.settings],
            "compiled": dict(self.compiled),
            "requests": dict(self.requests),
            "cost_usd": self.cost_usd,
        }
