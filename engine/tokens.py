"""Counting tokens without a model's tokenizer: a stated rule of thumb, and a bound that is never too low."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from engine.types import Request

# Byte-pair vocabularies seldom split a run of six word characters and give each mark a token of its own.
_PIECE = re.compile(r"\w{1,6}|[^\w\s]")
_LONG = 2000
_AROUND_A_TEXT = 16  # what chat templates put around a message, at most


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


def billed_texts(request: Request) -> Iterator[str]:
    """Every text of a chat request that may be billed as input: messages, schema and choices."""
    yield from (message.content for message in request.messages)
    if request.schema is not None:
        yield repr(request.schema.json_schema)
    yield from request.choices


def input_tokens(texts: Iterable[str], count: Callable[[str], int] = estimate_tokens) -> int:
    """What the texts of one request are as input by `count`, with what stands around each of them."""
    return sum(count(text) + _AROUND_A_TEXT for text in texts)


def request_tokens(request: Request) -> int:
    """About how many input tokens a chat request is, schema and choices included."""
    return input_tokens(billed_texts(request))


def shared_out(tokens: int, texts: Sequence[str]) -> list[int]:
    """What each text of a batch has of the batch's tokens, by length; the parts add up to them."""
    lengths = list(accumulate((len(text) + 1 for text in texts), initial=0))
    ends = [tokens * length // lengths[-1] for length in lengths]
    return [end - start for start, end in pairwise(ends)]


class EstimatedTokenCounter:
    """The `TokenCounter` for a model whose tokenizer is not at hand."""

    @property
    def estimated(self) -> bool:
        """Always True: this is `estimate_tokens`."""
        return True

    async def count(self, texts: Sequence[str]) -> Sequence[int]:
        """The estimate for each text, in order."""
        return [estimate_tokens(text) for text in texts]
