"""What Gemini's models take and do, as their documentation says, by their names."""

from __future__ import annotations

import re

from engine.config import Thinking
from engine.errors import ConfigError

_VERSION = re.compile(r"gemini-(\d+)(?:\.(\d+))?(?![\d.])")
# Output tokens set aside for thinking, which Gemini counts into maxOutputTokens.
_ROOM: dict[Thinking | None, int] = {
    None: 8192,  # what the models' own default takes at most, by their documentation (2.5)
    "minimal": 1024,
    "low": 4096,
    "medium": 8192,
    "high": 24_576,
}
_OVERRUN = 1024  # a budget is a target: models may pass it


def _name(model: str) -> str:
    return model.rpartition("/")[2]


def _version(model: str) -> tuple[int, int] | None:
    """(2, 5) of gemini-2.5-flash; None where the name does not say."""
    match = _VERSION.match(_name(model))
    return None if match is None else (int(match[1]), int(match[2] or 0))


def check_thinking(model: str, thinking: Thinking | None) -> None:
    """Raise `ConfigError` for a setting that a model is documented not to take."""
    version = _version(model)
    if thinking is None or version is None:
        return
    if version < (2, 5):
        raise ConfigError(f"gemini:{model}: does not think; leave out `thinking`")
    if version == (2, 5) and isinstance(thinking, str):
        raise ConfigError(
            f"gemini:{model}: takes a number of tokens for `thinking` (such as 0 or 1024), no level"
        )


def thinking_room(model: str, thinking: Thinking | None) -> int:
    """The output tokens that thinking may take, beside those of the answer itself."""
    version = _version(model)
    if version is not None and version < (2, 5):
        return 0
    if isinstance(thinking, int):
        # later models think a little even at 0
        return 0 if thinking == 0 and version == (2, 5) else thinking + _OVERRUN
    if thinking is None and version is None and not _name(model).startswith("gemini"):
        return 0
    return _ROOM[thinking]


def takes_temperature(model: str) -> bool:
    """Whether `temperature` means anything to a model: from Gemini 3.5 Flash-Lite and 3.6 on it is ignored,
    and announced to be an error (https://ai.google.dev/gemini-api/docs/latest-model)."""
    name, version = _name(model), _version(model)
    if version is None:
        return not name.startswith("gemini")  # gemini-flash-latest is the newest
    return version < (3, 5) or (version == (3, 5) and "flash-lite" not in name)


def clustering_input(model: str, text: str) -> str:
    """A text as the model is to be told that it is embedded for clustering.

    gemini-embedding-001 and older have a task type for that; later ones read the task in the text
    (https://ai.google.dev/gemini-api/docs/embeddings).
    """
    return text if takes_task_type(model) else f"task: clustering | query: {text}"


def takes_task_type(model: str) -> bool:
    """Whether an embedding model takes a task type."""
    name = _name(model)
    return not name.startswith("gemini-embedding-") or name.startswith(
        ("gemini-embedding-001", "gemini-embedding-exp")
    )
