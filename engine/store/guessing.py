"""What the columns of an unknown data file are for: the text, the label, the id, the split.

A bounded sample is looked at whole. Then one pass over the label, split and id columns alone tells which
labels there are; a text format is read through for it, in bounded batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from engine.config import can_be_label, field_names_problem
from engine.errors import DataError
from engine.store import columns
from engine.store.columns import MOST_LABELS, MOST_UNNAMED_LABELS, Column, Counts, Role, Tally
from engine.store.files import find_files, format_of
from engine.store.splits import largest_remainder
from engine.store.tables import columns_of, count_rows, is_number, look_like_names, nearest, read_table
from engine.store.text_tables import Problem

FRACTIONS = (0.7, 0.15, 0.15)
"""Shares of train, validation and test where no column says the splits."""
FEW_ROWS = 20
"""A label with fewer rows than this is worth a warning."""

_SAMPLE_ROWS = 4000
_SAMPLE_PLACES = 8
_LABEL_CANDIDATES = 3


@dataclass(frozen=True, slots=True)
class Guess:
    """What a file's columns seem to be for. `labels` has the rows of each label, sorted by label.

    `text` is one column, or several that make up the input together, as premise and hypothesis do. `id` and
    `split` are None where no column serves. `doubts` says for a role why its guess is uncertain, and
    `warnings` what is unusual about the labels; both show names and labels, never a text. `bad_share` is the
    share of rows that seem not to be usable, from a sample as far as texts go.
    """

    file: Path
    rows: int
    text: tuple[str, ...]
    label: str
    id: str | None
    split: str | None
    labels: Mapping[str, int]
    doubts: Mapping[Role, str]
    warnings: tuple[str, ...]
    bad_share: float


def guess_columns(path: str | Path, named: Mapping[Role, str | Sequence[str]] | None = None) -> Guess:
    """Look at a Parquet, CSV or NDJSON file; `named` are columns whose role is known; texts may be several.

    Raises `DataError`, with one line that names the columns, where no text or label column can be told, where
    labels cannot be used, or where there are too few rows to divide.
    """
    pairs = [
        (role, name)
        for role, names in (named or {}).items()
        for name in ([names] if isinstance(names, str) else names)
    ]
    return _Look(_one_file(path), pairs).guess()


class _Look:
    """One look at one file."""

    def __init__(self, file: Path, named: Sequence[tuple[Role, str]]) -> None:
        self._file = file
        self._texts = tuple(name for role, name in named if role == "text")
        self._named: dict[Role, str] = {role: name for role, name in named if role != "text"}
        self._doubts: dict[Role, str] = {}
        self._names = _usable_names(file, named)
        sample = _sample(file, self._names)
        self._values = {name: [row[place] for row in sample] for place, name in enumerate(self._names)}
        self._columns = {name: Column.look(name, values) for name, values in self._values.items()}

    def guess(self) -> Guess:
        text = self._text()
        splits = columns.split_columns(self._free(*text), self._values)
        split = self._named.get("split") or (columns.best_of(splits) if splits else None)
        row_id = self._named.get("id") or columns.id_column(self._free(*text, *splits))
        scores = self._label_scores(*text, *splits, row_id)
        tally = Tally(list(scores), split, row_id)
        tally.count(self._file)
        label = self._label(scores, tally)
        labels = self._usable_labels(label, tally.labels[label])
        row_id = self._confirmed("id", row_id, tally.id_problem(), "leave --id out to use content hashes")
        problem = columns.split_problem(tally.labels[label])
        split = self._confirmed("split", split, problem, "leave --split out to divide the rows by shares")
        if split is None:
            self._check_divisible(labels)
        filled = max(self._columns[name].filled for name in text)  # one of several is enough
        return Guess(
            file=self._file,
            rows=tally.rows,
            text=text,
            label=label,
            id=row_id,
            split=split,
            labels=labels,
            doubts=self._doubts,
            warnings=tuple(_warnings(labels)),
            bad_share=1 - filled * sum(labels.values()) / tally.rows,
        )

    def _free(self, *taken: str | None) -> list[Column]:
        """The columns that have no role yet."""
        gone = {*taken, *self._texts, *self._named.values()}
        return [column for column in self._columns.values() if column.name not in gone]

    def _text(self) -> tuple[str, ...]:
        if problem := field_names_problem(self._texts):
            raise self._error(f"column {problem}")
        if len(self._texts) == 1:
            column = self._columns[self._texts[0]]
            if column.textual < 0.5:
                what = "holds numbers, not texts" if column.values else "is empty"
                raise self._error(f"column {column.name!r} (--text) {what}; name the column with the texts")
        if self._texts:
            return self._texts
        if (pair := columns.text_pair(self._free())) is not None:
            return pair
        scores = columns.text_columns(self._free())
        if not scores:
            raise self._error("no column holds texts", "--text")
        return (self._best("text", scores),)

    def _label_scores(self, *taken: str | None) -> dict[str, float]:
        if (name := self._named.get("label")) is not None:
            return {name: 0.0}
        scores = columns.label_columns(self._free(*taken))
        if not scores:
            raise self._error("no column holds labels (a few values that repeat)", "--label")
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
        return {name: scores[name] for name in ranked[:_LABEL_CANDIDATES]}

    def _label(self, scores: Mapping[str, float], tally: Tally) -> str:
        """The best candidate that holds labels in the whole file."""
        found = {}
        for name, score in scores.items():
            values = {word for word, _ in tally.labels[name] if word is not None}
            if name in values and format_of(self._file) in ("csv", "tsv"):
                raise self._error(
                    "the first line looks like a row; write a line with the columns' names above it"
                )
            is_named = "label" in self._named or self._columns[name].named("label")
            if 2 <= len(values) <= (MOST_LABELS if is_named else MOST_UNNAMED_LABELS):
                found[name] = score
            elif "label" in self._named:
                what = "has the same value in every row" if len(values) == 1 else "is empty"
                if len(values) > MOST_LABELS or name in tally.too_many:
                    what = f"has more than {MOST_LABELS} different values"
                raise self._error(f"column {name!r} (--label) {what}; name the column with the labels")
        if not found:
            raise self._error("no column holds labels (at least two values that repeat)", "--label")
        return columns.best_of(found) if "label" in self._named else self._best("label", found)

    def _best(self, role: Role, scores: Mapping[str, float]) -> str:
        name = columns.best_of(scores)
        if doubt := columns.doubt_about(role, self._columns[name], scores):
            self._doubts[role] = doubt
        return name

    def _usable_labels(self, column: str, counts: Counts) -> dict[str, int]:
        labels: Counter[str] = Counter()
        for (word, _), rows in counts.items():
            if word is not None:
                labels[word] += rows
        if bad := sorted(label for label in labels if not can_be_label(label)):
            short = _list([label for label in bad if len(label) <= 60])
            raise self._error(
                f"{len(bad)} of the {len(labels)} labels in column {column!r} cannot be used"
                f"{': ' + short if short else ''}; a label is one line without quotes and angle brackets: "
                "rename them in the file, or name another column with --label"
            )
        return dict(sorted(labels.items()))

    def _confirmed(self, role: Role, name: str | None, problem: str, advice: str) -> str | None:
        """The column, unless the whole file shows that it does not serve; an error where it was named."""
        if name is None or not problem:
            return name
        if role in self._named:
            raise self._error(f"column {name!r} (--{role}) cannot be used: {problem}; {advice}")
        self._doubts[role] = f"{name!r} cannot be used: {problem}"
        return None

    def _check_divisible(self, labels: Mapping[str, int]) -> None:
        parts = [largest_remainder(rows, FRACTIONS) for rows in labels.values()]
        if not all(map(sum, zip(*parts, strict=True))):
            raise self._error(
                "too few rows to divide into train, validation and test: the commonest label has "
                f"{max(labels.values())}; some dozens of every label are needed"
            )

    def _error(self, message: str, option: str = "") -> DataError:
        """With an option that helps, the columns are named, unless they may be a row of data."""
        if not option:
            return DataError(f"{self._file}: {message}")
        if look_like_names(self._file, self._names):
            return DataError(f"{self._file}: {message}; name it with {option}, one of {_list(self._names)}")
        fields = len(self._names)
        return DataError(
            f"{self._file}: {message}; is the first line a header? It has {fields} fields. If it is, "
            f"name the column with {option}"
        )


def _one_file(path: str | Path) -> Path:
    files = find_files([path])
    if len(files) > 1:
        raise DataError(f"{path}: is {len(files)} files; name one here, and all of them in [data] afterwards")
    return files[0]


def _usable_names(file: Path, named: Sequence[tuple[Role, str]]) -> list[str]:
    """The columns that can be named at all and hold single values."""
    found = columns_of(file, [name for _, name in named])
    times = Counter(name for name, _ in found)
    names = [
        name
        for name, kind in found
        if name and times[name] == 1 and _is_unicode(name) and not (kind is not None and kind.is_nested())
    ]
    for role, name in named:
        if name not in names:
            shown = nearest(name, names) if look_like_names(file, names) else ""
            raise DataError(f"{file}: no usable column {name!r} (--{role}){shown}")
    for name, count in Counter(name for _, name in named).items():
        if count > 1:
            raise DataError(
                f"column {name!r} is named for more than one of --text, --label, --id and --split"
            )
    return names


def _sample(file: Path, names: Sequence[str]) -> list[tuple[object, ...]]:
    """Rows from all over a Parquet file, or from the beginning of a text file."""
    total = count_rows(file)
    places, size = [0], _SAMPLE_ROWS
    if total is not None and total > _SAMPLE_ROWS:
        size = _SAMPLE_ROWS // _SAMPLE_PLACES
        places = [part * (total - size) // (_SAMPLE_PLACES - 1) for part in range(_SAMPLE_PLACES)]
    rows: list[tuple[object, ...]] = []
    for place in places:
        for table in islice(read_table(file, names, batch_rows=size, skip=place), 1):
            rows += [row for row in table.rows if not isinstance(row, Problem)]
    if not rows:
        raise DataError(f"{file}: has no row that can be read")
    return rows


def _warnings(labels: Mapping[str, int]) -> Iterator[str]:
    if few := [f"{label} {rows}" for label, rows in labels.items() if rows < FEW_ROWS]:
        shown = ", ".join(few[:6]) + (", …" if len(few) > 6 else "")
        yield f"labels with fewer than {FEW_ROWS} rows can hardly be learnt or judged: {shown}"
    if all(map(is_number, labels)):
        yield "the labels are numbers: say in [task.labels] what each means, no model can know"
    if len(labels) > MOST_UNNAMED_LABELS:
        yield f"{len(labels)} labels are many for one prompt; is this the label column?"


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8, or half of a surrogate pair
        return False
    return True


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "")
