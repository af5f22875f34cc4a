"""Prompt and row in, prediction out: what resolution, evaluation and bulk classification share."""

from __future__ import annotations

from collections.abc import Sequence

from engine.confidence import confidence_of
from engine.fences import fence
from engine.prompt import CompiledPrompt
from engine.tokens import most_tokens
from engine.types import Answer, Failure, FinishReason, Message, Prediction, Request, Result


class StudentPrompt:
    """Renders requests for one compiled prompt. All of them share one byte-identical prefix (C10).

    The system message is the prompt's text; the row comes last, in its fence. The answer is constrained to
    the label set, and `max_output_tokens` is enough for the longest label whatever the tokenizer (one token a
    byte at worst).
    """

    def __init__(self, prompt: CompiledPrompt) -> None:
        self.prompt = prompt
        self.labels = tuple(prompt.labels)
        self._system = Message("system", prompt.text)
        self._max_output_tokens = max(map(most_tokens, self.labels)) + 2

    def request(self, row_id: str, text: str, group: str = "") -> Request:
        """The request that classifies one row. Texts of one `group` begin alike."""
        return Request(
            id=row_id,
            messages=(self._system, Message("user", fence("input", text))),
            max_output_tokens=self._max_output_tokens,
            choices=self.labels,
            group=group,
        )


def read_prediction(
    result: Result[Answer], labels: Sequence[str], temperature: float | None = None
) -> Prediction | Failure:
    """What an outcome says about its row.

    An answer that is no label, or was cut off, gives a prediction with `label=None` (malformed); a request
    without any answer stays the `Failure` it is. Confidence is the probability of the label among all labels
    and the margin its distance to the runner-up, where the student tells log-probabilities; calibrated where
    a `temperature` is given (`engine.confidence`).
    """
    if isinstance(result.outcome, Failure):
        return result.outcome
    answer = result.outcome
    label = answer.text.strip()
    cut = answer.cut_characters
    if label not in labels or answer.finish_reason is not FinishReason.STOP:
        return Prediction(result.id, None, cut_characters=cut)
    if not answer.label_logprobs or label not in answer.label_logprobs:
        return Prediction(result.id, label, cut_characters=cut)
    confidence, margin = confidence_of(answer.label_logprobs, label, temperature)
    return Prediction(result.id, label, confidence, margin, cut)
