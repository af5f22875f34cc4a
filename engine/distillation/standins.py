"""Stand-ins for what only models can write, as many and as long as a configuration allows: for estimates."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from engine.config import Config
from engine.distillation.cases import Confusion
from engine.distillation.resolution import ResolutionRequests
from engine.fences import escape
from engine.prompt import CompiledPrompt
from engine.tokens import estimate_tokens, request_tokens
from engine.types import Instruction, Sample

RULE_TOKENS = 100
"""No rule is taken to be longer: 880 rules that a frontier model wrote had 34 to 74 tokens."""

INSTRUCTION_TOKENS = 40
"""The average instruction of a full prompt is taken to be no shorter; 150 words are about 200 tokens."""


def words(tokens: int) -> str:
    """A text of so many (estimated) tokens."""
    return " ".join(["word"] * tokens)


def fullest_prompt(config: Config, *, most: int) -> CompiledPrompt:
    """A prompt that fills `resolve.max_prompt_tokens`, with as many instructions as fit; at most `most`.

    Without any where the limit leaves no room for one: then it is the zero-shot prompt, whatever its length.
    """

    def prompt(sizes: Sequence[int]) -> CompiledPrompt:
        instructions = tuple(Instruction(f"I{n:02d}", words(size)) for n, size in enumerate(sizes, start=1))
        return CompiledPrompt(config.task.description, config.task.labels, instructions)

    limit = config.resolve.max_prompt_tokens
    number = min(most, max(0, limit - estimate_tokens(prompt(()).text)) // INSTRUCTION_TOKENS)
    if number == 0:
        return prompt(())
    room = limit - estimate_tokens(prompt([0] * number).text)
    return prompt([room // number + (n < room % number) for n in range(number)])


def confusion_sizes(
    make: ResolutionRequests, prompt: CompiledPrompt, train: Sequence[Sample], config: Config
) -> list[int]:
    """Input tokens of the resolver's request for each possible confusion, most first.

    Every training row of both labels is shown, as far as the configuration allows.
    """
    settings = config.resolve
    most = min(settings.rows_per_round or sys.maxsize, settings.cases_per_request or sys.maxsize)
    texts: dict[str, list[int]] = {label: [] for label in config.labels}
    for sample in train:
        texts[sample.label].append(estimate_tokens(escape(sample.text)))
    longest = {label: np.sort(np.array(sizes, dtype=np.int64))[::-1] for label, sizes in texts.items()}
    empty = Confusion("", "", (), ())
    # The prompt is rendered once, not for each of many pairs of labels. Tokens of lines add up.
    around = request_tokens(make("", prompt, empty)) - estimate_tokens(empty.rendered(settings.max_edits))
    found = []
    for gold in (label for label in config.labels if texts[label]):
        for predicted in (label for label in config.labels if label != gold):
            both = np.concatenate([longest[gold][:most], longest[predicted][:most]])
            cases = np.sort(both)[::-1][:most]
            bare, fence = _case_tokens(gold, predicted, settings.max_edits)
            found.append(around + bare + len(cases) * fence + int(cases.sum()))
    return sorted(found, reverse=True)


def _case_tokens(gold: str, predicted: str, max_edits: int) -> tuple[int, int]:
    """Tokens of an empty block of cases, and of the fence around one case at most."""
    bare = estimate_tokens(Confusion(gold, predicted, (), ()).rendered(max_edits))
    failure = Confusion(gold, predicted, (Sample("", "", gold, "train"),), ())
    widest = max(gold, predicted, key=estimate_tokens)
    success = Confusion(gold, predicted, (), (Sample("", "", widest, "train"),))
    return bare, max(estimate_tokens(one.rendered(max_edits)) for one in (failure, success)) - bare
