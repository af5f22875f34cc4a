"""What is wrong with an extracted rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.checks import COPIED_WORDS, copies, rule_findings
from engine.types import Sample

SAMPLE = Sample("s1", "Win a free prize now, just call this number today!", "spam", "train")
word = st.text(st.sampled_from("abcdé"), min_size=1, max_size=4)
gap = st.sampled_from([" ", ", ", "\n", " - ", "; "])


def test_a_usable_rule_has_no_findings() -> None:
    assert rule_findings(SAMPLE, "Unasked offers of a free prize are spam.", "spam") == []


@pytest.mark.parametrize(
    ("instruction", "label", "found"),
    [
        (" \n", "spam", ["the instruction is empty"]),
        ("Offers are spam.", "none", ["the label must be spam, the true label of the text"]),
        ("Offers are spam.", "Spam", ["the label must be spam, the true label of the text"]),
        ("If it says: a FREE prize now - just call, spam.", "spam", ["repeats 6 or more words"]),
        ("", "none", ["the instruction is empty", "the label must be spam"]),
    ],
)
def test_findings(instruction: str, label: str, found: list[str]) -> None:
    told = rule_findings(SAMPLE, instruction, label)
    assert len(told) == len(found)
    assert all(part in finding for part, finding in zip(found, told, strict=True))
    assert not any("prize" in finding for finding in told)


@settings(deadline=None)
@given(st.lists(word, min_size=COPIED_WORDS, max_size=12), st.lists(gap, min_size=12, max_size=12), st.data())
def test_a_run_of_words_is_found_whatever_stands_between(
    words: list[str], gaps: list[str], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(words) - COPIED_WORDS))
    run = words[start : start + COPIED_WORDS]
    instruction = "".join(f"{one.upper()}{between}" for one, between in zip(run, gaps, strict=False))
    assert copies(" ".join(words), f"Choose it where {instruction}")


@settings(deadline=None)
@given(st.lists(word, max_size=30), st.lists(word, max_size=30))
def test_the_same_as_looking_at_every_run(theirs: list[str], ours: list[str]) -> None:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    assert copies(" ".join(theirs), " ".join(ours), words=3) == bool(runs(theirs) & runs(ours))


def test_short_runs_and_whole_words_only() -> None:
    assert not copies("one two three four five", "one two three four five")
    assert not copies("one two three four five six", "one two three four five sixth")
    assert not copies("one two three four five six", "one two three, four five and six")
    assert copies("ONE two, three four five six", "x one TWO three four (five) six")
