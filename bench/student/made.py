"""A prompt and rows of our own making, as long to the model as real ones."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

from engine.prompt import CompiledPrompt
from engine.types import Instruction

PROMPT_TOKENS = 4600
ROW_TOKENS = 200
_SAMPLE = 10
_LABELS = {
    "entailment": "the statement follows from the text",
    "contradiction": "the text says the opposite of the statement",
    "neutral": "the text neither supports nor excludes the statement",
}
_WORDS = (
    *("agreement", "party", "notice", "clause", "disclosure", "obligation", "consent", "period", "breach"),
    *("remedy", "supplier", "recipient", "material", "term", "written", "prior", "reasonable", "purpose"),
    *("employee", "affiliate", "return", "destroy", "survive", "liability"),
)

Count: TypeAlias = Callable[[str], Awaitable[int]]
"""How many tokens a text is to the model."""


async def made_prompt(count: Count) -> CompiledPrompt:
    """A compiled prompt of about 4,600 tokens: numbered instructions of random words, three labels."""
    bare, some = await count(_prompt(0).text), await count(_prompt(_SAMPLE).text)
    return _prompt(max(1, round(_SAMPLE * (PROMPT_TOKENS - bare) / (some - bare))))


async def words_of_a_row(count: Count) -> int:
    """How many words make a row of about 200 tokens."""
    sample = next(made_rows(0, ROW_TOKENS))
    return max(1, round(ROW_TOKENS * ROW_TOKENS / await count(sample)))


def made_rows(seed: int, words: int) -> Iterator[str]:
    """Texts of so many words, all different, without end."""
    rng = random.Random(seed)
    number = 0
    while True:
        yield f"{seed}.{number} {_some(rng, words)}"
        number += 1


def _prompt(size: int) -> CompiledPrompt:
    rng = random.Random(0)
    instructions = []
    for number in range(size):
        sentences = [f"Where {_some(rng, 6)}, look for {_some(rng, 5)}." for _ in range(6)]
        sentences.append(f"Otherwise answer {rng.choice(sorted(_LABELS))}.")
        instructions.append(Instruction(f"C{number + 1:02d}", " ".join(sentences), title=_some(rng, 2)))
    return CompiledPrompt("Decide what the text says of the statement.", _LABELS, tuple(instructions))


def _some(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))
