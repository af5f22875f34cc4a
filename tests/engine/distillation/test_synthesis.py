"""Synthesis: each cluster one instruction, numbered by size, with every rule behind it (C9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.synthesis import STAGE, Synthesis, synthesize, write_general_rules
from engine.fences import Fenced, read_all, read_one
from engine.prompt import CompiledPrompt
from engine.tokens import estimate_tokens
from engine.types import Answer, AttemptFailure, ChatOutcome, Failure, Instruction, MicroRule, Request
from tests.support.replying import Replying, as_json, context_for, is_second, lane_to
from tests.support.virtual_time import run_virtual

Clusters = Mapping[int, Sequence[MicroRule]]


def rules(label: str, *texts: str, start: int = 0) -> list[MicroRule]:
    return [MicroRule(f"{label}{start + k}", label, text) for k, text in enumerate(texts)]


def merge(asked: Request) -> ChatOutcome:
    return as_json(analysis="a", title="  A\n topic ", instruction=f" Merged {asked.id}.\n")


def run_synthesis(
    clusters: Clusters,
    model: Replying,
    *,
    max_input_tokens: int = 10_000,
    nearby: Clusters | None = None,
    again: bool = True,
) -> Synthesis:
    async def synthesizing() -> Synthesis:
        return await synthesize(
            lane_to(model),
            clusters,
            context_for(),
            max_input_tokens=max_input_tokens,
            nearby=nearby,
            again=again,
        )

    return run_virtual(synthesizing())


def shown_rules(asked: Request) -> tuple[Fenced, list[Fenced]]:
    outer = read_one(asked.messages[1].content, "rules")
    return outer, list(read_all(outer.content, "rule"))


CLUSTERS = {
    0: rules("none", "hello", "bye"),
    1: [*rules("spam", "offer", "prize", "offer"), *rules("none", "invoice")],
    2: rules("spam", "loan", "credit", start=9),
}


def test_instructions_are_numbered_by_size_then_by_cluster() -> None:
    model = Replying(merge, latency_s=lambda asked: {"cluster-1": 9.0, "cluster-0": 5.0}.get(asked.id, 1.0))
    found = run_synthesis(CLUSTERS, model)
    assert [(one.id, one.cluster) for one in found.instructions] == [("I01", 1), ("I02", 0), ("I03", 2)]
    assert [one.text for one in found.instructions] == [f"Merged cluster-{k}." for k in (1, 0, 2)]
    assert {(one.title, one.edits) for one in found.instructions} == {("A topic", ())}
    assert found.instructions[0].rule_ids == ("spam0", "spam1", "spam2", "none0")
    assert found.failures == ()
    assert len({asked.messages[0] for asked in model.seen}) == 1
    assert {asked.schema.name for asked in model.seen if asked.schema} == {STAGE}


def test_rules_are_shown_once_with_their_counts_commonest_first() -> None:
    model = Replying(merge)
    run_synthesis({1: CLUSTERS[1]}, model)
    outer, shown = shown_rules(model.seen[0])
    assert outer.attributes == {"total": "4"}
    assert [(one.text, one.attributes) for one in shown] == [
        ("offer", {"label": "spam", "count": "2"}),
        ("invoice", {"label": "none", "count": "1"}),
        ("prize", {"label": "spam", "count": "1"}),
    ]


def test_rules_near_a_cluster_are_shown_apart_and_traced() -> None:
    model = Replying(merge)
    near = {0: rules("spam", "greeting with an offer", "greeting with an offer", "a", start=70)}
    found = run_synthesis(CLUSTERS, model, nearby=near)
    by_id = {asked.id: asked for asked in model.seen}
    outer = read_one(by_id["cluster-0"].messages[1].content, "nearby")
    assert outer.attributes == {"total": "3"}
    assert [(one.text, one.attributes["count"]) for one in read_all(outer.content, "rule")] == [
        ("greeting with an offer", "2"),
        ("a", "1"),
    ]
    assert shown_rules(by_id["cluster-0"])[0].attributes == {"total": "2"}
    assert "<nearby" not in by_id["cluster-1"].messages[1].content
    traced = {one.cluster: one.rule_ids for one in found.instructions}
    assert traced[0] == ("none0", "none1", "spam70", "spam71", "spam72")
    assert traced[2] == ("spam9", "spam10")


def test_rules_near_a_cluster_get_a_quarter_of_its_room() -> None:
    model = Replying(merge)
    many = [MicroRule(f"r{k}", "spam", f"rule number {k} " + "x " * 40) for k in range(200)]
    run_synthesis({0: many}, model, max_input_tokens=8_000, nearby={0: many})
    content = model.seen[0].messages[1].content
    shown = [len(list(read_all(read_one(content, name).content, "rule"))) for name in ("rules", "nearby")]
    assert 3.5 <= shown[0] / shown[1] <= 4.5


def test_a_cluster_without_an_answer_is_a_failure_and_leaves_no_gap() -> None:
    def reply(asked: Request) -> ChatOutcome:
        return AttemptFailure("refused", "status 400") if asked.id == "cluster-1" else merge(asked)

    found = run_synthesis(CLUSTERS, Replying(reply))
    assert [(one.id, one.cluster) for one in found.instructions] == [("I01", 0), ("I02", 2)]
    assert found.failures == (Failure("cluster-1", "refused", "status 400"),)


@pytest.mark.parametrize("again", [True, False])
def test_an_empty_instruction_is_asked_for_again(again: bool) -> None:
    def reply(asked: Request) -> ChatOutcome:
        return merge(asked) if is_second(asked) else as_json(analysis="", title="", instruction=" ")

    found = run_synthesis({5: CLUSTERS[0]}, Replying(reply), again=again)
    if again:
        assert [one.text for one in found.instructions] == ["Merged cluster-5."]
    else:
        assert found.instructions == ()
        assert found.failures == (Failure("cluster-5", "findings", "the instruction is empty"),)


def test_no_clusters_no_requests() -> None:
    model = Replying(merge)
    assert run_synthesis({}, model) == Synthesis((), ())
    assert model.seen == []


def test_a_rare_label_is_not_crowded_out_where_rules_do_not_fit() -> None:
    many = rules("spam", *(f"about the matter number {k} there is a rule" for k in range(200)))
    rare = rules("none", "greetings of friends are none")
    model = Replying(merge)
    found = run_synthesis({0: [*many, *rare]}, model, max_input_tokens=400)
    _, shown = shown_rules(model.seen[0])
    assert 2 < len(shown) < 20
    assert [one.text for one in shown if one.attributes["label"] == "none"] == [rare[0].instruction]
    # nearest to the centre first: what `rules` has first is what is shown
    kept = {one.text for one in shown} - {rare[0].instruction}
    assert kept == {rule.instruction for rule in many[: len(kept)]}
    assert len(found.instructions[0].rule_ids) == 201


def test_one_rule_is_shown_however_long_it_is() -> None:
    model = Replying(merge)
    run_synthesis({0: rules("spam", "long " * 500, "short")}, model, max_input_tokens=100)
    assert [one.text for one in shown_rules(model.seen[0])[1]] == ["long " * 500]


texts = st.sampled_from(
    ["short", "a rule that is somewhat longer than others", "</rule> <|im_end|>", "x " * 30]
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 9),
        st.lists(st.tuples(st.sampled_from("abc"), texts), min_size=1, max_size=12),
        max_size=4,
    ),
    st.integers(60, 600),
)
def test_what_always_holds(plan: dict[int, list[tuple[str, str]]], max_input_tokens: int) -> None:
    clusters = {
        number: [MicroRule(f"s{number}-{k}", label, text) for k, (label, text) in enumerate(members)]
        for number, members in plan.items()
    }
    model = Replying(merge)
    found = run_synthesis(clusters, model, max_input_tokens=max_input_tokens)
    sizes = [len(one.rule_ids) for one in found.instructions]
    assert sizes == sorted(sizes, reverse=True)
    assert [one.id for one in found.instructions] == [f"I{k + 1:02d}" for k in range(len(clusters))]
    for one in found.instructions:
        assert one.cluster is not None
        assert one.rule_ids == tuple(rule.sample_id for rule in clusters[one.cluster])
    for asked in model.seen:
        members = clusters[int(asked.id.removeprefix("cluster-"))]
        counts = Counter((rule.label, rule.instruction) for rule in members)
        outer, shown = shown_rules(asked)
        assert int(outer.attributes["total"]) == len(members)
        for one in shown:
            assert counts[one.attributes["label"], one.text] == int(one.attributes["count"])
        assert len({(one.attributes["label"], one.text) for one in shown}) == len(shown) >= 1
        used = sum(estimate_tokens(one.text) + 16 for one in shown)
        assert used <= max_input_tokens // 2 or len(shown) == 1
        if used + max(estimate_tokens(rule.instruction) + 16 for rule in members) <= max_input_tokens // 2:
            assert len(shown) == len(counts)


PROMPT = CompiledPrompt(
    "Is it spam?",
    {"spam": "", "none": ""},
    (
        Instruction("I01", "Offers </instruction> are spam.", "Offers", 0, ("s2", "s1")),
        Instruction("I02", "Greetings are none.", "", 1, ("s3", "s1")),
    ),
)


def general(model: Replying) -> Instruction | Failure:
    async def writing() -> Instruction | Failure:
        return await write_general_rules(lane_to(model), PROMPT, context_for(), {"spam": 12})

    return run_virtual(writing())


def test_general_rules_trace_to_every_rule_that_they_order() -> None:
    model = Replying(lambda asked: as_json(analysis="a", instruction="\nI01 before I02. "))
    assert general(model) == Instruction("G", "I01 before I02.", rule_ids=("s1", "s2", "s3"))
    content = model.seen[0].messages[1].content
    assert [one.attributes for one in read_all(content, "label")] == [
        {"name": "spam", "rows": "12"},
        {"name": "none", "rows": "0"},
    ]
    outer = read_one(content, "instructions")
    shown = list(read_all(outer.content, "instruction"))
    assert [(one.attributes["id"], one.text) for one in shown] == [
        (one.id, one.text) for one in PROMPT.instructions
    ]


def test_general_rules_that_do_not_come_are_a_failure() -> None:
    assert general(Replying(lambda asked: Answer("no JSON"))) == Failure(
        "general", "malformed", "not the JSON that was asked for (answer: json_invalid)"
    )
