"""Telling a job that cannot work from rows that cannot be answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from engine.errors import ModelError
from engine.scheduler.endpoint import QuestionT, ReplyT
from engine.scheduler.job import Job
from engine.types import Failure


class Probation(Generic[QuestionT, ReplyT]):
    """While the first outcomes all fail alike they are held back: a wrong key must not be remembered as the
    failure of these rows. Ends with the first answer, or the first failure of another kind.

    `limit`: so many of them stop the job; 0: never.
    """

    def __init__(self, model: str, limit: int) -> None:
        self._model = model
        self._limit = limit
        self._count = 0
        self._reason: str | None = None
        self._held: list[Job[QuestionT, ReplyT]] = []
        self._passed = limit < 1

    def filter(self, finished: Sequence[Job[QuestionT, ReplyT]]) -> Sequence[Job[QuestionT, ReplyT]]:
        """What of `finished`, and of what was held back before, may be kept now.

        Raises `ModelError` when the limit is reached; nothing held back is then kept.
        """
        if self._passed:
            return finished
        for job in finished:
            if not isinstance(job.outcome, Failure) or self._reason not in (None, job.outcome.reason):
                self._passed = True
                return [*self.release(), *finished]
            self._reason = job.outcome.reason
        self._held.extend(finished)
        self._count += len(finished)
        if self._count >= self._limit:
            detail = self._held[0].outcome.detail if isinstance(self._held[0].outcome, Failure) else ""
            raise ModelError(
                f"{self._model}: the first {self._count} requests all failed the same way: {self._reason}"
                f"{detail and ': ' + detail}; put that right and run the same command again"
            )
        return []

    def release(self) -> Sequence[Job[QuestionT, ReplyT]]:
        """What was held back: nothing more will come for now."""
        held, self._held = self._held, []
        return held
