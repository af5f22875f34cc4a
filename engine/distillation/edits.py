"""Bounded edits of a prompt, each traceable to the cases it was made for (C9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.distillation.answers import Edit
from engine.prompt import CompiledPrompt, next_instruction_id
from engine.types import Instruction


@dataclass(frozen=True)
class Applied:
    """A prompt after edits; `touched` are the ids of the instructions that they changed, `skipped` says which
    edits were left out and why."""

    prompt: CompiledPrompt
    touched: frozenset[str]
    skipped: tuple[str, ...]


def edit_findings(edits: Sequence[Edit], known: Sequence[str], max_edits: int) -> list[str]:
    """What makes a list of edits unusable, in words that can be shown to the resolver."""
    found = []
    if len(edits) > max_edits:
        found.append(f"at most {max_edits} edits are allowed")
    for edit in edits:
        if edit.action != "add" and edit.instruction not in known:
            found.append(f"there is no instruction to {edit.action} with this id; known: {', '.join(known)}")
        if edit.action != "drop" and not edit.text.strip():
            found.append(f"the text to {edit.action} is empty")
    return list(dict.fromkeys(found))


def apply_edits(
    prompt: CompiledPrompt, edits: Sequence[Edit], name: str, *, locked: frozenset[str] = frozenset()
) -> Applied:
    """Apply `edits` in order; the n-th is recorded as `NAME.n` on the instruction it changes.

    Edits of an instruction in `locked` (changed already since the resolver saw the prompt) are skipped: they
    were written for another text.
    """
    touched: set[str] = set()
    skipped = []
    # a dropped id is not given again here: a later edit may still mean the instruction that had it
    taken = [one.id for one in prompt.all_instructions()] + sorted(locked)
    for number, edit in enumerate(edits, start=1):
        edit_name = f"{name}.{number}"
        present = {one.id: one for one in prompt.all_instructions()}
        if edit.action == "add":
            new = Instruction(
                id=next_instruction_id(taken),
                title=" ".join(edit.title.split()),
                text=edit.text.strip(),
                edits=(edit_name,),
            )
            prompt = prompt.with_instruction(new)
            touched.add(new.id)
            taken.append(new.id)
        elif edit.instruction in locked or edit.instruction not in present:
            skipped.append(f"{edit_name}: {edit.instruction} was changed since the resolver saw it")
        elif edit.action == "drop":
            prompt = prompt.dropping(edit.instruction)
            touched.add(edit.instruction)
        else:
            old = present[edit.instruction]
            title = " ".join(edit.title.split()) or old.title
            changed = replace(old, title=title, text=edit.text.strip(), edits=(*old.edits, edit_name))
            prompt = prompt.with_instruction(changed)
            touched.add(edit.instruction)
    return Applied(prompt, frozenset(touched), tuple(skipped))
