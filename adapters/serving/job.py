"""What a compiled prompt asks of the server behind it: room, and a cache that can hold its prefix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from adapters.vllm_servers import ServerFacts
from engine.prompt import CompiledPrompt
from engine.student import StudentPrompt
from engine.tokens import request_tokens
from engine.types import Message

ROW_TOKENS = 4096
_OVER_ESTIMATE = 1.25  # tokenizers differ: how far one may lie above the estimate
_ROUND_TO = 1024


@dataclass(frozen=True)
class Job:
    """One compiled prompt. `messages` are those of a request for an empty row."""

    messages: tuple[Message, ...]
    estimated_tokens: int
    answer_tokens: int

    @classmethod
    def of(cls, prompt: CompiledPrompt) -> Job:
        """The job of a prompt's student."""
        request = StudentPrompt(prompt).request("", "")
        return cls(tuple(request.messages), request_tokens(request), request.max_output_tokens)

    def context(self, row_tokens: int, most: int | None) -> int:
        """Tokens of context for rows of `row_tokens`, rounded up; not above what the model takes (`most`)."""
        wanted = round(self.estimated_tokens * _OVER_ESTIMATE) + row_tokens + self.answer_tokens
        rounded = -(-wanted // _ROUND_TO) * _ROUND_TO
        return rounded if most is None else min(rounded, most)

    def doubts(self, max_model_len: int | None) -> list[str]:
        """What looks wrong before the model is loaded."""
        needed = self.estimated_tokens + self.answer_tokens
        if max_model_len is None or needed < max_model_len:
            return []
        return [
            f"the prompt alone is about {self.estimated_tokens:,} tokens, and the context {max_model_len:,}: "
            "no row may fit; raise --max-model-len, or take a model with a longer context"
        ]

    def findings(self, facts: ServerFacts, tokens: int | None) -> list[str]:
        """What will go wrong, as far as the server tells: no room for rows, a prefix that is never cached.

        `tokens` are those of the messages on that server, chat template included; None where it does not say.
        """
        found = []
        if tokens is not None and facts.max_model_len is not None:
            left = facts.max_model_len - tokens - self.answer_tokens
            if left <= 0:
                found.append(
                    f"no row fits: the prompt is {tokens:,} tokens, and the context {facts.max_model_len:,}; "
                    "raise --max-model-len"
                )
        if facts.caching is False:
            found.append(
                "the prompt is read anew for every row: the server's prefix cache is off, for this kind of "
                "model or by a flag"
            )
        elif tokens is not None and facts.block_size is not None and tokens < facts.block_size:
            found.append(
                f"the prompt is read anew for every row: the prefix cache keeps whole blocks of "
                f"{facts.block_size:,} tokens, and the prompt has {tokens:,}"
            )
        return found


def model_context(model: str) -> int | None:
    """The positions that a model in a folder was made for, by its config.json; None where it does not say."""
    try:
        config = orjson.loads((Path(model) / "config.json").read_bytes())
        positions = config.get(
            "max_position_embeddings", config.get("text_config", {}).get("max_position_embeddings")
        )
    except (OSError, ValueError, AttributeError):
        return None
    return positions if isinstance(positions, int) and positions > 0 else None
