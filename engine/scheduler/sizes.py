"""How many tokens a request will count, learnt from the answers."""

from __future__ import annotations

import math

from engine.types import Usage

_ENOUGH = 16
_MEMORY = 0.02  # weight of one answer once there are many


class Sizes:
    """The mean of what requests of one lane used: input tokens per character, and output tokens.

    Means and no bounds: what one request uses above its estimate others use below theirs, so the tokens of a
    minute come out right; a tokenizer's rule of thumb would be off by the same factor for all of them.
    """

    def __init__(self) -> None:
        self._answers = 0
        self._per_character = 0.0
        self._output = 0.0

    @property
    def known(self) -> bool:
        """Whether enough answers have come to go by them."""
        return self._answers >= _ENOUGH

    def learn(self, characters: int, usage: Usage) -> None:
        """One request of that many characters was billed as `usage`."""
        if characters <= 0 or usage.input_tokens <= 0:
            return
        self._answers += 1
        weight = max(_MEMORY, 1.0 / self._answers)
        self._per_character += weight * (usage.input_tokens / characters - self._per_character)
        self._output += weight * (usage.output_tokens - self._output)

    def tokens(self, characters: int, max_output_tokens: int) -> int:
        """Input and output tokens to expect."""
        return math.ceil(characters * self._per_character + min(self._output, max_output_tokens))
