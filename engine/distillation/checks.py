"""What is wrong with an extracted rule, if anything."""

from __future__ import annotations

import re

from engine.types import Sample

COPIED_WORDS = 6
"""A run of so many consecutive words of the sample counts as copied."""

_WORD = re.compile(r"\w+")


def rule_findings(sample: Sample, instruction: str, stated_label: str) -> list[str]:
    """One line per defect, in words that can be shown to the teacher; empty for a usable rule."""
    found = []
    if not instruction.strip():
        found.append("the instruction is empty")
    if stated_label != sample.label:
        found.append(f"the label must be {sample.label}, the true label of the text")
    if copies(sample.text, instruction):
        found.append(f"the instruction repeats {COPIED_WORDS} or more words of the text in a row")
    return found


def copies(text: str, instruction: str, words: int = COPIED_WORDS) -> bool:
    """True where `instruction` holds a run of `words` consecutive words of `text` (case and marks aside)."""
    ours = [word.lower() for word in _WORD.findall(instruction)]
    if len(ours) < words:
        return False
    theirs = [word.lower() for word in _WORD.findall(text)]
    runs = {tuple(theirs[i : i + words]) for i in range(len(theirs) - words + 1)}
    return any(tuple(ours[i : i + words]) in runs for i in range(len(ours) - words + 1))
