"""What the engine tells while it works. Events carry counts and ids, never row text (C11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class StageStarted:
    stage: str
    total: int | None = None


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Running totals of one stage. Everything counted here is on disk (C2)."""

    stage: str
    done: int
    failed: int
    cached: int
    sent: int
    retries: int
    in_flight: int
    input_tokens: int
    output_tokens: int
    cost_usd: float


@dataclass(frozen=True, slots=True)
class StageFinished:
    stage: str
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Notice:
    """One line that the user should read. `warning` marks what may spoil the result."""

    text: str
    warning: bool = False


Event: TypeAlias = StageStarted | StageProgress | StageFinished | Notice
EventSink: TypeAlias = Callable[[Event], None]
"""Called on the event loop's thread; must return at once and must not raise."""


def ignore_events(event: Event) -> None:
    """The sink of a caller who does not listen."""
