"""What a compilation brought, for callers and for `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.distillation.evaluation import Evaluation
from engine.prompt import CompiledPrompt
from engine.tokens import estimate_tokens
from engine.types import Scores


@dataclass(frozen=True)
class CompileResult:
    """What a compilation brought. `seconds` is wall time; `validation` the provisional verdict's figures;
    `extraction` what came of the teacher's answers, as in the manifest."""

    run: Path
    prompt: CompiledPrompt
    validation: Evaluation
    rounds: int
    stop_reason: str
    addresses: tuple[str, ...]
    extraction: Mapping[str, Any]
    requests: Mapping[str, int]
    cost_usd: float
    seconds: float

    @property
    def verdict(self) -> str:
        """The provisional verdict, in words."""
        return "" if self.validation.verdict is None else self.validation.verdict.decision

    def _repr_markdown_(self) -> str:
        """How a notebook shows it: the provisional figures, then the prompt."""
        shown = self.prompt.text.replace("```", "` ` `")
        return f"{self.validation._repr_markdown_()}\n\n`{self.run}`\n\n```markdown\n{shown}\n```"

    def to_json(self) -> dict[str, Any]:
        """What `pld compile --json` prints."""
        compiled = self.validation.compiled
        return {
            "run": str(self.run),
            "verdict": self.verdict,
            "verdict_split": "validation",
            "prompt_sha256": self.prompt.sha256,
            "prompt_tokens": estimate_tokens(self.prompt.text),
            "prompt_tokens_estimated": True,
            "instructions": len(self.prompt.instructions),
            "validation": {
                name: {
                    "macro_f1": one.macro_f1,
                    "accuracy": one.accuracy,
                    "ci95": [one.ci95.low, one.ci95.high],
                }
                for name, one in self.validation.systems.items()
                if name != "compiled"
            }
            | _figures(compiled)
            | {"n": compiled.n},
            "confidence": asdict(self.validation.confidence),
            "rounds": self.rounds,
            "stop_reason": self.stop_reason,
            "extraction": dict(self.extraction),
            "requests": dict(self.requests),
            "cost_usd": self.cost_usd,
            "seconds": self.seconds,
        }


def _figures(scores: Scores) -> dict[str, Any]:
    interval = [scores.ci95.low, scores.ci95.high]
    return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "ci95": interval}
