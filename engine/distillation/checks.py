"""What is wrong with an extracted rule, if anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from engine.distillation.answers import ExtractionAnswer, Finding
from engine.distillation.vocabulary import (
    Vocabulary,
    addresses,
    bare_words,
    is_capital,
    name_words,
    number_parts,
    numbers,
    words,
)
from engine.types import Sample

COPIED_WORDS = 6
"""A run of so many consecutive words of the sample counts as copied."""
MOST_WORDS, MOST_CHARACTERS = 120, 1200
"""The longest rule. Those of a large language model have 23 to 45 words; scripts without spaces are measured
in characters."""
_SHOWN_DETAILS = 8

_WORD = re.compile(r"\w+")
_END = ".!\"'\u201d\u2019)*`\u3002 "


class RuleChecks:
    """The checks of one extraction. `texts` are all training texts, `task` the words that the task itself
    uses: what many texts have, or the task says, is no detail of one sample."""

    def __init__(self, texts: Sequence[str], task: str, labels: Iterable[str]) -> None:
        self._vocabulary = Vocabulary(texts, task)
        self._labels = tuple(labels)

    def findings(self, sample: Sample, answer: ExtractionAnswer) -> list[Finding]:
        """One finding per kind of defect; empty for a usable rule."""
        return list(self._findings(sample, answer.instruction, answer.label))

    def _findings(self, sample: Sample, rule: str, stated: str) -> Iterator[Finding]:
        if stated != sample.label:
            yield Finding("other_label", f"the label must be {sample.label}, the true label of the text")
        if not rule.strip():
            yield Finding("empty", "the instruction is empty")
            return
        if not concludes(rule, sample.label, self._labels):
            yield Finding("no_label", f"the instruction must end with the label {sample.label}")
        if len(rule) > MOST_CHARACTERS or len(rule.split()) > MOST_WORDS:
            line = f"the instruction is longer than {MOST_WORDS} words: write one rule"
            yield Finding("too_long", line)
        if run := copied_run(sample.text, rule):
            line = f"the instruction repeats {COPIED_WORDS} or more words of the text in a row"
            yield Finding("copied", line, f'{line}: "{run}"')
        found = self._vocabulary.details(numbers(rule))
        if found and (found := found & number_parts(sample.text)):
            yield _details("numbers", "the instruction repeats numbers of the text", found)
        if found := self.names(sample.text, rule):
            yield _details("names", "the instruction repeats names of the text", found)

    def names(self, text: str, rule: str) -> set[str]:
        """Names of `text` that `rule` repeats, case-folded: links, mentions and the like, and capitalised
        words.

        Within a sentence the rule's own capital tells a name, however the text writes it. Where a sentence
        of the rule begins with the word, the text must have it as a name, and no text in small letters.
        """
        known = self._vocabulary
        found = known.details(addresses(rule))
        if found:
            found &= addresses(text)
        if not known.capitals_tell_names:
            return found
        # seldom a word of the rule may be a name; only then the rule is read closely, and the text at all
        if not any(is_capital(word) and known.is_detail(word.casefold()) for word in bare_words(rule)):
            return found
        inside, first = set(), set()
        for word in words(rule):
            folded = word.text.casefold()
            if is_capital(word.text) and known.is_detail(folded):
                if word.inside:
                    inside.add(folded)
                elif known.never_small(folded):
                    first.add(folded)
        if inside:
            found |= inside & {word.casefold() for word in bare_words(text)}
        if first:
            found |= first & name_words(text)
        return found


def copies(text: str, instruction: str, words: int = COPIED_WORDS) -> bool:
    """True where `instruction` holds a run of `words` consecutive words of `text` (case and marks aside)."""
    return bool(copied_run(text, instruction, words))


def copied_run(text: str, instruction: str, size: int = COPIED_WORDS) -> str:
    """The first run of `size` consecutive words of `text` in `instruction`, in small letters; "" for none."""
    ours = [word.lower() for word in _WORD.findall(instruction)]
    if len(ours) < size:
        return ""
    theirs = [word.lower() for word in _WORD.findall(text)]
    runs = {tuple(theirs[i : i + size]) for i in range(len(theirs) - size + 1)}
    found = (ours[i : i + size] for i in range(len(ours) - size + 1) if tuple(ours[i : i + size]) in runs)
    return " ".join(next(found, ()))


def concludes(rule: str, label: str, labels: Iterable[str]) -> bool:
    """Whether `rule` names `label`, and does not end in another one whose last sentence leaves it out.

    Case and marks do not count: "Hate speech" is `hate_speech`.
    """
    ended = rule.rstrip().rstrip(_END)
    if ended.endswith(f" {label}"):  # as asked for, and as nearly all do
        return True
    if not names_label(rule, label):
        return False
    last = re.split(r"(?<=[.!?:;\n\u3002])\s*", ended)[-1]
    if names_label(last, label):
        return True
    ending = _plain(last)
    others = (_plain(one) for one in labels if one != label)
    return not any(other and (ending == other or ending.endswith(f" {other}")) for other in others)


def names_label(rule: str, label: str) -> bool:
    """Whether `label` stands in `rule` as words of their own (anywhere, in scripts without spaces)."""
    plain = _plain(label)
    if not plain:  # a label of marks alone
        return label in rule
    if plain.lower() == plain.upper() and not plain.isdigit():
        return plain in _plain(rule)
    return f" {plain} " in f" {_plain(rule)} "


def _plain(text: str) -> str:
    return " ".join(bare_words(text.casefold()))


def _details(kind: str, line: str, found: set[str]) -> Finding:
    listed = ", ".join(f'"{one}"' for one in sorted(found)[:_SHOWN_DETAILS])
    return Finding(kind, line, f"{line} ({listed}): say what kind of thing it is instead")
