"""What the resolver is shown: rows of one confusion, the nearest right ones beside them, and no more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.cases import CaseSelector, Confusion
from engine.fences import read_all, read_one
from engine.tokens import estimate_tokens
from engine.types import FloatVector, Sample

LABELS = "abc"


def vectors_for(n: int, seed: int = 0, dim: int = 4) -> FloatVector:
    drawn = np.random.default_rng(seed).standard_normal((n, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def find(
    samples: Sequence[Sample],
    answers: dict[str, str | None],
    vectors: FloatVector,
    row_of: dict[str, int],
    *,
    max_tokens: int = 100_000,
    max_cases: int | None = None,
    most: int = 9,
    seed: int = 1,
) -> list[Confusion]:
    selector = CaseSelector(vectors, row_of, max_tokens=max_tokens, max_cases=max_cases)
    return selector.confusions(samples, answers, most=most, rng=np.random.default_rng(seed))


def row(name: str, label: str, text: str = "some text") -> Sample:
    return Sample(name, text, label, "train")


def test_confusions_come_commonest_first_and_malformed_answers_are_none() -> None:
    samples = [row(f"s{k}", "a") for k in range(4)] + [row(f"t{k}", "b") for k in range(4)]
    answers: dict[str, str | None] = {
        **dict.fromkeys(["s0", "s1"], "b"),
        **dict.fromkeys(["s2", "t0"], "c"),
        **dict.fromkeys(["t1", "t2"], None),
        "s3": "a",
        "t3": "b",
    }
    found = find(samples, answers, vectors_for(0), {})
    assert [(one.gold, one.predicted) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [one.id for one in found[0].failures] == ["s0", "s1"]
    assert {one.id for one in found[0].successes} == {"s3", "t3"}
    assert [(one.gold, one.predicted) for one in find(samples, answers, vectors_for(0), {}, most=1)] == [
        ("a", "b")
    ]


def test_nothing_wrong_no_confusions() -> None:
    assert find([row("s0", "a")], {"s0": "a"}, vectors_for(0), {}) == []
    assert find([row("s0", "a")], {"s0": None}, vectors_for(0), {}) == []


def test_the_nearest_successes_are_shown() -> None:
    angles = {"f0": 0.0, "near": 0.1, "far": 2.0, "opposite": 3.1, "wrong side": 0.05}
    vectors = np.array([(np.cos(angle), np.sin(angle)) for angle in angles.values()], dtype=np.float32)
    row_of = {name: k for k, name in enumerate(angles)}
    samples = [row(name, "c" if name == "wrong side" else "a") for name in angles] + [row("no rule", "a")]
    answers: dict[str, str | None] = {one.id: one.label for one in samples} | {"f0": "b"}
    chosen = []
    for max_cases in (4, 8, 12, 16):
        (one,) = find(samples, answers, vectors, row_of, max_cases=max_cases)
        chosen.append({success.id for success in one.successes})
    # max_cases // 4 of each label; the right ones of other labels never; without a rule last
    assert chosen == [
        {"near"},
        {"near", "far"},
        {"near", "far", "opposite"},
        {"near", "far", "opposite", "no rule"},
    ]


def test_rows_without_a_rule_are_drawn_by_seed() -> None:
    samples = [row("f0", "a"), *(row(f"s{k:02d}", "a") for k in range(30))]
    answers: dict[str, str | None] = {one.id: one.label for one in samples} | {"f0": "b"}
    drawn = {
        tuple(
            one.id for one in find(samples, answers, vectors_for(0), {}, max_cases=8, seed=seed)[0].successes
        )
        for seed in range(8)
    }
    assert len(drawn) > 1
    assert {len(ids) for ids in drawn} == {2}


def test_many_successes_are_compared_block_by_block() -> None:
    n = 5000
    vectors = vectors_for(n + 1, dim=8)
    samples = [row(f"s{k:04d}", "a") for k in range(n)] + [row("f", "a")]
    row_of = {one.id: k for k, one in enumerate(samples)}
    answers: dict[str, str | None] = {one.id: one.label for one in samples} | {"f": "b"}
    (one,) = find(samples, answers, vectors, row_of, max_cases=40)
    nearest = np.argsort(-(vectors[:n] @ vectors[n]))[:10]
    assert {success.id for success in one.successes} == {f"s{k:04d}" for k in nearest}


def test_rendered_as_fences() -> None:
    shown = Confusion(
        "spam", "none", (row("s1", "spam", "</case> offer"),), (row("s2", "none", "hello"),)
    ).rendered(3)
    outer = read_one(shown, "cases")
    assert outer.attributes == {"label": "spam", "predicted": "none", "max_edits": "3"}
    assert [(one.attributes, one.text) for one in read_all(outer.content, "case")] == [
        ({"kind": "failure", "label": "spam", "predicted": "none"}, "</case> offer"),
        ({"kind": "success", "label": "none", "predicted": "none"}, "hello"),
    ]
    # ids mean nothing to a model, and would make two runs on renamed rows differ
    assert "s1" not in shown


plans = st.lists(
    st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None]), st.integers(0, 60), st.booleans()),
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(plans, st.integers(60, 2000), st.none() | st.integers(3, 20), st.integers(1, 6), st.integers(0, 3))
def test_what_always_holds(
    plan: list[tuple[str, str | None, int, bool]],
    max_tokens: int,
    max_cases: int | None,
    most: int,
    seed: int,
) -> None:
    samples = [row(f"s{k:02d}", gold, "word " * size) for k, (gold, _, size, _) in enumerate(plan)]
    answers = {one.id: answer for one, (_, answer, _, _) in zip(samples, plan, strict=True)}
    with_rule = [one.id for one, (*_, has_rule) in zip(samples, plan, strict=True) if has_rule]
    vectors, row_of = vectors_for(len(with_rule)), {name: k for k, name in enumerate(with_rule)}

    def again() -> list[Confusion]:
        return find(
            samples,
            answers,
            vectors,
            row_of,
            max_tokens=max_tokens,
            max_cases=max_cases,
            most=most,
            seed=seed,
        )

    found = again()
    assert found == again()
    pairs = [(one.gold, one.predicted) for one in found]
    wrong = [(one.label, answers[one.id]) for one in samples if answers[one.id] not in (one.label, None)]
    assert len(pairs) == len(set(pairs)) == min(most, len(set(wrong)))
    counts = [wrong.count(pair) for pair in pairs]
    assert counts == sorted(counts, reverse=True)
    for one in found:
        assert one.failures
        assert all((each.label, answers[each.id]) == (one.gold, one.predicted) for each in one.failures)
        assert all(answers[each.id] == each.label in (one.gold, one.predicted) for each in one.successes)
        for shown in (one.failures, one.successes):
            assert [each.id for each in shown] == sorted({each.id for each in shown})
        if max_cases is not None:
            assert len(one.failures) + len(one.successes) <= max_cases
        # each kind may fill its share; only the first of a kind may be longer than that
        assert len(one.failures) == 1 or tokens(one.failures) <= max_tokens // 2
        for label in (one.gold, one.predicted):
            right = [each for each in one.successes if each.label == label]
            assert len(right) <= 1 or tokens(right) <= max_tokens // 4
            assert right or not any(each.label == label == answers[each.id] for each in samples)


def tokens(samples: Sequence[Sample]) -> int:
    return sum(estimate_tokens(one.text) + 24 for one in samples)
