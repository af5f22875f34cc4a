"""Bounded edits: what they may change, and that each can be traced (C9)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.answers import Edit
from engine.distillation.edits import Applied, apply_edits, edit_findings
from engine.prompt import CompiledPrompt
from engine.types import Instruction

FIRST = Instruction("I01", "Offers are spam.", "Offers", 0, ("s1",))
SECOND = Instruction("I02", "Greetings are none.", "Greetings", 1, ("s2",), ("round-01-1.1",))
ADDED = Instruction("R01", "Invoices are none.", edits=("round-01-2.1",))
GENERAL = Instruction("G", "When unsure: none.")
PROMPT = CompiledPrompt("Is it spam?", {"spam": "", "none": ""}, (FIRST, SECOND, ADDED), GENERAL)
KNOWN = ["G", "I01", "I02", "R01"]


def replacing(one: str, text: str, title: str = "") -> Edit:
    return Edit(action="replace", instruction=one, title=title, text=text, reason="r")


def adding(text: str, title: str = "") -> Edit:
    return Edit(action="add", instruction="", title=title, text=text, reason="r")


def drop(one: str) -> Edit:
    return Edit(action="drop", instruction=one, title="", text="", reason="r")


def test_replacing_keeps_place_provenance_and_title() -> None:
    applied = apply_edits(PROMPT, [replacing("I02", " Greetings of friends are none.\n")], "round-02-1")
    changed = replace(SECOND, text="Greetings of friends are none.", edits=("round-01-1.1", "round-02-1.1"))
    assert applied == Applied(PROMPT.with_instruction(changed), frozenset({"I02"}), ())
    assert [one.id for one in applied.prompt.instructions] == ["I01", "I02", "R01"]
    titled = apply_edits(PROMPT, [replacing("I02", "x", " Two\nwords ")], "e").prompt
    assert titled.instructions[1].title == "Two words"


def test_adding_goes_last_under_a_new_id() -> None:
    applied = apply_edits(PROMPT, [adding("Loans are spam.", " The\tloans "), adding("Ads are spam.")], "e")
    assert applied.prompt.instructions[3:] == (
        Instruction("R02", "Loans are spam.", "The loans", edits=("e.1",)),
        Instruction("R03", "Ads are spam.", edits=("e.2",)),
    )
    assert applied.touched == {"R02", "R03"}


def test_dropping() -> None:
    applied = apply_edits(PROMPT, [drop("I01"), drop("G")], "e")
    assert applied.prompt.all_instructions() == (SECOND, ADDED)
    assert applied.touched == {"I01", "G"}


def test_the_general_rules_can_be_edited() -> None:
    applied = apply_edits(PROMPT, [replacing("G", "When unsure: spam.")], "e")
    assert applied.prompt.general == replace(GENERAL, text="When unsure: spam.", edits=("e.1",))
    assert applied.prompt.instructions == PROMPT.instructions


def test_what_has_changed_since_the_resolver_looked_is_left_alone() -> None:
    edits = [replacing("I01", "x"), replacing("I02", "y"), drop("R01")]
    applied = apply_edits(PROMPT, edits, "e", locked=frozenset({"I01", "R01"}))
    assert applied.touched == {"I02"}
    assert applied.skipped == (
        "e.1: I01 was changed since the resolver saw it",
        "e.3: R01 was changed since the resolver saw it",
    )
    assert [one.text for one in applied.prompt.instructions] == [
        "Offers are spam.",
        "y",
        "Invoices are none.",
    ]
    assert applied.prompt.instructions[1].edits[-1] == "e.2"


def test_an_id_that_is_gone_is_not_given_to_another_instruction_meanwhile() -> None:
    edits = [drop("R01"), adding("Loans are spam."), replacing("R01", "Invoices of friends are none.")]
    applied = apply_edits(PROMPT, edits, "e")
    assert [(one.id, one.text) for one in applied.prompt.instructions[2:]] == [("R02", "Loans are spam.")]
    assert applied.skipped == ("e.3: R01 was changed since the resolver saw it",)
    earlier = apply_edits(PROMPT.dropping("R01"), [adding("x")], "e", locked=frozenset({"R01"}))
    assert earlier.prompt.instructions[-1].id == "R02"


def test_no_edits_change_nothing() -> None:
    assert apply_edits(PROMPT, [], "e") == Applied(PROMPT, frozenset(), ())


@pytest.mark.parametrize(
    ("edits", "found"),
    [
        ([], []),
        ([replacing("I01", "x"), adding("y"), drop("G")], []),
        ([drop("I09")], ["there is no instruction to drop with this id; known: G, I01, I02, R01"]),
        ([replacing("i01", "x")], ["there is no instruction to replace with this id"]),
        ([replacing("I01", " \n")], ["the text to replace is empty"]),
        ([adding("")], ["the text to add is empty"]),
        ([drop("I01")] * 4, ["at most 3 edits are allowed"]),
        ([adding("")] * 50, ["at most 3 edits are allowed", "the text to add is empty"]),
    ],
)
def test_findings(edits: list[Edit], found: list[str]) -> None:
    told = edit_findings(edits, KNOWN, 3)
    assert len(told) == len(found)
    assert all(finding.startswith(part) for part, finding in zip(found, told, strict=True))


def test_findings_do_not_repeat_what_the_resolver_wrote() -> None:
    edit = Edit(action="replace", instruction="zebra", title="zebra", text="", reason="zebra")
    assert not any("zebra" in finding for finding in edit_findings([edit], KNOWN, 3))


ids = st.sampled_from([*KNOWN, "R02", "R03", "nowhere"])
texts = st.sampled_from(["one rule", " another rule ", "a third"])
edits_of_any_kind = st.one_of(
    st.builds(replacing, ids, texts, st.sampled_from(["", "title"])),
    st.builds(adding, texts),
    st.builds(drop, ids),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(edits_of_any_kind, max_size=8), st.sets(ids))
def test_what_always_holds(edits: list[Edit], locked: set[str]) -> None:
    applied = apply_edits(PROMPT, edits, "e", locked=frozenset(locked))
    before = {one.id: one for one in PROMPT.all_instructions()}
    after = {one.id: one for one in applied.prompt.all_instructions()}
    assert len(after) == len(applied.prompt.all_instructions())
    # only what is named as touched differs, and nothing that was locked
    assert {
        one for one in before.keys() | after.keys() if before.get(one) != after.get(one)
    } <= applied.touched
    assert not applied.touched & locked
    kept = [one.id for one in applied.prompt.instructions if one.id in before]
    assert kept == [one.id for one in PROMPT.instructions if one.id in after]
    new = [one.id for one in applied.prompt.instructions if one.id not in before]
    assert [one.id for one in applied.prompt.instructions] == kept + new
    assert len(applied.skipped) + len(applied.touched) <= len(edits)
    named = [f"e.{number}" for number in range(1, len(edits) + 1)]
    for one, instruction in after.items():
        old = before.get(one)
        earlier = old.edits if old else ()
        assert instruction.edits[: len(earlier)] == earlier
        mine = list(instruction.edits[len(earlier) :])
        assert mine == [name for name in named if name in mine]
        assert bool(mine) == (one in applied.touched)
        if old:
            assert (instruction.cluster, instruction.rule_ids) == (old.cluster, old.rule_ids)
        assert instruction.text == instruction.text.strip() != ""
