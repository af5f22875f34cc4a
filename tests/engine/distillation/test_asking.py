"""Asking twice at most: every id ends in exactly one of answers and failures (C1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.answers import Finding, GeneralAnswer, schema_of
from engine.distillation.asking import Asked, ask
from engine.distillation.rates import Unusable
from engine.fences import fence, read_all
from engine.types import Answer, AttemptFailure, ChatOutcome, FinishReason, Message, Request
from tests.support.replying import Replying, as_json, is_second, lane_to
from tests.support.virtual_time import run_virtual

Kind: TypeAlias = Literal["good", "malformed", "wrong", "cut", "blocked", "refused"]
KINDS: tuple[Kind, ...] = ("good", "malformed", "wrong", "cut", "blocked", "refused")
VAIN = ("blocked", "refused")
PRIVATE = "zebra-crossing"

GOOD = as_json(analysis="a", instruction="fine")
OUTCOMES: dict[Kind, ChatOutcome] = {
    "good": GOOD,
    "malformed": Answer(f'{{"{PRIVATE}": "{PRIVATE}"'),
    "wrong": as_json(analysis=PRIVATE, instruction="bad"),
    "cut": Answer(GOOD.text, finish_reason=FinishReason.LENGTH),
    "blocked": Answer(PRIVATE, finish_reason=FinishReason.BLOCKED),
    "refused": AttemptFailure("refused", "status 400"),
}


def make(one: str) -> Request:
    messages = (Message("system", "be brief"), Message("user", fence("input", f"{one} {PRIVATE}")))
    return Request(one, messages, 100, schema_of(GeneralAnswer))


def check(_one: str, answer: GeneralAnswer) -> Sequence[Finding | str]:
    if answer.instruction != "bad":
        return []
    return [Finding("bad", "the instruction is <bad>", f"the instruction is <bad>: {PRIVATE}"), "try again"]


def play(
    turns: dict[str, tuple[Kind, Kind]],
    *,
    again: bool = True,
    latency_s: Callable[[Request], float] = lambda asked: 0.0,
) -> tuple[Asked[GeneralAnswer], Replying]:
    """Ask one request per id; the model plays the id's first turn, then its second."""
    model = Replying(lambda asked: OUTCOMES[turns[asked.id][is_second(asked)]], latency_s)

    async def asking() -> Asked[GeneralAnswer]:
        lane = lane_to(model)
        return await ask(lane, list(turns), make, GeneralAnswer, stage="test", check=check, again=again)

    return run_virtual(asking()), model


def test_a_good_answer_is_taken_at_once() -> None:
    asked, model = play({"a": ("good", "refused")})
    assert asked.answers == {"a": GeneralAnswer(analysis="a", instruction="fine")}
    assert asked.requests == {"a": make("a").digest("replying").hex()}
    assert (asked.failures, asked.again, len(model.seen)) == ({}, set(), 1)


@pytest.mark.parametrize("first", ["malformed", "wrong", "cut"])
def test_a_bad_answer_is_asked_for_again_with_what_was_wrong(first: Kind) -> None:
    asked, model = play({"a": (first, "good")})
    assert list(asked.answers) == ["a"]
    assert (asked.failures, asked.again, len(model.seen)) == ({}, {"a"}, 2)
    one, two = model.seen
    assert two.messages[:2] == one.messages
    outcome = OUTCOMES[first]
    assert isinstance(outcome, Answer)
    assert two.messages[2] == Message("assistant", outcome.text)
    assert two.messages[3].role == "user"
    findings = [finding.text for finding in read_all(two.messages[3].content, "finding")]
    expected = {
        "malformed": ["not the JSON that was asked for (answer: json_invalid)"],
        "wrong": [f"the instruction is <bad>: {PRIVATE}", "try again"],
        "cut": ["the answer reached the limit of output tokens before its end: write a much shorter one"],
    }
    assert findings == expected[first]
    # the request that brought the answer is the second one (C9)
    assert asked.requests["a"] == two.digest("replying").hex() != one.digest("replying").hex()


@pytest.mark.parametrize(
    ("turns", "reason", "detail"),
    [
        (("malformed", "malformed"), "malformed", "not the JSON that was asked for (answer: json_invalid)"),
        (("malformed", "wrong"), "findings", "the instruction is <bad>; try again"),
        (("wrong", "cut"), "cut", "the answer reached the limit of output tokens before its end"),
        (("cut", "refused"), "refused", "status 400"),
        (("refused", "good"), "refused", "status 400"),
        (("blocked", "good"), "blocked", "the model's safety filter held the answer back"),
    ],
)
def test_twice_bad_is_a_failure_with_the_last_reason(
    turns: tuple[Kind, Kind], reason: str, detail: str
) -> None:
    asked, model = play({"a": turns})
    assert asked.answers == asked.requests == {}
    failure = asked.failures["a"]
    assert (failure.id, failure.reason, failure.detail) == ("a", reason, detail)
    assert len(model.seen) == (1 if turns[0] in VAIN else 2)


@pytest.mark.parametrize(
    ("text", "shown"), [("", "(no answer)"), (" \n", "(no answer)"), ("x" * 9000, "x" * 400 + " [...]")]
)
def test_a_cut_answer_is_shown_in_short(text: str, shown: str) -> None:
    cut = Answer(text, finish_reason=FinishReason.LENGTH)
    model = Replying(lambda asked: GOOD if is_second(asked) else cut)

    async def asking() -> Asked[GeneralAnswer]:
        return await ask(lane_to(model), ["a"], make, GeneralAnswer, stage="test")

    assert list(run_virtual(asking()).answers) == ["a"]
    assert model.seen[1].messages[2] == Message("assistant", shown)


def test_without_a_second_try() -> None:
    turns: dict[str, tuple[Kind, Kind]] = {
        "a": ("wrong", "good"),
        "b": ("good", "good"),
        "c": ("cut", "good"),
    }
    asked, model = play(turns, again=False)
    assert list(asked.answers) == ["b"]
    assert {one: failure.reason for one, failure in asked.failures.items()} == {"a": "findings", "c": "cut"}
    assert (asked.again, len(model.seen)) == (set(), 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)), max_size=15), st.randoms())
def test_every_id_ends_in_exactly_one_place(turns: list[tuple[Kind, Kind]], random: Random) -> None:
    by_id = {f"s{k:02d}": turn for k, turn in enumerate(turns)}
    asked, _ = play(by_id, latency_s=lambda one: random.random())
    assert sorted([*asked.answers, *asked.failures]) == sorted(by_id)
    assert set(asked.requests) == set(asked.answers)
    for one, (first, second) in by_id.items():
        usable = first == "good" or (first not in VAIN and second == "good")
        assert (one in asked.answers) == usable
    assert asked.again == {one for one, (first, _) in by_id.items() if first not in ("good", *VAIN)}
    assert all(PRIVATE not in f"{failure.reason}{failure.detail}" for failure in asked.failures.values())
    # what was wrong is known for each, and only for those
    assert asked.first == {one: why(first) for one, (first, _) in by_id.items() if first != "good"}
    ends = {
        one: first if first in VAIN else second for one, (first, second) in by_id.items() if first != "good"
    }
    assert asked.last == {one: why(kind) for one, kind in ends.items() if kind != "good"}
    rates = asked.rates(by_id)
    assert (rates.asked, rates.usable) == (len(by_id), len(asked.answers))
    assert sum(rates.reasons.values()) == rates.failures == len(asked.failures)
    assert rates.asked_again == len(asked.again)


def why(kind: Kind) -> Unusable:
    return Unusable("findings", ("bad", "findings")) if kind == "wrong" else Unusable(kind)


def test_the_second_pass_goes_in_the_order_of_ids_not_of_completion() -> None:
    turns: dict[str, tuple[Kind, Kind]] = {f"s{k}": ("malformed", "good") for k in range(6)}
    seconds = []
    for slow in ("s0", "s3", "s5"):
        _, model = play(turns, latency_s=lambda asked, slow=slow: 9.0 if asked.id == slow else 1.0)
        seconds.append([asked.id for asked in model.seen if is_second(asked)])
    assert seconds == [list(turns)] * 3


def test_requests_are_rendered_as_they_are_needed() -> None:
    rendered: list[str] = []

    def counting(one: str) -> Request:
        rendered.append(one)
        return make(one)

    most = 0

    def reply(asked: Request) -> ChatOutcome:
        nonlocal most
        most = max(most, len(rendered) - len(answered))
        answered.append(asked.id)
        return GOOD

    answered: list[str] = []
    model = Replying(reply, lambda asked: 1.0)
    ids = [f"s{k}" for k in range(1200)]

    async def asking() -> Asked[GeneralAnswer]:
        return await ask(lane_to(model), ids, counting, GeneralAnswer, stage="test")

    assert len(run_virtual(asking()).answers) == 1200
    assert most < 1000


def test_a_broken_check_is_not_swallowed() -> None:
    def broken(_one: str, _answer: GeneralAnswer) -> Sequence[str]:
        raise ZeroDivisionError("a defect")

    async def asking() -> None:
        lane = lane_to(Replying(lambda asked: GOOD))
        await ask(lane, ["a"], make, GeneralAnswer, stage="test", check=broken)

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_virtual(asking())
