"""Counting tokens without a model's tokenizer: a stated rule of thumb, and a bound that is never too low."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

# Byte-pair vocabularies seldom split a run of six word characters and give each mark a token of its own.
_PIECE = re.compile(r"\w{1,6}|[^\w\s]")
_LONG = 2000


def estimate_tokens(text: str) -> int:
    """About how many tokens `text` is, rather above than below for English prose; exact for no model."""
    # system prompts are long and shared by every row: count each once
    return _estimate_long(text) if len(text) > _LONG else len(_PIECE.findall(text))


@lru_cache(maxsize=256)
def _estimate_long(text: str) -> int:
    return len(_PIECE.findall(text))


def most_tokens(text: str) -> int:
    """The most tokens that `text` can be to any byte-level tokenizer: its length in UTF-8 bytes."""
    if text.isascii():
        return len(text)
    return _bytes_long(text) if len(text) > _LONG else len(text.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=256)
def _bytes_long(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class EstimatedTokenCounter:
    """The `TokenCounter` for a model whose tokenizer is not at hand."""

    @property
    def estimated(self) -> bool:
        """Always True: this is `estimate_tokens`."""
        return True

    async def count(self, texts: Sequence[str]) -> Sequence[int]:
        """The estimate for each text, in order."""
        return [estimate_tokens(text) for text in texts]
