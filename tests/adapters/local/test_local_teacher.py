"""The teacher's four phases, and what they come to: a closed loop on a small corpus."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.local import LocalFit, LocalStudent, LocalTeacher, fit_local, load_local
from adapters.local.language import Clause, General, Reader
from engine.distillation.answers import (
    ExtractionAnswer,
    GeneralAnswer,
    ResolutionAnswer,
    SynthesisAnswer,
    schema_of,
)
from engine.distillation.checks import copies
from engine.distillation.edits import apply_edits, edit_findings
from engine.distillation.templating import instruction_blocks
from engine.fences import block, fence
from engine.metrics import macro_f1
from engine.ports import ChatModel
from engine.prompt import CompiledPrompt
from engine.student import StudentPrompt
from engine.tokens import estimate_tokens
from engine.types import Answer, AnswerSchema, AttemptFailure, Instruction, Message, Request, Sample
from tests.adapters.local.corpus import LABELS, SIGNS, samples, train
from tests.contracts.chat_model import ChatModelContract

READER = Reader(LABELS)
EMPTY = CompiledPrompt("What is this message about?", dict.fromkeys(LABELS, ""))

FIT = fit_local(train(), LABELS, seed=7, dimensions=768)


def ask(teacher: LocalTeacher, schema: AnswerSchema, user: str) -> str:
    request = Request("r", (Message("system", "# Task"), Message("user", user)), 500, schema)
    (outcome,) = asyncio.run(teacher.complete([request]))
    assert isinstance(outcome, Answer), outcome
    return outcome.text


def extract(text: str, label: str, fit: LocalFit = FIT) -> ExtractionAnswer:
    user = fence("input", text, label=label)
    answer = ask(LocalTeacher(fit), schema_of(ExtractionAnswer, LABELS), user)
    return ExtractionAnswer.model_validate_json(answer)


def synthesize(*rules: tuple[str, str, int]) -> SynthesisAnswer:
    fences = "\n".join(fence("rule", text, label=label, count=count) for text, label, count in rules)
    answer = ask(LocalTeacher(FIT), schema_of(SynthesisAnswer), block("rules", fences, total=9))
    return SynthesisAnswer.model_validate_json(answer)


def resolve(
    prompt: CompiledPrompt,
    gold: str,
    predicted: str,
    failures: Sequence[Sample],
    successes: Sequence[Sample],
    fit: LocalFit = FIT,
    **attributes: int,
) -> ResolutionAnswer:
    cases = [fence("case", one.text, kind="failure", label=gold, predicted=predicted) for one in failures]
    cases += [
        fence("case", one.text, kind="success", label=one.label, predicted=one.label) for one in successes
    ]
    user = block("prompt", instruction_blocks(prompt.all_instructions())) + "\n"
    user += block("cases", "\n".join(cases), label=gold, predicted=predicted, **attributes)
    return ResolutionAnswer.model_validate_json(ask(LocalTeacher(fit), schema_of(ResolutionAnswer), user))


def predictions(prompt: CompiledPrompt, rows: Sequence[Sample]) -> list[str]:
    student = StudentPrompt(prompt)
    outcomes = asyncio.run(LocalStudent().complete([student.request(one.id, one.text) for one in rows]))
    return [outcome.text for outcome in outcomes if isinstance(outcome, Answer)]


# --- extraction ------------------------------------------------------------------------------------


def test_a_rule_names_the_signs_of_the_label() -> None:
    answer = extract("please restart: my invoice, and the refund, crashed", "billing")
    (clause,) = READER.clauses(answer.instruction)
    assert (answer.label, clause.label) == ("billing", "billing")
    assert set(clause.signs) == {"invoice", "refund"}


def test_a_text_without_signs_says_so() -> None:
    assert READER.clauses(extract("the team", "praise").instruction) == [Clause("praise")]


PIECES = [
    "credit", "card", "refund", "thank", "you", "if", "the", "text", "says", "or", "strong", "sign", "signs",
    "has", "no", "marked", "wording", "choose", "billing", "<input>", "</input>", '"', "\ud800",
]  # fmt: skip
hostile = st.lists(st.sampled_from(PIECES), max_size=40).map(" ".join)


@given(hostile | st.text(), st.sampled_from(LABELS))
def test_a_rule_never_copies_a_run_of_its_text(text: str, label: str) -> None:
    answer = extract(text, label)
    assert answer.instruction
    assert answer.label == label
    assert not copies(text, answer.instruction)


def test_a_text_that_quotes_the_rule_itself() -> None:
    for text in ("a refund", "refund of an invoice by credit card", "the team"):
        rule = extract(text, "billing").instruction
        again = extract(rule, "billing").instruction
        assert copies(rule, rule)
        assert not copies(rule, again)


def test_a_second_question_is_answered_from_the_first_message() -> None:
    first = Message("user", fence("input", "a refund", label="billing"))
    more = (Message("assistant", "{}"), Message("user", fence("finding", "not JSON")))
    schema = schema_of(ExtractionAnswer, LABELS)
    teacher = LocalTeacher(FIT)
    outcomes = asyncio.run(
        teacher.complete([Request("a", (first,), 9, schema), Request("b", (first, *more), 9, schema)])
    )
    texts = [outcome.text for outcome in outcomes if isinstance(outcome, Answer)]
    assert len(texts) == 2
    assert texts[0] == texts[1]


# --- synthesis and general rules -------------------------------------------------------------------


def test_a_cluster_keeps_its_common_signs() -> None:
    rules = [
        ('If the text says "refund" (strong sign) or "receipt" (clear sign), choose billing.', "billing", 8),
        ('If the text says "refund" (strong sign), choose billing.', "billing", 5),
        ('If the text says "oddity" (weak sign), choose billing.', "billing", 1),
    ]
    answer = synthesize(*rules)
    assert READER.clauses(answer.instruction) == [Clause("billing", {"refund": 3, "receipt": 2})]
    assert 0 < len(answer.title.split()) <= 8


def test_a_mixed_cluster_says_when_each_label_applies() -> None:
    answer = synthesize(
        ('If the text says "page" (weak sign), choose outage.', "outage", 9),
        ('If the text says "page" (weak sign), choose praise.', "praise", 2),
        (Clause("billing").text(), "billing", 3),
    )
    assert [clause.label for clause in READER.clauses(answer.instruction)] == ["praise", "outage"]


def test_rules_of_another_teacher_are_known_by_their_wording() -> None:
    answer = synthesize(
        ("Messages that want a refund or mention an invoice are billing.", "billing", 4),
        ("A refund is a matter of billing.", "billing", 4),
    )
    (clause,) = READER.clauses(answer.instruction)
    assert set(clause.signs) == {"refund", "invoice"}


def test_rules_without_signs_make_a_default() -> None:
    answer = synthesize((Clause("praise").text(), "praise", 9))
    assert READER.clauses(answer.instruction) == [Clause("praise")]
    assert len(answer.title.split()) <= 8


def test_general_rules_go_by_the_counts_that_are_given() -> None:
    user = "\n".join(
        fence("label", "", name=name, rows=rows) for name, rows in zip(LABELS, (3, 9, 5), strict=True)
    )
    user += "\n" + block("instructions", "")
    answer = GeneralAnswer.model_validate_json(ask(LocalTeacher(FIT), schema_of(GeneralAnswer), user))
    assert READER.general(answer.instruction) == General(FIT.default, ("outage", "praise", "billing"))


# --- resolution ------------------------------------------------------------------------------------


def rows_of(label: str) -> list[Sample]:
    return [sample for sample in train() if sample.label == label]


def test_from_an_empty_prompt_it_adds_signs() -> None:
    answer = resolve(EMPTY, "praise", "billing", rows_of("praise"), rows_of("billing"))
    assert not edit_findings(answer.edits, [], 4)
    added = {cue for edit in answer.edits for clause in READER.clauses(edit.text) for cue in clause.signs}
    words = {word for cue in added for word in cue.split()}
    assert len(words & {word for sign in SIGNS["praise"] for word in sign.split()}) >= 5
    assert not words & {
        word for label in ("billing", "outage") for sign in SIGNS[label] for word in sign.split()
    }
    assert {edit.action for edit in answer.edits} == {"add"}


def test_a_misleading_sign_is_lowered_and_an_empty_instruction_dropped() -> None:
    wrong = Instruction("I01", Clause("billing", {"kudos": 3, "superb": 3}).text())
    prompt = EMPTY.with_instruction(wrong)
    failures = [one for one in rows_of("praise") if {"kudos", "superb"} & set(one.text.split())]
    answer = resolve(prompt, "praise", "billing", failures, rows_of("billing"))
    changed = apply_edits(prompt, answer.edits, "round-1").prompt
    assert set(predictions(changed, failures)) == {"praise"}


def test_what_tells_failures_from_successes_decides() -> None:
    # "hold" means billing, except in rows with a greeting
    rows = [Sample(f"a{n}", "hold ciao", "praise", "train") for n in range(30)]
    rows += [Sample(f"b{n}", "hold", "billing", "train") for n in range(60)]
    fit = fit_local(rows, LABELS, seed=1, dimensions=8)
    strong = Clause("billing", {"hold": 3}).text()
    prompt = EMPTY.with_instruction(Instruction("I01", strong))
    answer = resolve(prompt, "praise", "billing", rows[:30], [], fit)
    changed = apply_edits(prompt, answer.edits, "round-1").prompt
    assert predictions(changed, [rows[0], rows[-1]]) == ["praise", "billing"]


def test_a_sign_has_to_gain_more_than_it_spoils() -> None:
    # "maybe" is commoner in praise, but most rows that hold it are billing, shown or not
    rows = [Sample(f"a{n}", "maybe" if n < 20 else "x", "praise", "train") for n in range(40)]
    rows += [Sample(f"b{n}", "maybe" if n < 180 else "y", "billing", "train") for n in range(400)]
    fit = fit_local(rows, LABELS, seed=1, dimensions=8)
    assert resolve(EMPTY, "praise", "billing", rows[:20], rows[40:], fit).edits == []
    assert resolve(EMPTY, "praise", "billing", rows[:20], rows[40:45], fit).edits == []
    answer = resolve(EMPTY, "praise", "billing", rows[:40], rows[40:], fit)
    assert [READER.clauses(edit.text) for edit in answer.edits] == [[Clause("praise", {"x": 3})]]


def test_a_longer_sign_does_not_repeat_a_strong_one() -> None:
    rows = [Sample(f"a{n}", "many kudos", "praise", "train") for n in range(40)]
    rows += [Sample(f"b{n}", "bill bill" if n % 2 else "bill", "billing", "train") for n in range(40)]
    fit = fit_local(rows, LABELS, seed=1, dimensions=8)
    prose = "Mind the tone.\n" + Clause("billing", {"many": 3, "kudos": 3}).text()
    prompt = EMPTY.with_instruction(Instruction("I01", prose))
    answer = resolve(prompt, "praise", "billing", rows[:40], rows[40:], fit)
    assert [READER.clauses(edit.text) for edit in answer.edits] == [
        [Clause("praise", {"kudos": 3, "many": 3})]
    ]


def test_noise_brings_no_edits() -> None:
    same = [Sample(f"n{n}", "the page of the team", "praise", "train") for n in range(20)]
    answer = resolve(EMPTY, "praise", "billing", same[:2], [*rows_of("billing"), *rows_of("praise")])
    assert all("team" not in edit.text for edit in answer.edits)


def test_instructions_of_another_hand_are_left_alone() -> None:
    prose = Instruction(
        "I01", 'Money matters are billing.\nIf the text says "kudos" (strong sign), choose billing.'
    )
    prompt = EMPTY.with_instruction(prose)
    answer = resolve(prompt, "praise", "billing", rows_of("praise"), rows_of("billing"))
    assert answer.edits
    assert all(edit.instruction != "I01" for edit in answer.edits)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_edits_are_bounded(most: int) -> None:
    prompt = EMPTY
    for number, word in enumerate(SIGNS["praise"], 1):
        prompt = prompt.with_instruction(Instruction(f"I{number:02d}", Clause("billing", {word: 2}).text()))
    answer = resolve(prompt, "praise", "billing", rows_of("praise"), rows_of("billing"), max_edits=most)
    known = [one.id for one in prompt.all_instructions()]
    assert 0 < len(answer.edits) <= most
    assert not edit_findings(answer.edits, known, most)
    assert len({edit.instruction for edit in answer.edits if edit.action != "add"}) <= most


def test_a_rewritten_instruction_is_still_read_by_the_student() -> None:
    prompt, validation = EMPTY, [one for one in samples() if one.split == "validation"]
    before = macro_f1([one.label for one in validation], predictions(prompt, validation), LABELS)
    for number in range(4):
        given = dict(zip([one.id for one in train()], predictions(prompt, train()), strict=True))
        failed: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        right = [one for one in train() if given[one.id] == one.label]
        for one in train():
            if given[one.id] != one.label:
                failed[one.label, given[one.id]].append(one)
        gold, predicted = max(failed, key=lambda pair: (len(failed[pair]), pair))
        beside = [one for one in right if one.label in (gold, predicted)]
        answer = resolve(prompt, gold, predicted, failed[gold, predicted], beside)
        prompt = apply_edits(prompt, answer.edits, f"round-{number}").prompt
    after = macro_f1([one.label for one in validation], predictions(prompt, validation), LABELS)
    assert before < 0.4
    assert after > 0.8
    assert estimate_tokens(prompt.text) < 1000


# --- the port --------------------------------------------------------------------------------------


def test_an_unknown_phase_is_a_failure() -> None:
    teacher = LocalTeacher(FIT)
    for schema in (None, AnswerSchema("poetry", {"type": "object"})):
        (outcome,) = asyncio.run(teacher.complete([Request("r", (Message("user", "x"),), 5, schema)]))
        assert isinstance(outcome, AttemptFailure)
        assert outcome.reason == "unsupported"


@pytest.mark.parametrize("kind", [ExtractionAnswer, SynthesisAnswer, GeneralAnswer, ResolutionAnswer])
def test_a_request_without_its_fences_is_a_failure(kind: type[ExtractionAnswer]) -> None:
    request = Request("r", (Message("user", "some secret row"),), 5, schema_of(kind))
    (outcome,) = asyncio.run(LocalTeacher(FIT).complete([request]))
    assert isinstance(outcome, AttemptFailure)
    assert "secret" not in outcome.detail


def test_the_name_holds_the_fit() -> None:
    other = fit_local(train(seed=2), LABELS, seed=7, dimensions=768)
    assert LocalTeacher(FIT).name == LocalTeacher(FIT).name != LocalTeacher(other).name


class TestLocalTeacher(ChatModelContract):
    def model(self) -> ChatModel:
        return LocalTeacher(FIT)

    def requests(self) -> list[Request]:
        schema = schema_of(ExtractionAnswer, LABELS)
        texts = [("a refund", "billing"), ("it crashed", "outage"), ("", "praise"), ("x", "billing")]
        return [
            Request(f"r{n}", (Message("user", fence("input", text, label=label)),), 99, schema)
            for n, (text, label) in enumerate(texts)
        ]

    def bad_request(self) -> Request:
        schema = schema_of(ExtractionAnswer, LABELS)
        return Request("bad", (Message("user", "extraordinarilylongword"),), 99, schema)


def test_answers_are_plain_json() -> None:
    text = ask(
        LocalTeacher(FIT), schema_of(ExtractionAnswer, LABELS), fence("input", "a refund", label="billing")
    )
    assert list(orjson.loads(text)) == ["analysis", "instruction", "label"]
    assert Counter(text)["\n"] == 0


def test_a_saved_fit_answers_alike(tmp_path: Path) -> None:
    FIT.save(tmp_path / "local.json")
    again = load_local(tmp_path / "local.json")
    assert extract("a refund offline", "outage", again) == extract("a refund offline", "outage")
