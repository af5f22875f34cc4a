"""Template files and how they are filled. Data enters only through fences (C11)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template

from engine.config import Config
from engine.fences import escape, fence
from engine.prompt import label_lines
from engine.types import Instruction


@cache
def _template(name: str) -> Template:
    return Template((files("engine.distillation") / "templates" / f"{name}.md").read_text(encoding="utf-8"))


def render(name: str, **values: str) -> str:
    """Fill `templates/NAME.md`. Values are inserted as they are and never read as templates themselves."""
    return _template(name).substitute(values).strip()


class TaskContext:
    """What every request to teacher, synthesizer and resolver opens with: task, labels, policy.

    It holds nothing of the data: a count in it would change with one label of one row, and every cache key
    with it.
    """

    def __init__(self, config: Config) -> None:
        policy = config.policy_text()
        parts = [f"# Task\n{config.task.description.strip()}"]
        if isinstance(config.task.text, tuple):
            fields = ", ".join(config.task.text)
            parts.append(f"# Input\nA text has these fields, each after its name and a colon: {fields}.")
        parts.append("# Labels\n" + label_lines(config.task.labels))
        if policy:
            parts.append("# Policy\n" + fence("policy", policy))
        self.text = "\n\n".join(parts)
        self.labels = config.labels


def instruction_blocks(instructions: Sequence[Instruction]) -> str:
    """Instructions as fences, with their ids, as synthesizer and resolver see them."""
    return "\n".join(
        fence("instruction", one.text, id=one.id, title=_plain(one.title)) for one in instructions
    )


def _plain(title: str) -> str:
    # an attribute cannot hold quotes or brackets, and a title comes from a model
    return escape("".join(" " if c in '"<>' else c for c in title))
