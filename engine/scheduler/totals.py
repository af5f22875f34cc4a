"""Counts and costs, as the manifest and the progress display want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.events import LaneVitals, StageProgress
from engine.types import Failure, Result


@dataclass(slots=True)
class Totals:
    """What became of requests. `sent + cached` is the number of results handed out.

    - `sent`: results that a model gave now; `cached`: those that cost nothing (an earlier answer, a failure
      this run had already given up, an equal request in flight).
    - `failed`: results of either kind that are failures. `retries`: attempts beyond the first.
    - Tokens and dollars are what was billed, failed attempts included; an attempt whose bill is unknown (a
      timeout) counts with the most it can have cost.
    """

    sent: int = 0
    cached: int = 0
    failed: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0

    @property
    def done(self) -> int:
        """Requests that have a result."""
        return self.sent + self.cached

    def count(self, result: Result[Any]) -> None:
        """Count one result that is about to be handed out."""
        if result.source == "sent":
            self.sent += 1
        else:
            self.cached += 1
        if isinstance(result.outcome, Failure):
            self.failed += 1

    def progress(self, stage: str, *, in_flight: int = 0, lane: LaneVitals | None = None) -> StageProgress:
        """The event that tells a listener how far `stage` is."""
        return StageProgress(
            stage=stage,
            done=self.done,
            failed=self.failed,
            cached=self.cached,
            sent=self.sent,
            retries=self.retries,
            in_flight=in_flight,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cost_usd=self.cost_usd,
            lane=lane,
        )

    def add(self, other: Totals) -> None:
        """Add `other` to these."""
        self.sent += other.sent
        self.cached += other.cached
        self.failed += other.failed
        self.retries += other.retries
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cost_usd += other.cost_usd
