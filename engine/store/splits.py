"""Dividing labelled rows into splits, and keeping equal texts from standing in two of them."""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.types import SPLITS, Sample, SplitName


class _Keep(dict[int, str | None]):
    """For `str.translate`: drops punctuation, spacing and invisible characters, learnt as they come up."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        # P: punctuation, Z: spaces, Cc/Cf: control and format characters. Letters, marks, digits and symbols
        # (emoji, currency) stay: they carry meaning.
        dropped = char in string.punctuation or unicodedata.category(char)[0] in "PZ"
        dropped = dropped or unicodedata.category(char) in ("Cc", "Cf")
        self[code] = kept = None if dropped else char
        return kept


_KEEP = _Keep()


def normal_form(text: str) -> str:
    """What is left of a text without case, punctuation and spacing; equal for texts that count as the same.

    Composed and decomposed accents are the same. A text of nothing but punctuation stands for itself.
    """
    return unicodedata.normalize("NFC", text.casefold().translate(_KEEP)) or text.strip()


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Texts that differ at most in case, punctuation or spacing.

    `groups`: the ids of each text that occurs more than once, sorted, among all usable rows.
    `repeated[split]`: rows of a split whose text stands earlier in the same split; they are kept.
    `conflicting`: groups whose rows have different labels.
    `dropped[split]`: rows taken out because their text stands in a later split, too (C7): training texts of
    validation or test, validation texts of test.
    """

    groups: tuple[tuple[str, ...], ...]
    repeated: Mapping[SplitName, int]
    conflicting: int
    dropped: Mapping[SplitName, int]


def separate(samples: Sequence[Sample]) -> tuple[list[Sample], Duplicates]:
    """Take every text out of all splits but the last it stands in; the order is train, validation, test."""
    by_text: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_text[normal_form(sample.text)].append(sample)
    groups: list[tuple[str, ...]] = []
    repeated: dict[SplitName, int] = dict.fromkeys(SPLITS, 0)
    dropped: dict[SplitName, int] = dict.fromkeys(SPLITS, 0)
    conflicting = 0
    gone: set[str] = set()
    for equal in by_text.values():
        if len(equal) == 1:
            continue
        groups.append(tuple(sorted(sample.id for sample in equal)))
        conflicting += len({sample.label for sample in equal}) > 1
        last = max(SPLITS.index(sample.split) for sample in equal)
        for position, split in enumerate(SPLITS):
            here = [sample for sample in equal if sample.split == split]
            if position < last:
                dropped[split] += len(here)
                gone.update(sample.id for sample in here)
            elif here:
                repeated[split] += len(here) - 1
    kept = [sample for sample in samples if sample.id not in gone]
    return kept, Duplicates(tuple(sorted(groups)), repeated, conflicting, dropped)


def stratify(
    rows: Sequence[tuple[str, str, str]], fractions: tuple[float, float, float], seed: int
) -> dict[str, SplitName]:
    """Divide (id, text, label) rows into splits: each label by `fractions`, rounded by largest remainder.

    Depends on seed and ids alone, not on the order of rows. Equal texts stay together (their group counts as
    one run of rows of its first id's label), so shares can be off by the size of a group.
    """
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row_id, text, label in sorted(rows):
        groups[normal_form(text)].append((row_id, label))
    by_label: dict[str, list[list[str]]] = defaultdict(list)
    for group in groups.values():
        by_label[group[0][1]].append([row_id for row_id, _ in group])
    assigned: dict[str, SplitName] = {}
    for units in by_label.values():
        units.sort(key=lambda ids: hashlib.sha256(f"{seed}:{ids[0]}".encode()).digest())
        counts = largest_remainder(sum(map(len, units)), fractions)
        place = 0
        for ids in units:
            in_train, in_validation = place < counts[0], place < counts[0] + counts[1]
            split: SplitName = "train" if in_train else "validation" if in_validation else "test"
            assigned.update(dict.fromkeys(ids, split))
            place += len(ids)
    return assigned


def largest_remainder(n: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `n` in the given proportions (Hamilton's method); earlier shares win ties."""
    total = sum(fractions)
    # rounded, because 36 * 0.85 is 30.599999999999998 and ties must be seen as ties
    quotas = [round(n * share / total, 9) for share in fractions]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda i: round(counts[i] - quotas[i], 9))
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    return counts
