"""What columns look like, in a sample and in a whole file, and which could be text, label, id or split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from engine.config import field_names_problem
from engine.store.labelled import SPLIT_NAMES
from engine.store.tables import is_number, read_table, word_of
from engine.store.text_tables import Problem
from engine.types import SPLITS, SplitName

Role: TypeAlias = Literal["text", "label", "id", "split"]

MOST_LABELS = 1000
"""A column of more different values holds no labels, whatever it is called."""
MOST_UNNAMED_LABELS = 100
"""The same for a column whose name does not say that it holds labels."""

# Words that name a column, the surest first.
_KNOWN: dict[Role, tuple[str, ...]] = {
    "text": (
        "text", "message", "content", "sentence", "tweet", "comment", "review", "body", "post", "document",
        "utterance", "input", "ticket", "question", "query", "prompt", "headline", "email", "sms", "premise",
        "title", "description", "abstract", "transcript",
    ),
    "label": (
        "label", "labels", "class", "category", "target", "gold", "topic", "intent", "sentiment", "tag",
        "annotation", "answer", "emotion", "stance", "verdict", "y",
    ),
    "id": ("id", "uid", "uuid", "guid", "key", "identifier"),
    "split": ("split", "subset", "fold", "partition", "set"),
}  # fmt: skip
# Two columns that are one input: neither says enough alone.
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
)
_SURE = 2.0
_CLOSE = 4.0
_PASS_ROWS = 4096
_IDS_CHECKED = 1_000_000

Counts: TypeAlias = Counter[tuple[str | None, SplitName | None]]
"""Rows of each (label, split); None where a row has none."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column in the sample. `values` are there, a share `filled` of all; the other shares are of these.

    `textual`: strings that are no numbers; `words`: usable as a label or an id; `prose`: strings with a
    space, or in a script that may need none. `length` is the mean in characters.
    """

    name: str
    values: int
    filled: float
    textual: float
    words: float
    prose: float
    distinct: int
    length: float

    @classmethod
    def look(cls, name: str, values: Sequence[object]) -> Column:
        words = [word for word in map(word_or_none, values) if word is not None]
        texts = [
            value for value in values if isinstance(value, str) and value.strip() and not is_number(value)
        ]
        # lists and the like are there, and are no words
        there = len(words) + sum(isinstance(value, list | dict) for value in values)
        n = max(1, there)
        return cls(
            name=name,
            values=there,
            filled=there / max(1, len(values)),
            textual=len(texts) / n,
            words=len(words) / n,
            prose=sum(" " in text or not text.isascii() for text in texts) / n,
            distinct=len(set(words)),
            length=sum(map(len, words)) / n,
        )

    def named(self, role: Role) -> float:
        """How well the name says the role: 2 down to 1 for a known word, 0.5 where one begins or ends it."""
        parts, known = self._words(), _KNOWN[role]
        if (whole := "".join(parts)) in known:
            return _SURE - known.index(whole) / len(known)
        return 0.5 if parts and (parts[-1] in known or parts[0] in known) else 0.0

    def called(self, name: str) -> bool:
        """Whether the name is this one, however its words are joined."""
        return "".join(self._words()) == name

    def _words(self) -> list[str]:
        spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", self.name).lower()
        return re.findall(r"[^\W_]+", spaced)


def word_or_none(value: object) -> str | None:
    """A value as a label, id or split; None where it is missing or none of these."""
    try:
        return word_of(value).strip()
    except ValueError:
        return None


def text_columns(columns: Sequence[Column]) -> dict[str, float]:
    """The columns that could hold the texts, with a score."""
    others: tuple[Role, ...] = ("label", "id", "split")
    scores = {}
    for column in columns:
        if column.textual < 0.9 or column.filled < 0.5:
            continue
        variety = column.distinct / column.values
        is_named = column.named("text")
        if not is_named and (variety < 0.3 or column.prose < 0.5 or any(map(column.named, others))):
            continue
        scores[column.name] = 3 * is_named + 2 * column.prose + variety * min(column.length, 5000) ** 0.25
    return scores


def text_pair(columns: Sequence[Column]) -> tuple[str, str] | None:
    """Two columns that plainly are one input, as premise and hypothesis, where none is called text."""
    texts = [column for column in columns if column.textual >= 0.9]
    if any(column.called("text") for column in texts):
        return None
    for pair in _PAIRS:
        first, second = ([column.name for column in texts if column.called(name)] for name in pair)
        if len(first) == len(second) == 1 and not field_names_problem([*first, *second]):
            return first[0], second[0]
    return None


def label_columns(columns: Sequence[Column]) -> dict[str, float]:
    """The columns that could hold the labels, with a score.

    One value alone will do in a sample: the file may be sorted by label.
    """
    scores = {}
    for column in columns:
        most = MOST_LABELS if column.named("label") else MOST_UNNAMED_LABELS
        if not column.values or column.words < 1 or column.length > 40:
            continue
        if column.distinct > min(most, max(2, column.values // 2)):
            continue
        wrong = 3 * bool(column.named("id")) + 3 * (column.distinct < 2)
        few = 0.3 * column.distinct.bit_length()
        scores[column.name] = 3 * column.named("label") + 1.5 * column.textual - few - wrong
    return scores


def split_columns(columns: Sequence[Column], values: Mapping[str, Sequence[object]]) -> dict[str, float]:
    """The columns whose values say train, validation or test, with a score."""
    scores = {}
    for column in columns:
        words = {word.lower() for word in map(word_or_none, values[column.name]) if word is not None}
        if words and words <= SPLIT_NAMES.keys() and (len(words) > 1 or column.named("split")):
            scores[column.name] = column.named("split")
    return scores


def id_column(columns: Sequence[Column]) -> str | None:
    """The column that says it is an id and is different in every row, if there is one.

    The name has to say so: to do without ids costs nothing, wrong ones do.
    """
    found = {
        column.name: column.named("id")
        for column in columns
        if column.named("id") and column.filled == 1 and column.words == 1 and column.length <= 100
        if column.distinct == column.values
    }
    return best_of(found) if found else None


def best_of(scores: Mapping[str, float]) -> str:
    """The highest score; of equal ones the first column."""
    return max(scores, key=scores.__getitem__)


def doubt_about(role: Role, best: Column, scores: Mapping[str, float]) -> str:
    """Why the best candidate is not certain, with the others that are close; "" where it is certain."""
    if best.named(role) == _SURE and best.textual:
        return ""
    rivals = sorted(scores.keys() - {best.name}, key=lambda name: (-scores[name], name))
    if role == "text":  # nearly every table has several; labels are few, and all worth a look
        rivals = [name for name in rivals if scores[best.name] - scores[name] < _CLOSE]
    if rivals:
        return f"could also be {', '.join(map(repr, rivals[:3]))}"
    return "" if best.named(role) else "chosen for its content, not for its name"


class Tally:
    """One pass over the label candidates, the split and the id. `labels[column]` counts (label, split)."""

    def __init__(self, labels: Sequence[str], split: str | None, row_id: str | None) -> None:
        self.rows = 0
        self.labels: dict[str, Counts] = {name: Counter() for name in labels}
        self.too_many: set[str] = set()
        self._split, self._id = split, row_id
        self._ids: set[int] = set()
        self._without_id = self._repeated = 0

    def count(self, file: Path) -> None:
        """Read the file through."""
        names = [*self.labels, *filter(None, (self._split, self._id))]
        for table in read_table(file, names, batch_rows=_PASS_ROWS):
            self.rows += len(table.rows)
            for row in table.rows:
                if not isinstance(row, Problem):
                    self._add(row)

    def _add(self, row: tuple[object, ...]) -> None:
        split: SplitName | None = None
        if self._split:
            split = SPLIT_NAMES.get((word_or_none(row[len(self.labels)]) or "").lower())
        if self._id and len(self._ids) < _IDS_CHECKED:
            word = word_or_none(row[-1])
            self._without_id += word is None
            mark = hash(word)  # not the id itself, which may be long
            self._repeated += word is not None and mark in self._ids
            self._ids.add(mark)
        for name, value in zip(self.labels, row, strict=False):
            if name not in self.too_many:
                counts = self.labels[name]
                counts[word_or_none(value), split] += 1
                if len(counts) > MOST_LABELS * (len(SPLITS) + 1):
                    self.too_many.add(name)
                    counts.clear()

    def id_problem(self) -> str:
        """Why the id column holds no ids; "" where it does, as far as was looked."""
        if self._repeated:
            return f"{self._repeated:,} rows repeat the id of another"
        return f"{self._without_id:,} rows have none" if self._without_id else ""


def split_problem(counts: Counts) -> str:
    """Why the split column cannot be used; "" where it can."""
    splits = {split for _, split in counts}
    if None in splits:
        rows = sum(count for (_, split), count in counts.items() if split is None)
        return f"{rows:,} rows say neither train, validation nor test"
    if missing := [split for split in SPLITS[:2] if split not in splits]:
        return f"no row says {' or '.join(missing)}"
    if len({label for label, split in counts if split == "train" and label is not None}) < 2:
        return "its training rows have a single label"
    return ""
