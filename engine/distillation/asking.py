"""Asking for structured answers: parse, check, ask again once with what was wrong, then give up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from engine.distillation.answers import AnswerT, Finding, read_answer
from engine.distillation.rates import FINDINGS, Rates, Unusable
from engine.distillation.templating import render
from engine.fences import fence
from engine.scheduler import ChatLane
from engine.types import Answer, Failure, FinishReason, Message, Request

_SHOWN_OF_CUT = 400
"""Characters of a cut answer that are shown again: what never came to its end need not be billed twice."""


@dataclass
class Asked(Generic[AnswerT]):
    """What came of it. Every id stands in exactly one of `answers` and `failures`.

    `requests` holds, for each answer, the hex digest of the request that brought it (C9). `again` are the ids
    that were asked a second time; `first` says what was wrong with first answers, `last` with the last one of
    a failure.
    """

    answers: dict[str, AnswerT] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    first: dict[str, Unusable] = field(default_factory=dict)
    last: dict[str, Unusable] = field(default_factory=dict)

    def rates(self, ids: Iterable[str]) -> Rates:
        """The figures of `ids`."""
        return Rates.of(ids, first=self.first, last=self.last, again=self.again)


@dataclass(frozen=True)
class _Refused:
    """An answer that cannot be used. `told` is what the model is shown; nothing: asking again is vain."""

    failure: Failure
    why: Unusable
    told: tuple[str, ...] = ()


async def ask(
    lane: ChatLane,
    ids: Sequence[str],
    make: Callable[[str], Request],
    kind: type[AnswerT],
    *,
    stage: str,
    check: Callable[[str, AnswerT], Sequence[Finding | str]] = lambda _id, _answer: (),
    again: bool = True,
) -> Asked[AnswerT]:
    """Ask one request per id (`make` renders it) for an answer of `kind`.

    An answer that cannot be parsed, or that `check` finds something wrong with, is asked for again once with
    the findings shown (unless `again` is False), and is a failure after that. An answer that a safety filter
    held back is a failure at once: the filter would see the same text again, and bill for it. Requests are
    rendered as they are needed.
    """
    asked: Asked[AnswerT] = Asked()
    second: dict[str, Request] = {}

    def look(request_id: str, outcome: Answer | Failure) -> AnswerT | _Refused:
        if isinstance(outcome, Failure):
            return _Refused(outcome, Unusable(outcome.reason))
        answer = read_answer(kind, request_id, outcome)
        if isinstance(answer, Failure):
            return _Refused(answer, Unusable(answer.reason), _told(answer))
        found = [Finding(FINDINGS, one) if isinstance(one, str) else one for one in check(request_id, answer)]
        if not found:
            return answer
        return _Refused(
            Failure(request_id, FINDINGS, "; ".join(one.line for one in found)),
            Unusable(FINDINGS, tuple(dict.fromkeys(one.kind for one in found))),
            tuple(one.shown or one.line for one in found),
        )

    async def pass_over(
        requests: Iterable[Request], total: int, sent: dict[str, Request], *, turn: int
    ) -> None:
        async with lane.stream(requests, stage=stage, total=total) as results:
            async for result in results:
                request = sent.pop(result.id)
                answer = look(result.id, result.outcome)
                if not isinstance(answer, _Refused):
                    asked.answers[result.id] = answer
                    asked.requests[result.id] = request.digest(lane.name).hex()
                    continue
                if turn == 1:
                    asked.first[result.id] = answer.why
                if turn == 1 and again and answer.told and isinstance(result.outcome, Answer):
                    second[result.id] = _again(request, result.outcome, answer.told)
                else:
                    asked.failures[result.id] = answer.failure
                    asked.last[result.id] = answer.why

    def remember(requests: Iterable[Request], sent: dict[str, Request]) -> Iterator[Request]:
        for request in requests:
            sent[request.id] = request
            yield request

    sent: dict[str, Request] = {}
    await pass_over(remember(map(make, ids), sent), len(ids), sent, turn=1)
    if second:
        asked.again.update(second)
        # in the order of ids, not of completion: the order of requests must not depend on timing
        repeats = [second[one] for one in ids if one in second]
        await pass_over(repeats, len(repeats), dict(second), turn=2)
    return asked


def _told(failure: Failure) -> tuple[str, ...]:
    if failure.reason == "blocked":
        return ()
    if failure.reason == "cut":
        return (f"{failure.detail}: write a much shorter one",)
    return (failure.detail or failure.reason,)


def _again(request: Request, answer: Answer, told: Sequence[str]) -> Request:
    shown = answer.text
    if answer.finish_reason is FinishReason.LENGTH and len(shown) > _SHOWN_OF_CUT:
        shown = f"{shown[:_SHOWN_OF_CUT]} [...]"
    messages = (
        *request.messages,
        # servers refuse a turn without text, and two turns of one side in a row
        Message("assistant", shown if shown.strip() else "(no answer)"),
        Message("user", render("again", findings="\n".join(fence("finding", one) for one in told))),
    )
    return replace(request, messages=messages)
