"""What the engine tells while it works. Events carry counts and ids, never row text (C11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class StageStarted:
    stage: str
    total: int | None = None


Bottleneck: TypeAlias = Literal["limit", "server", "client", "source", "pause", "cost", "disk"]
"""What a stage waits for: its own rate limits; the model, with all slots taken; this process's CPU; the rows
it is fed with; a pause that the provider asked for; money set aside for requests in flight; answers being
written to disk."""


@dataclass(frozen=True, slots=True)
class LaneVitals:
    """How one model is being asked just now; rates are those of the last few seconds.

    `concurrency` is how many requests may be in flight at present. Limits and `cap_usd` are None where there
    are none. `loop_lag_s` is the 99th percentile of how late the event loop came to a timer; `cpu_share` the
    part of one core that this process used.
    """

    model: str
    in_flight: int
    concurrency: int
    requests_per_s: float
    requests_per_minute_limit: int | None
    tokens_per_minute: float
    tokens_per_minute_limit: int | None
    spent_usd: float
    cap_usd: float | None
    bottleneck: Bottleneck
    loop_lag_s: float
    cpu_share: float


@dataclass(frozen=True, slots=True)
class RowFigures:
    """What bulk classification has found so far, earlier calls included; the rate is that of the last minute.

    `total` is estimated from the bytes that are read where the input does not tell; it and `eta_s` are None
    where nobody can say. `duplicates` are rows that were answered by an equal text, `review` the labelled
    rows that are set aside for a person. `labels` counts rows per label, `confidence` those in each tenth
    from 0 to 1.
    """

    rows_per_s: float
    total: int | None
    eta_s: float | None
    duplicates: int
    review: int
    labels: Mapping[str, int]
    confidence: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Running totals of one stage. Everything counted here is on disk (C2).

    `lane` tells how the model is being asked; None where the stage asks none. `rows` is there in bulk
    classification alone, where `done` and `failed` count rows.
    """

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
    lane: LaneVitals | None = None
    rows: RowFigures | None = None


@dataclass(frozen=True, slots=True)
class StageFinished:
    stage: str
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Attempted:
    """An attempt brought no answer. `delay_s` says when it is tried again; None: it is given up."""

    stage: str
    model: str
    request_id: str
    attempt: int
    reason: str
    delay_s: float | None


@dataclass(frozen=True, slots=True)
class ConcurrencyChanged:
    """The provider asked for fewer requests. `pause_s`: how long nothing is sent."""

    stage: str
    model: str
    concurrency: int
    pause_s: float


@dataclass(frozen=True, slots=True)
class Notice:
    """One line that the user should read. `warning` marks what may spoil the result."""

    text: str
    warning: bool = False


Event: TypeAlias = StageStarted | StageProgress | StageFinished | Attempted | ConcurrencyChanged | Notice
EventSink: TypeAlias = Callable[[Event], None]
"""Called on the event loop's thread; must return at once and must not raise."""


def ignore_events(event: Event) -> None:
    """The sink of a caller who does not listen."""
