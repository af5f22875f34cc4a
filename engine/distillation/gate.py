"""When a candidate prompt is better, and when to stop looking: one policy per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from engine.metrics import score
from engine.prompt import CompiledPrompt
from engine.tokens import estimate_tokens

Figure: TypeAlias = Literal["precision", "recall", "f1"]


@dataclass(frozen=True)
class Candidate:
    """A prompt with what it reached on validation: `predicted` are the student's answers, in row order."""

    prompt: CompiledPrompt
    macro_f1: float
    per_class: Mapping[str, Mapping[str, float]]
    predicted: tuple[str | None, ...]
    tokens: int

    @staticmethod
    def scored(prompt: CompiledPrompt, gold: list[str], predicted: list[str | None]) -> Candidate:
        scores = score(gold, predicted, tuple(prompt.labels), seed=0)
        return Candidate(
            prompt=prompt,
            macro_f1=scores.macro_f1,
            per_class=scores.per_class,
            predicted=tuple(predicted),
            tokens=estimate_tokens(prompt.text),
        )


@dataclass(frozen=True)
class Decision:
    """Whether a candidate replaces the best one, and why, in one line."""

    accepted: bool
    why: str


@dataclass(frozen=True)
class AcceptanceGate:
    """Validation macro-F1 has to rise, or stay equal with a shorter prompt, and no floor may be broken.

    `floors` maps a label to the least precision, recall or f1 it must keep. A floor that the best prompt
    itself misses refuses only what makes that figure worse: otherwise the loop could never start below it.
    """

    floors: Mapping[str, Mapping[Figure, float]]
    max_prompt_tokens: int

    def too_long(self, best: Candidate, tokens: int) -> str | None:
        """Why a prompt of so many tokens is refused before anybody is asked; None where it is not."""
        if tokens > self.max_prompt_tokens and tokens >= best.tokens:
            return f"{tokens} tokens, over the limit of {self.max_prompt_tokens}"
        return None

    def judge(self, best: Candidate, candidate: Candidate) -> Decision:
        """Whether `candidate` replaces `best`. Both were scored on the same rows."""
        if (why := self.too_long(best, candidate.tokens)) is not None:
            return Decision(False, why)
        for label, floor in self.floors.items():
            for figure, least in floor.items():
                value = candidate.per_class[label][figure]
                if value < least and value < best.per_class[label][figure]:
                    return Decision(
                        False, f"{figure} of {label} would fall to {value:.3f}, below its floor {least:g}"
                    )
        change = candidate.macro_f1 - best.macro_f1
        if change > 0:
            return Decision(True, f"validation macro-F1 rises by {change:.4f}")
        if change == 0 and candidate.tokens < best.tokens:
            return Decision(
                True, f"same validation macro-F1, {best.tokens - candidate.tokens} tokens shorter"
            )
        if change == 0:
            return Decision(False, "validation macro-F1 stays the same and the prompt is no shorter")
        return Decision(False, f"validation macro-F1 would fall by {-change:.4f}")


class StopRule:
    """Stops after `max_rounds`, or after `patience` rounds in a row that brought no better prompt."""

    def __init__(self, max_rounds: int, patience: int) -> None:
        self._max_rounds = max_rounds
        self._patience = patience
        self._rounds = 0
        self._idle = 0

    def reason(self) -> str | None:
        """Why no further round should run, or None."""
        if self._idle >= self._patience:
            return f"no better prompt in {self._idle} rounds in a row"
        if self._rounds >= self._max_rounds:
            return f"the limit of {self._max_rounds} rounds is reached"
        return None

    def round_done(self, *, improved: bool) -> None:
        """Count one round."""
        self._rounds += 1
        self._idle = 0 if improved else self._idle + 1


class Convergence:
    """The paper's stop rule (M11): validation error has converged when a round changes it by less than
    `tolerance`; at most `max_rounds`."""

    def __init__(self, max_rounds: int, tolerance: float = 0.005) -> None:
        self._max_rounds = max_rounds
        self._tolerance = tolerance
        self._errors: list[float] = []

    def reason(self) -> str | None:
        """Why no further round should run, or None."""
        errors = self._errors
        if len(errors) > 1 and abs(errors[-1] - errors[-2]) < self._tolerance:
            return f"the validation error converged: it changed by less than {self._tolerance:g}"
        if len(errors) > self._max_rounds:
            return f"the limit of {self._max_rounds} rounds is reached"
        return None

    def saw(self, validation_macro_f1: float) -> None:
        """Note the state before the first round, and after each."""
        self._errors.append(1.0 - validation_macro_f1)
