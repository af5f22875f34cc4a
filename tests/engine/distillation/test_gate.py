"""The gate never lets validation fall; the loop always ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.gate import AcceptanceGate, Candidate, Convergence, Figure, StopRule
from engine.metrics import macro_f1
from engine.prompt import CompiledPrompt
from engine.tokens import estimate_tokens
from engine.types import Instruction

LABELS = ("hate", "none")
PROMPT = CompiledPrompt("Is it hateful?", dict.fromkeys(LABELS, ""))
OPEN = AcceptanceGate({}, 6000)


def candidate(macro: float = 0.5, tokens: int = 100, **recalls: float) -> Candidate:
    per_class = {label: {"precision": 1.0, "recall": recalls.get(label, 1.0), "f1": 1.0} for label in LABELS}
    return Candidate(PROMPT, macro, per_class, (), tokens)


def test_a_candidate_is_scored_on_what_the_student_said() -> None:
    gold = ["hate", "none", "none", "hate"]
    said: list[str | None] = ["hate", "none", None, "none"]
    prompt = replace(PROMPT, instructions=(Instruction("I01", "Slurs are hate."),))
    made = Candidate.scored(prompt, gold, said)
    assert made.macro_f1 == pytest.approx(macro_f1(gold, said, LABELS))
    assert made.per_class["hate"]["recall"] == 0.5
    assert made.predicted == tuple(said)
    assert made.tokens == estimate_tokens(prompt.text)


@pytest.mark.parametrize(
    ("macro", "tokens", "accepted", "why"),
    [
        (0.51, 100, True, "rises by 0.0100"),
        (0.51, 6000, True, "rises"),
        (0.51, 6001, False, "6001 tokens, over the limit of 6000"),
        (0.50, 99, True, "same validation macro-F1, 1 tokens shorter"),
        (0.50, 100, False, "the prompt is no shorter"),
        (0.50, 101, False, "the prompt is no shorter"),
        (0.49, 10, False, "would fall by 0.0100"),
    ],
)
def test_rising_or_equal_and_shorter(macro: float, tokens: int, accepted: bool, why: str) -> None:
    decision = OPEN.judge(candidate(), candidate(macro, tokens))
    assert decision.accepted is accepted
    assert why in decision.why


def test_a_prompt_that_is_over_the_limit_may_shrink_towards_it() -> None:
    gate = AcceptanceGate({}, 50)
    best = candidate(tokens=100)
    assert gate.judge(best, candidate(0.6, 90)).accepted
    assert gate.judge(best, candidate(0.5, 90)).accepted
    assert not gate.judge(best, candidate(0.6, 100)).accepted
    assert not gate.judge(best, candidate(0.4, 20)).accepted


def test_a_floor_refuses_what_breaks_it() -> None:
    gate = AcceptanceGate({"hate": {"recall": 0.8}}, 6000)
    assert gate.judge(candidate(hate=0.9), candidate(0.6, hate=0.8)).accepted
    refused = gate.judge(candidate(hate=0.9), candidate(0.6, hate=0.79))
    assert not refused.accepted
    assert refused.why == "recall of hate would fall to 0.790, below its floor 0.8"
    # the floors of one label are no concern of another
    assert gate.judge(candidate(none=0.9), candidate(0.6, none=0.1)).accepted


def test_from_below_a_floor_the_loop_can_still_climb() -> None:
    gate = AcceptanceGate({"hate": {"recall": 0.8}}, 6000)
    below = candidate(hate=0.3)
    assert gate.judge(below, candidate(0.6, hate=0.5)).accepted
    assert gate.judge(below, candidate(0.6, hate=0.3)).accepted
    assert not gate.judge(below, candidate(0.6, hate=0.2)).accepted


figures = st.sampled_from([0.0, 0.2, 0.5, 0.5 + 1e-12, 0.8, 1.0])
candidates = st.builds(
    lambda macro, tokens, recall, precision: Candidate(
        PROMPT,
        macro,
        {
            "hate": {"precision": precision, "recall": recall, "f1": 0.5},
            "none": {"precision": 1.0, "recall": 1.0, "f1": 1.0},
        },
        (),
        tokens,
    ),
    figures,
    st.sampled_from([10, 50, 99, 100, 101, 200]),
    figures,
    figures,
)
floors = st.dictionaries(st.just("hate"), st.dictionaries(st.sampled_from(["recall", "precision"]), figures))


@settings(max_examples=150, deadline=None)
@given(candidates, candidates, floors)
def test_the_gate_never_lets_anything_fall(
    best: Candidate, other: Candidate, given_floors: dict[str, dict[Figure, float]]
) -> None:
    decision = AcceptanceGate(given_floors, 100).judge(best, other)
    broken = any(
        other.per_class[label][figure] < min(least, best.per_class[label][figure])
        for label, floor in given_floors.items()
        for figure, least in floor.items()
    )
    too_long = other.tokens > 100 and other.tokens >= best.tokens
    better = other.macro_f1 > best.macro_f1 or (
        other.macro_f1 == best.macro_f1 and other.tokens < best.tokens
    )
    assert decision.accepted == (better and not broken and not too_long)
    assert decision.why
    assert "\n" not in decision.why


@settings(deadline=None)
@given(st.lists(candidates, max_size=12))
def test_accepting_is_a_climb_that_cannot_go_round_in_circles(offered: list[Candidate]) -> None:
    path = [candidate(0.2, 100)]
    for one in offered * 2:
        if OPEN.judge(path[-1], one).accepted:
            path.append(one)
    ranks = [(one.macro_f1, -one.tokens) for one in path]
    assert ranks == sorted(set(ranks))


def rounds(stop: StopRule, improved: list[bool]) -> tuple[int, str | None]:
    for number, better in enumerate(improved):
        if (reason := stop.reason()) is not None:
            return number, reason
        stop.round_done(improved=better)
    return len(improved), stop.reason()


def test_the_stop_rule() -> None:
    assert rounds(StopRule(3, 9), [True] * 9) == (3, "the limit of 3 rounds is reached")
    assert rounds(StopRule(9, 2), [True, False, True, False, False, True]) == (
        5,
        "no better prompt in 2 rounds in a row",
    )
    assert rounds(StopRule(0, 2), [True]) == (0, "the limit of 0 rounds is reached")
    assert rounds(StopRule(5, 2), [True, False]) == (2, None)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=30, max_size=30), st.integers(0, 10), st.integers(1, 5))
def test_the_stop_rule_always_stops(improved: list[bool], max_rounds: int, patience: int) -> None:
    done, reason = rounds(StopRule(max_rounds, patience), improved)
    assert reason is not None
    assert done <= max_rounds
    ran = improved[:done]
    assert done == max_rounds or (done >= patience and not any(ran[-patience:]))
    # it never stopped earlier than it had to
    assert all(any(ran[k : k + patience]) for k in range(max(0, done - patience)))


def test_the_papers_loop_stops_when_the_error_has_converged() -> None:
    stop = Convergence(8)
    for value in (0.50, 0.60, 0.55):
        stop.saw(value)
        assert stop.reason() is None
    stop.saw(0.554)
    assert stop.reason() == "the validation error converged: it changed by less than 0.005"


def test_a_change_of_the_tolerance_is_a_change() -> None:
    stop = Convergence(8, tolerance=0.25)
    stop.saw(0.5)
    stop.saw(0.75)
    assert stop.reason() is None
    stop.saw(0.75 + 0.125)
    assert stop.reason() is not None


@pytest.mark.parametrize("max_rounds", [0, 1, 3])
def test_the_papers_loop_has_a_limit(max_rounds: int) -> None:
    stop = Convergence(max_rounds)
    for number in range(max_rounds + 1):
        assert stop.reason() is None
        stop.saw(number / 10)
    assert stop.reason() == f"the limit of {max_rounds} rounds is reached"
