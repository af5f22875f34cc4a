"""Asking for structured answers: parse, check, ask again once with what was wrong, then give up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from engine.distillation.answers import AnswerT, read_answer
from engine.distillation.templating import render
from engine.fences import fence
from engine.scheduler import Lane
from engine.types import Answer, Failure, Message, Request


@dataclass
class Asked(Generic[AnswerT]):
    """What came of it. Every id stands in exactly one of `answers` and `failures`.

    `requests` holds, for each answer, the hex digest of the request that brought it (C9). `asked_again`
    counts the second attempts.
    """

    answers: dict[str, AnswerT] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    asked_again: int = 0


async def ask(
    lane: Lane[Request, Answer],
    ids: Sequence[str],
    make: Callable[[str], Request],
    kind: type[AnswerT],
    *,
    stage: str,
    check: Callable[[str, AnswerT], Sequence[str]] = lambda _id, _answer: (),
    again: bool = True,
) -> Asked[AnswerT]:
    """Ask one request per id (`make` renders it) for an answer of `kind`.

    An answer that cannot be parsed, or that `check` finds something wrong with, is asked for again once with
    the findings shown (unless `again` is False), and is a failure after that. Requests are rendered as they
    are needed.
    """
    asked: Asked[AnswerT] = Asked()
    second: dict[str, Request] = {}

    async def pass_over(
        requests: Iterable[Request], total: int, sent: dict[str, Request], *, last: bool
    ) -> None:
        async with lane.stream(requests, stage=stage, total=total) as results:
            async for result in results:
                request = sent.pop(result.id)
                if isinstance(result.outcome, Failure):
                    asked.failures[result.id] = result.outcome
                    continue
                answer = read_answer(kind, result.id, result.outcome)
                if isinstance(answer, Failure):
                    failure, findings = answer, [answer.detail or answer.reason]
                else:
                    findings = list(check(result.id, answer))
                    if not findings:
                        asked.answers[result.id] = answer
                        asked.requests[result.id] = request.digest(lane.name).hex()
                        continue
                    failure = Failure(result.id, "findings", "; ".join(findings))
                if last:
                    asked.failures[result.id] = failure
                else:
                    second[result.id] = _again(request, result.outcome.text, findings)

    def remember(requests: Iterable[Request], sent: dict[str, Request]) -> Iterator[Request]:
        for request in requests:
            sent[request.id] = request
            yield request

    sent: dict[str, Request] = {}
    await pass_over(remember(map(make, ids), sent), len(ids), sent, last=not again)
    if second:
        asked.asked_again = len(second)
        # in the order of ids, not of completion: the order of requests must not depend on timing
        repeats = [second[one] for one in ids if one in second]
        await pass_over(repeats, len(repeats), dict(second), last=True)
    return asked


def _again(request: Request, answer: str, findings: Sequence[str]) -> Request:
    shown = "\n".join(fence("finding", one) for one in findings)
    messages = (
        *request.messages,
        Message("assistant", answer),
        Message("user", render("again", findings=shown)),
    )
    return replace(request, messages=messages)
