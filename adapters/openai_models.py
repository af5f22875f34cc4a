"""What models behind OpenAI's API do, as their documentation says, by their names."""

from __future__ import annotations

import re

from engine.config import Thinking, ThinkingLevel
from engine.errors import ConfigError

# They think unless told otherwise; from GPT-5.1 on models do not.
_THINKING = re.compile(r"(o\d|gpt-5(?!-chat|[.\d])|gpt-oss)(?![a-z])")
# Output tokens set aside for thinking, which counts into max_completion_tokens.
_ROOM: dict[ThinkingLevel | None, int] = {
    None: 8192,  # the models' own default is "medium"
    "minimal": 1024,
    "low": 4096,
    "medium": 8192,
    "high": 24_576,  # OpenAI advises 25,000 with the answer
}
# Trained so that a vector's beginning is a vector (Matryoshka), by their own documentation.
_MATRYOSHKA = (
    "embeddinggemma",
    "gemini-embedding",
    "jina-embeddings-v3",
    "jina-embeddings-v4",
    "mxbai-embed-large-v1",
    "nomic-embed-text-v1.5",
    "qwen3-embedding",
    "text-embedding-3-",
)


def _name(model: str) -> str:
    return model.rpartition("/")[2].lower()


def level_of(address: str, thinking: Thinking | None) -> ThinkingLevel | None:
    """The setting as a level. Raises `ConfigError` for a number: OpenAI's API has no field for it."""
    if isinstance(thinking, int):
        raise ConfigError(
            f"{address}: takes a level for `thinking` (minimal, low, medium or high), no number of tokens"
        )
    return thinking


def thinking_room(model: str, thinking: ThinkingLevel | None) -> int:
    """The output tokens that thinking may take, beside those of the answer itself.

    0 for a model that nobody has set to think, unless it is known to.
    """
    return 0 if thinking is None and not _THINKING.match(_name(model)) else _ROOM[thinking]


def may_be_cut(model: str) -> bool:
    """Whether the beginning of the model's vectors is a vector too."""
    return _name(model).startswith(_MATRYOSHKA)
