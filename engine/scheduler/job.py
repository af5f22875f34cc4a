"""One request on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal

from engine.ports import Record, Reservation
from engine.scheduler.endpoint import Endpoint, QuestionT, ReplyT
from engine.types import Failure, Usage

if TYPE_CHECKING:
    from engine.scheduler.stream import Stream

NO_USAGE = Usage()

Source = Literal["sent", "cached", "journal", "shared"]


@dataclass(slots=True, eq=False)
class Job(Generic[QuestionT, ReplyT]):
    """A request, who waits for it, and what it has cost so far.

    `number` is its place in its stream. `waiting` are equal requests, with the streams that asked them and
    their places: they are answered along with it. `sent`: a model has seen it. `open`: it counts as sent and
    not yet on disk (C2). `size`: characters that are billed as input, 0 where nobody has counted them.
    """

    key: bytes
    request: QuestionT
    stream: Stream[QuestionT, ReplyT]
    number: int = 0
    waiting: list[tuple[Stream[QuestionT, ReplyT], QuestionT, int]] = field(default_factory=list)
    attempts: int = 0
    sent: bool = False
    open: bool = False
    first_sent_at: float = 0.0
    sent_at: float = 0.0
    rate_limited_s: float = 0.0
    last_reason: str = ""
    same_failures: int = 0
    size: int = 0
    need: Reservation | None = None
    usage: Usage = NO_USAGE
    cost_usd: float = 0.0
    outcome: ReplyT | Failure | None = None

    def record(self, stage: str, endpoint: Endpoint[QuestionT, ReplyT]) -> Record:
        """What the journal keeps of a finished job."""
        failed = self.outcome if isinstance(self.outcome, Failure) else None
        return Record(
            key=self.key,
            request_id=self.request.id,
            stage=stage,
            model=endpoint.name,
            payload=None
            if self.outcome is None or isinstance(self.outcome, Failure)
            else endpoint.encode(self.outcome),
            failure=failed,
            usage=self.usage,
            cost_usd=self.cost_usd,
        )

    def charge(self, usage: Usage, cost_usd: float) -> None:
        """Add what one attempt was billed."""
        self.cost_usd += cost_usd
        self.usage = usage if self.usage is NO_USAGE else _sum(self.usage, usage)


def _sum(a: Usage, b: Usage) -> Usage:
    cached = None if a.cached_tokens is None or b.cached_tokens is None else a.cached_tokens + b.cached_tokens
    return Usage(
        a.input_tokens + b.input_tokens,
        a.output_tokens + b.output_tokens,
        a.thinking_tokens + b.thinking_tokens,
        cached,
        a.estimated or b.estimated,
    )
