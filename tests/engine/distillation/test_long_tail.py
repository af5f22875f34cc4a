"""Rules outside every cluster: which of them are tried, and what becomes of them in a prompt."""

from __future__ import annotations

import numpy as np

from engine.distillation.long_tail import LongTailLibrary, taking_up
from engine.prompt import CompiledPrompt
from engine.types import FloatVector, Instruction, MicroRule, Sample


def vectors(*degrees: float) -> FloatVector:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def rule(name: str, label: str) -> MicroRule:
    return MicroRule(name, label, f"what {name} says")


def rows(*names: str, label: str = "spam") -> list[Sample]:
    return [Sample(name, f"text of {name}", label, "train") for name in names]


RULES = [rule("a", "spam"), rule("b", "spam"), rule("c", "spam"), rule("d", "none"), rule("e", "spam")]
# a and b beside each other, c and e beside each other; d between them
LIBRARY = LongTailLibrary(RULES, vectors(0, 5, 90, 45, 80), outside=[0, 2, 3])


def names(found: list[MicroRule]) -> list[str]:
    return [one.sample_id for one in found]


def test_each_wrong_row_votes_for_the_nearest_rule_of_its_own_label() -> None:
    found = LIBRARY.speaking_for(rows("a", "b", "c", "e"), dict.fromkeys("abce", "none"), most=4)
    assert names(found) == ["a", "c"]


def test_rules_with_more_votes_go_first_and_only_so_many() -> None:
    library = LongTailLibrary(RULES, vectors(0, 85, 90, 45, 80), outside=[0, 2])
    failed = rows("a", "b", "c", "e")
    assert names(library.speaking_for(failed, dict.fromkeys("abce", "none"), most=4)) == ["c"]
    assert library.speaking_for(failed, dict.fromkeys("abce", "none"), most=0) == []


def test_one_row_does_not_make_a_rule() -> None:
    assert LIBRARY.speaking_for(rows("a"), {"a": "none"}, most=4) == []


def test_rows_decided_rightly_or_not_at_all_have_no_vote() -> None:
    predicted: dict[str, str | None] = {"a": "none", "b": "spam", "c": None, "e": "none"}
    assert LIBRARY.speaking_for(rows("a", "b", "c", "e"), predicted, most=4) == []


def test_rows_without_a_rule_and_labels_without_rare_rules_have_no_vote() -> None:
    failed = [*rows("a", "b", "unknown"), *rows("x", "y", label="other")]
    predicted = dict.fromkeys(["a", "b", "unknown", "x", "y"], "none")
    assert names(LIBRARY.speaking_for(failed, predicted, most=4)) == ["a"]


def test_a_rule_becomes_an_instruction_that_names_its_row_and_its_edit() -> None:
    prompt = CompiledPrompt("Decide.", {"none": "", "spam": ""}, (Instruction("R01", "old"),))
    new = taking_up(prompt, RULES[2], "long-tail-1").instructions[-1]
    assert (new.id, new.text) == ("R02", "what c says")
    assert (new.rule_ids, new.edits, new.cluster) == (("c",), ("long-tail-1",), None)
