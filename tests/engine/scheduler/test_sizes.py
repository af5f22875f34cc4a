"""Token estimates that are learnt from the answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler import Limits, Scheduler
from engine.scheduler.sizes import Sizes
from engine.types import Answer, ChatOutcome, Usage
from tests.support.fakes import InMemoryJournal, ScriptedModel, request
from tests.support.virtual_time import run_virtual


def test_it_takes_some_answers_to_know() -> None:
    sizes = Sizes()
    for _ in range(15):
        sizes.learn(400, Usage(100, 7))
        assert not sizes.known
    sizes.learn(400, Usage(100, 7))
    assert sizes.known
    assert sizes.tokens(400, 50) == pytest.approx(107, abs=1)
    assert sizes.tokens(800, 50) == pytest.approx(207, abs=1)
    assert sizes.tokens(400, 3) == pytest.approx(103, abs=1), "no more than the request allows"


def test_answers_that_say_nothing_teach_nothing() -> None:
    sizes = Sizes()
    for _ in range(100):
        sizes.learn(0, Usage(100, 7))  # nobody has counted the characters
        sizes.learn(400, Usage(0, 7))  # no usage came along
    assert not sizes.known


@given(
    per_character=st.floats(0.05, 2.0),
    output=st.integers(0, 500),
    spread=st.floats(0.0, 0.8),
    seed=st.integers(0, 999),
)
def test_the_sum_of_many_estimates_comes_out_right(
    per_character: float, output: int, spread: float, seed: int
) -> None:
    """Single requests may be far off; what counts against a minute is their sum."""
    rng = random.Random(seed)
    sizes = Sizes()
    expected = used = 0
    for i in range(600):
        characters = rng.randint(200, 4000)
        factor = 1.0 + spread * rng.uniform(-1.0, 1.0)
        usage = Usage(max(1, round(characters * per_character * factor)), round(output * factor))
        if i >= 200:
            expected += sizes.tokens(characters, 1000)
            used += usage.input_tokens + usage.output_tokens
        sizes.learn(characters, usage)
    assert expected == pytest.approx(used, rel=0.15)


def test_a_change_of_the_requests_is_followed() -> None:
    sizes = Sizes()
    for _ in range(10_000):
        sizes.learn(100, Usage(25, 5))
    for _ in range(300):
        sizes.learn(100, Usage(100, 80))
    assert sizes.tokens(100, 1000) == pytest.approx(180, rel=0.02)


def test_a_lane_learns_from_what_is_billed() -> None:
    """The rule of thumb expects all of `max_output_tokens`; the answers use a tenth of it."""

    def terse(text: str, attempt: int) -> ChatOutcome:
        return Answer("yes", Usage(25, 5))

    async def check() -> None:
        lane = Scheduler(InMemoryJournal()).chat(ScriptedModel(terse), Limits(tokens_per_minute=60_000))
        asked = [request(f"r{i}", f"{i:0100d}", max_output_tokens=1000) for i in range(50)]
        async with lane.stream(asked, stage="s") as results:
            assert len([r async for r in results]) == 50
        assert lane.sizes.known
        assert lane.sizes.tokens(100, 1000) == pytest.approx(30, abs=1)

    run_virtual(check())
