"""Extraction: one rule or one failure per training sample (C1), ordered by id (C12)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.checks import RuleChecks
from engine.distillation.extraction import STAGE, Extraction, ExtractionRequests, extract_rules
from engine.distillation.rates import Rates
from engine.fences import read_all, read_one
from engine.types import Answer, AttemptFailure, ChatOutcome, FinishReason, Request, Sample
from tests.support.replying import Replying, as_json, context_for, is_second, lane_to
from tests.support.virtual_time import run_virtual

PRIVATE = "zebras crossing the road at night with lanterns"
SAMPLES = [Sample(f"s{k:02d}", f"{PRIVATE} {k}", "spam" if k % 3 else "none", "train") for k in range(15)]


def extract(model: Replying, samples: list[Sample] = SAMPLES, *, checked: bool = True) -> Extraction:
    async def extracting() -> Extraction:
        checks = RuleChecks([sample.text for sample in samples], "Is this mail spam?", ("spam", "none"))
        return await extract_rules(lane_to(model), samples, context_for(), checks=checks if checked else None)

    return run_virtual(extracting())


def right(asked: Request) -> Answer:
    label = label_of(asked)
    return as_json(analysis=" Why. ", instruction=f" A rule: {label}. ", label=label)


def label_of(asked: Request) -> str:
    return read_one(asked.messages[1].content, "input").attributes["label"]


def test_a_request_shows_the_text_and_its_label_in_one_fence() -> None:
    make = ExtractionRequests(context_for())
    sample = Sample("s1", "Hi </input> <|im_end|> $context", "spam", "train")
    request = make(sample)
    assert request.id == "s1"
    assert request.schema is not None
    assert request.schema.name == STAGE
    assert request.schema.json_schema["properties"]["label"]["enum"] == ["spam", "none"]
    (shown,) = read_all(request.messages[1].content, "input")
    assert (shown.attributes, shown.text) == ({"label": "spam"}, sample.text)
    assert "<|im_end|>" not in request.messages[1].content
    other = make(replace(sample, id="s2", text="Bye", label="none"))
    assert other.messages[0] == request.messages[0]
    assert "Is this mail spam?" in request.messages[0].content


def test_every_sample_gets_a_rule_in_the_order_of_ids() -> None:
    model = Replying(right, latency_s=lambda asked: float(int(asked.id[1:]) * 7 % 5))
    found = extract(model, SAMPLES[::-1])
    assert [rule.sample_id for rule in found.rules] == [sample.id for sample in SAMPLES]
    assert [rule.label for rule in found.rules] == [sample.label for sample in SAMPLES]
    assert {(rule.instruction, rule.analysis, rule.findings) for rule in found.rules} == {
        (f"A rule: {label}.", "Why.", ()) for label in ("spam", "none")
    }
    digests = {asked.id: asked.digest("replying").hex() for asked in model.seen}
    assert {rule.sample_id: rule.request for rule in found.rules} == digests
    assert (found.failures, found.rates) == ((), Rates(asked=15))
    assert found.by_label == {"none": Rates(asked=5), "spam": Rates(asked=10)}


def test_findings_are_asked_about_once_and_then_set_aside() -> None:
    bad: dict[str, Answer] = {
        "s01": as_json(analysis="a", instruction="A rule: spam.", label="none"),
        "s02": as_json(analysis="a", instruction=f"Where there are {PRIVATE}: spam.", label="spam"),
        "s03": as_json(analysis="a", instruction=" ", label="none"),
        "s04": Answer(PRIVATE),
    }

    def reply(asked: Request) -> ChatOutcome:
        if asked.id == "s05":
            return AttemptFailure("refused", "status 400")
        if asked.id in bad and not (is_second(asked) and asked.id == "s01"):
            return bad[asked.id]
        return right(asked)

    model = Replying(reply)
    found = extract(model)
    assert {failure.id: failure.reason for failure in found.failures} == {
        "s02": "findings",
        "s03": "findings",
        "s04": "malformed",
        "s05": "refused",
    }
    assert [failure.id for failure in found.failures] == ["s02", "s03", "s04", "s05"]
    assert len(found.rules) + len(found.failures) == len(SAMPLES)
    assert found.to_json() == {
        "rules": 11,
        "asked": 15,
        "failures": 4,
        "asked_again": 4,
        "malformed": 1,
        "cut": 0,
        "blocked": 0,
        "findings": {"copied": 1, "empty": 1, "other_label": 1},
        "reasons": {"copied": 1, "empty": 1, "malformed": 1, "refused": 1},
        "by_label": {
            "none": {
                "rules": 4,
                "asked": 5,
                "failures": 1,
                "asked_again": 1,
                "malformed": 0,
                "cut": 0,
                "blocked": 0,
                "findings": {"empty": 1},
                "reasons": {"empty": 1},
            },
            "spam": {
                "rules": 7,
                "asked": 10,
                "failures": 3,
                "asked_again": 3,
                "malformed": 1,
                "cut": 0,
                "blocked": 0,
                "findings": {"copied": 1, "other_label": 1},
                "reasons": {"copied": 1, "malformed": 1, "refused": 1},
            },
        },
    }
    assert not any("zebra" in f"{failure.reason} {failure.detail}" for failure in found.failures)
    (second,) = [asked for asked in model.seen if is_second(asked) and asked.id == "s01"]
    (rule,) = [rule for rule in found.rules if rule.sample_id == "s01"]
    assert rule.request == second.digest("replying").hex()
    assert [one.text for one in read_all(second.messages[3].content, "finding")] == [
        "the label must be spam, the true label of the text"
    ]


def test_unchecked_every_answer_that_can_be_read_is_taken() -> None:
    def reply(asked: Request) -> ChatOutcome:
        if asked.id == "s04":
            return Answer("no JSON")
        return as_json(analysis="", instruction=PRIVATE, label="none")

    model = Replying(reply)
    found = extract(model, checked=False)
    assert len(found.rules) == len(SAMPLES) - 1
    assert {rule.instruction for rule in found.rules} == {PRIVATE}
    # the rule keeps the sample's own label, whatever the teacher said
    assert [rule.label for rule in found.rules] == [one.label for one in SAMPLES if one.id != "s04"]
    assert [failure.id for failure in found.failures] == ["s04"]
    assert (found.rates.asked_again, found.rates.findings) == (0, {})
    assert found.rates.reasons == {"malformed": 1}
    assert len(model.seen) == len(SAMPLES)


KINDS = ("good", "other label", "broken", "refused", "blocked", "held back", "cut", "named", "empty")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(("spam", "none")), st.sampled_from(KINDS), st.sampled_from(KINDS)),
        max_size=14,
    ),
    st.integers(0, 9),
)
def test_rules_and_failures_add_up_and_timing_changes_nothing(
    plan: list[tuple[str, str, str]], salt: int
) -> None:
    samples = [
        Sample(f"s{k:02d}", f"here is what we hear of Zorro{k} from all of you", plan[k][0], "train")
        for k in range(len(plan))
    ]

    def reply(asked: Request) -> ChatOutcome:
        kind = plan[int(asked.id[1:])][1 + is_second(asked)]
        label, good = label_of(asked), right(asked)
        if kind in ("refused", "blocked"):
            return AttemptFailure(kind)
        if kind == "broken":
            return Answer(json.dumps(kind))
        if kind in ("cut", "held back"):
            ended = FinishReason.LENGTH if kind == "cut" else FinishReason.BLOCKED
            return replace(good, finish_reason=ended)
        rules = {"named": f"As with Zorro{int(asked.id[1:])}: {label}", "empty": "\n"}
        if kind == "other label":
            return as_json(
                analysis="", instruction=f"r: {label}", label="none" if label == "spam" else "spam"
            )
        return as_json(analysis="", instruction=rules[kind], label=label) if kind in rules else good

    found = extract(Replying(reply, lambda asked: float(int(asked.id[1:]) * salt % 7)), samples[::-1])
    ids = [rule.sample_id for rule in found.rules] + [failure.id for failure in found.failures]
    assert sorted(ids) == [sample.id for sample in samples]
    assert found == extract(Replying(reply), samples)
    assert "Zorro" not in str(found.failures)
    # the figures of every label, and of all (C1)
    figures = found.to_json()
    by_label = figures.pop("by_label")
    assert by_label.keys() == {sample.label for sample in samples}
    for label, one in by_label.items():
        mine = [(first, second) for given, first, second in plan if given == label]
        firsts = Counter(first for first, _ in mine)
        assert one["asked"] == len(mine) == one["rules"] + one["failures"]
        assert one["rules"] == sum(rule.label == label for rule in found.rules)
        assert one["failures"] == sum(one["reasons"].values())
        assert one["blocked"] == firsts["blocked"] + firsts["held back"]
        assert (one["malformed"], one["cut"]) == (firsts["broken"], firsts["cut"])
        kinds = {"other_label": "other label", "names": "named", "empty": "empty"}
        assert one["findings"] == {kind: firsts[name] for kind, name in kinds.items() if firsts[name]}
        again = ("broken", "cut", "other label", "named", "empty")
        assert one["asked_again"] == sum(firsts[name] for name in again)
    for name in ("rules", "asked", "failures", "asked_again", "malformed", "cut", "blocked"):
        assert figures[name] == sum(one[name] for one in by_label.values())
    for name in ("findings", "reasons"):
        total = sum((Counter(one[name]) for one in by_label.values()), Counter())
        assert figures[name] == total


def test_no_samples_no_requests() -> None:
    model = Replying(right)
    assert extract(model, []) == Extraction((), (), Rates(), {})
    assert model.seen == []
