"""Reading labelled rows: the usable ones, and why the others are not (C1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import Config
from engine.errors import DataError
from engine.store.fields import TextFields
from engine.store.files import InputFile, describe, find_files
from engine.store.tables import check_columns, nearest, problem_of, read_table, word_of
from engine.store.text_tables import Problem
from engine.types import SplitName

_BATCH_ROWS = 4096
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""What a split column may say, in lower case, and which split that is."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used. `row` counts from 1 without the header; `line` is known for text formats.

    `reason` never shows the row's text; it may show a label, a split's name or an id.
    """

    file: str
    row: int
    field: str
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.file} row {self.row}{line}: {self.field}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A usable row; `id` is "" until a content hash takes its place, `split` None until fractions decide."""

    id: str
    text: str
    label: str
    split: SplitName | None
    place: Rejected


class Reading:
    """Reads the files of a configuration: usable rows come out, the others gather in `rejected`."""

    def __init__(self, config: Config) -> None:
        task, data = config.task, config.data
        self.count = 0
        self.rejected: list[Rejected] = []
        self.renamed_splits: set[str] = set()
        self.files: list[InputFile] = []
        self._labels = config.labels
        self._has_id, self._has_split = task.id is not None, data.split is not None
        self._fields = TextFields(task.text)
        columns = (*self._fields.columns, task.label, task.id, data.split)
        self._columns = [name for name in columns if name is not None]
        for name, times in Counter(self._columns).items():
            if times > 1:
                raise DataError(f"column {name!r} is named for more than one of text, label, id and split")
        self._sources: list[tuple[SplitName | None, Path]] = []
        named: dict[SplitName | None, tuple[str, ...]]
        named = {None: data.file, "train": data.train, "validation": data.validation, "test": data.test}
        for split, patterns in named.items():
            self._sources += [(split, path) for path in find_files(patterns, config.base)]
        for path, times in Counter(path.resolve() for _, path in self._sources).items():
            if times > 1:
                raise DataError(f"{path}: is named for more than one split of [data]")
        for _, path in self._sources:
            check_columns(path, self._columns, texts=self._fields.columns)
            self.files.append(describe(path, config.base))

    def rows(self) -> Iterator[LabelledRow]:
        for (split, path), file in zip(self._sources, self.files, strict=True):
            for table in read_table(path, self._columns, batch_rows=_BATCH_ROWS):
                for index, values in enumerate(table.rows):
                    line = None if table.lines is None else table.lines[index]
                    place = Rejected(file.path, table.first_row + index + 1, "", "", line)
                    self.count += 1
                    row = values if isinstance(values, Problem) else self._parse(values, split, place)
                    if isinstance(row, LabelledRow):
                        yield row
                    else:
                        self.reject(place, row)

    def reject(self, place: Rejected, problem: Problem) -> None:
        self.rejected.append(replace(place, field=problem.field, reason=problem.reason))

    def _parse(
        self, values: tuple[object, ...], split: SplitName | None, place: Rejected
    ) -> LabelledRow | Problem:
        n = len(self._fields.columns)
        label_column, *others = self._columns[n:]
        text = self._fields.read(values[:n])
        label = problem_of(label_column, self._label, values[n])
        row_id: str | Problem = problem_of(others[0], word_of, values[n + 1]) if self._has_id else ""
        own_split: SplitName | Problem | None = split
        if self._has_split:
            own_split = problem_of(others[-1], self._split, values[-1])
        for found in (text, label, row_id, own_split):
            if isinstance(found, Problem):
                return found
        return LabelledRow(row_id, text, label, own_split, place)  # type: ignore[arg-type]  # none is a Problem

    def _label(self, value: object) -> str:
        # a label of the configuration has no surrounding space, so space in the file means nothing
        label = word_of(value).strip()
        if label in self._labels:
            return label
        if len(label) > 60:  # the label column may be the wrong one: a text must not get into a message
            raise ValueError(f"unknown label of {len(label)} characters; is this the label column?")
        raise ValueError(f"unknown label {label!r}{nearest(label, self._labels)}")

    def _split(self, value: object) -> SplitName:
        word = word_of(value).strip()
        split = SPLIT_NAMES.get(word.lower())
        if split is None:
            shown = repr(word) if len(word) <= 60 else f"of {len(word)} characters"
            raise ValueError(f"unknown split {shown}; known: train, validation (valid, val, dev), test")
        if word != split:
            self.renamed_splits.add(word)
        return split
