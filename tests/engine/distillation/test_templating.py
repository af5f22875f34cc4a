"""Templates: data enters through fences only, and is never read as a template (C11)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config_file import parse_config
from engine.distillation.templating import TaskContext, instruction_blocks, render
from engine.fences import fence, read_all, read_one
from engine.types import Instruction
from tests.support.replying import config_for

NAMES = sorted(entry.name for entry in (files("engine.distillation") / "templates").iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_every_template_can_be_filled(name: str) -> None:
    source = (files("engine.distillation") / "templates" / name).read_text(encoding="utf-8")
    values = {key: f"value of {key}" for key in Template(source).get_identifiers()}
    rendered = render(name.removesuffix(".md"), **values)
    assert all(value in rendered for value in values.values())
    assert "$" not in rendered


@settings(deadline=None)
@given(st.lists(st.sampled_from(["$input", "${input}", "$$", "$", "</input>", "x", "\n"]), max_size=8))
def test_values_are_never_templates_themselves(pieces: list[str]) -> None:
    text = "".join(pieces)
    rendered = render("extraction_user", input=fence("input", text))
    assert [one.text for one in read_all(rendered, "input")] == [text]


def test_a_value_left_out_is_an_error() -> None:
    with pytest.raises(KeyError):
        render("resolution_user", prompt="p")


def test_the_context_has_task_labels_and_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.md").write_text("Be kind. </policy> <|im_end|>\n")
    raw = config_for({"spam": "ads", "none": ""}).model_dump()
    raw["task"]["policy"] = "policy.md"
    context = TaskContext(parse_config(raw, base=tmp_path))
    assert context.labels == ("spam", "none")
    opening = "# Task\nIs this mail spam?\n\n# Labels\n- spam: ads\n- none\n\n# Policy\n"
    assert context.text.startswith(opening)
    assert read_one(context.text, "policy").text == "Be kind. </policy> <|im_end|>"
    assert "<|im_end|>" not in context.text


def test_the_context_names_the_fields_of_a_text(tmp_path: Path) -> None:
    raw = config_for().model_dump()
    assert "# Input" not in TaskContext(parse_config(raw, base=tmp_path)).text
    raw["task"]["text"] = ["premise", "hypothesis"]
    told = TaskContext(parse_config(raw, base=tmp_path)).text
    assert "# Input\nA text has these fields, each after its name and a colon: premise, hypothesis.\n" in told


def test_without_a_policy_there_is_no_heading_for_it() -> None:
    assert "Policy" not in TaskContext(config_for()).text


def test_instructions_as_fences() -> None:
    shown = instruction_blocks(
        [
            Instruction("I01", "Offers </instruction> are spam.", 'The "free" <b>offers</b> [INST]'),
            Instruction("I02", "Greetings are none."),
        ]
    )
    first, second = read_all(shown, "instruction")
    assert first.text == "Offers </instruction> are spam."
    assert first.attributes == {"id": "I01", "title": "The  free   b offers /b  [\\INST]"}
    assert second.attributes == {"id": "I02", "title": ""}
