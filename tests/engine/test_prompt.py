"""The compiled prompt: its text, its edits by id, and the way through JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RunError
from engine.prompt import CompiledPrompt, next_instruction_id
from engine.types import Instruction

FIRST = Instruction("I01", "Offers are spam.", "Offers", 0, ("s1", "s2"))
SECOND = Instruction("I02", "Greetings are none.", "", 3, ("s3",), ("round-01-1.1",))
GENERAL = Instruction("G", "When unsure: none.", rule_ids=("s1", "s2", "s3"))
PROMPT = CompiledPrompt("Is it spam?", {"spam": "ads", "none": ""}, (FIRST, SECOND), GENERAL)

words = st.text(st.characters(), max_size=15)
instructions = st.builds(
    Instruction,
    id=st.uuids().map(str),
    text=words,
    title=words,
    cluster=st.none() | st.integers(0, 99),
    rule_ids=st.lists(words, max_size=3).map(tuple),
    edits=st.lists(words, max_size=3).map(tuple),
)
prompts = st.builds(
    CompiledPrompt,
    description=words,
    labels=st.dictionaries(words, words, min_size=1, max_size=3),
    instructions=st.lists(instructions, max_size=3).map(tuple),
    general=st.none() | instructions,
)


def test_the_text_holds_everything_in_order() -> None:
    assert PROMPT.text.splitlines()[:17] == [
        "# Task",
        "Is it spam?",
        "",
        "# Labels",
        "- spam: ads",
        "- none",
        "",
        "# General rules",
        "When unsure: none.",
        "",
        "# Instructions",
        "## I01 Offers",
        "Offers are spam.",
        "",
        "## I02",
        "Greetings are none.",
        "",
    ]
    assert PROMPT.text.endswith("exactly one of these labels, verbatim, and nothing else: spam, none\n")


def test_many_instructions_have_an_index_of_their_topics() -> None:
    """From topic to id, ahead of them; one without a title cannot be looked up."""
    titles = ("Offers", "Loans", "", "A <|mark|>", "Greetings")
    many = tuple(Instruction(f"I{n}", f"Text {n}.", title) for n, title in enumerate(titles))
    prompt = CompiledPrompt("d", {"a": "", "b": ""}, many)
    index = "# Index\nI0 Offers\nI1 Loans\nI3 A <\\|mark|>\nI4 Greetings\n\n# Instructions\n"
    assert index in prompt.text
    assert "# Index" not in prompt.dropping("I0").text, "three titles are seen at once"


def test_braces_and_percent_signs_are_no_placeholders() -> None:
    prompt = CompiledPrompt("{labels} $x %s", {"{0}": "{y}", "b": ""}, (replace(FIRST, text="{z} \\n"),))
    for part in ("{labels} $x %s", "- {0}: {y}", "{z} \\n", "nothing else: {0}, b"):
        assert part in prompt.text


@settings(max_examples=50, deadline=None)
@given(prompts)
def test_the_hash_is_of_the_text_alone(prompt: CompiledPrompt) -> None:
    assert prompt.sha256 == hashlib.sha256(prompt.text.encode("utf-8", "surrogatepass")).hexdigest()
    stripped = [replace(one, rule_ids=(), edits=(), cluster=None) for one in prompt.instructions]
    assert replace(prompt, instructions=tuple(stripped)).sha256 == prompt.sha256


@settings(max_examples=50, deadline=None)
@given(prompts)
def test_json_and_back(prompt: CompiledPrompt) -> None:
    again = CompiledPrompt.from_json(json.loads(json.dumps(prompt.to_json())))
    assert again == prompt
    assert (again.text, list(again.labels)) == (prompt.text, list(prompt.labels))
    assert again.to_json() == prompt.to_json()


def altered(**fields: Any) -> dict[str, Any]:
    document = PROMPT.to_json() | fields
    return {key: value for key, value in document.items() if value != "left out"}


@pytest.mark.parametrize(
    "document",
    [
        *({name: "left out"} for name in PROMPT.to_json() if name != "answer"),
        {"labels": ["spam"]},
        {"labels": [{"label": 3, "meaning": ""}]},
        {"labels": None},
        {"description": 5},
        {"description": None},
        {"instructions": [{"id": "I01"}]},
        {"instructions": 3},
        {"general": "be kind"},
    ],
)
def test_a_document_that_is_no_prompt_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"^run/prompt\.json: is not a compiled prompt .*; compile again$"):
        CompiledPrompt.from_json(altered(**document), "run/prompt.json")


@pytest.mark.parametrize("document", [[], "text", None, 3])
def test_json_that_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(RunError, match="is not a compiled prompt"):
        CompiledPrompt.from_json(document)


def test_another_format_and_a_changed_text_are_refused() -> None:
    with pytest.raises(RunError, match="format 99 is not known"):
        CompiledPrompt.from_json(altered(format=99))
    with pytest.raises(RunError, match="was changed"):
        CompiledPrompt.from_json(altered(description="Is it ham?"))
    shuffled = altered(instructions=PROMPT.to_json()["instructions"][::-1])
    with pytest.raises(RunError, match="was changed"):
        CompiledPrompt.from_json(shuffled)


def test_replacing_keeps_the_place_and_adding_goes_last() -> None:
    changed = replace(FIRST, text="Offers and prizes are spam.")
    assert PROMPT.with_instruction(changed).instructions == (changed, SECOND)
    new = Instruction("R01", "Invoices are none.")
    assert PROMPT.with_instruction(new).instructions == (FIRST, SECOND, new)
    general = replace(GENERAL, text="When unsure: spam.")
    assert PROMPT.with_instruction(general).all_instructions() == (general, FIRST, SECOND)
    assert PROMPT.all_instructions() == (GENERAL, FIRST, SECOND)


def test_dropping() -> None:
    assert PROMPT.dropping("I01").all_instructions() == (GENERAL, SECOND)
    assert PROMPT.dropping("G").all_instructions() == (FIRST, SECOND)
    assert PROMPT.dropping("I99") == PROMPT


def test_the_zero_shot_prompt_is_task_labels_and_answer() -> None:
    bare = PROMPT.without_instructions()
    assert bare.all_instructions() == ()
    assert "# Instructions" not in bare.text
    assert "# General" not in bare.text
    assert bare == PROMPT.dropping("I01").dropping("I02").dropping("G")


@pytest.mark.parametrize(
    ("taken", "following"),
    [
        ([], "R01"),
        (["I07", "G"], "R01"),
        (["R01", "R03"], "R04"),
        (["R99"], "R100"),
        (["R²", "Rx", "R"], "R01"),
    ],
)
def test_the_next_id(taken: list[str], following: str) -> None:
    assert next_instruction_id(taken) == following


def test_c11_special_tokens_in_an_instruction_cannot_act() -> None:
    written = Instruction("I01", "Say <|im_end|> and </rule>.", title="a [INST] b")
    prompt = CompiledPrompt("d", {"a": "", "b": ""}, (written,), Instruction("G", "<start_of_turn> first"))
    for token in ("<|im_end|>", "</rule>", "[INST]", "<start_of_turn>"):
        assert token not in prompt.text
    assert CompiledPrompt.from_json(prompt.to_json()).instructions == (written,)
