"""Labelled data sets: read, checked row by row, divided into splits, free of leaks between them (C1, C7)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.config import Config
from engine.errors import DataError
from engine.events import Notice
from engine.store.files import InputFile
from engine.store.labelled import LabelledRow, Reading, Rejected
from engine.store.splits import Duplicates, separate, stratify
from engine.store.tables import is_number
from engine.store.text_tables import Problem
from engine.types import SPLITS, Sample, SplitName

_SHOWN_PLACES = 3


@dataclass(frozen=True, slots=True)
class Dataset:
    """A labelled data set, each split ordered by id. Every split but `test` has rows.

    `rows` were read: they are the rows of the splits, `rejected`, and `duplicates.dropped` together.
    `sha256` covers ids, texts, labels and splits, not how the files are laid out.
    """

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    rows: int
    rejected: tuple[Rejected, ...]
    duplicates: Duplicates
    sha256: str
    files: tuple[InputFile, ...]
    notices: tuple[Notice, ...]

    def split(self, name: SplitName) -> tuple[Sample, ...]:
        parts: dict[SplitName, tuple[Sample, ...]]
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return parts[name]


def load_dataset(config: Config) -> Dataset:
    """Read and check the labelled rows that `[task]` and `[data]` describe.

    A row that cannot be used is set aside in `rejected`. Raises `DataError`, with one line that says what to
    do, where files or columns are missing, more than `data.max_bad_share` of the rows are bad, a split is
    empty, or the training rows have a single label.
    """
    reading = Reading(config)
    rows = list(reading.rows())
    rows = _unique_ids(rows, reading) if config.task.id else _hashed_ids(rows)
    _check_share(config, reading)
    _check_texts(config, rows, reading)
    samples, duplicates = separate(_divided(config, rows))
    samples.sort(key=lambda sample: sample.id)
    parts = {split: tuple([s for s in samples if s.split == split]) for split in SPLITS}
    _check_splits(config, parts, duplicates)
    return Dataset(
        **parts,
        rows=reading.count,
        rejected=tuple(reading.rejected),
        duplicates=duplicates,
        sha256=_content_hash(parts),
        files=tuple(reading.files),
        notices=tuple(_notices(config, parts, duplicates, reading)),
    )


def _unique_ids(rows: list[LabelledRow], reading: Reading) -> list[LabelledRow]:
    """The first row of every id, in file order; the others are rejected."""
    first: dict[str, LabelledRow] = {}
    for row in rows:
        if row.id not in first:
            first[row.id] = row
            continue
        there = first[row.id].place
        shown = repr(row.id) if len(row.id) <= 60 else f"of {len(row.id)} characters"
        where = "" if there.file == row.place.file else f"{there.file} "
        reading.reject(row.place, Problem("id", f"duplicate id {shown}, first in {where}row {there.row}"))
    return list(first.values())


def _hashed_ids(rows: list[LabelledRow]) -> list[LabelledRow]:
    """Ids from content; identical rows get a number, training rows first, so file order does not matter."""
    seen: Counter[str] = Counter()
    named = []
    for row in sorted(rows, key=lambda row: SPLITS.index(row.split) if row.split else 0):
        label = row.label.encode()
        framed = len(label).to_bytes(8, "big") + label + row.text.encode()
        digest = hashlib.sha256(framed).hexdigest()[:16]
        seen[digest] += 1
        named.append(replace(row, id=digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"))
    return named


def _divided(config: Config, rows: Sequence[LabelledRow]) -> list[Sample]:
    fractions = config.data.fractions
    chosen: Mapping[str, SplitName] = {}
    if fractions is not None:
        chosen = stratify([(row.id, row.text, row.label) for row in rows], fractions, config.run.seed)
    return [Sample(row.id, row.text, row.label, row.split or chosen[row.id]) for row in rows]


def _check_share(config: Config, reading: Reading) -> None:
    if reading.count == 0:
        raise DataError(f"{_names(reading)}: no rows")
    share = len(reading.rejected) / reading.count
    if share <= config.data.max_bad_share:
        return
    kinds: dict[tuple[str, str], list[Rejected]] = defaultdict(list)
    for bad in reading.rejected:
        # duplicate ids differ in each message: count them as one kind
        reason = "duplicate id" if bad.reason.startswith("duplicate id") else bad.reason
        kinds[bad.field, reason].append(bad)
    most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    counts = "; ".join(f"{len(bad)} of {field}: {reason}" for (field, reason), bad in most[:5])
    more = f"; {len(most) - 5} other reasons" if len(most) > 5 else ""
    places = ", ".join(
        f"{bad.file} row {bad.row}" + ("" if bad.line is None else f" (line {bad.line})")
        for bad in reading.rejected[:_SHOWN_PLACES]
    )
    raise DataError(
        f"{_names(reading)}: {len(reading.rejected)} of {reading.count} rows ({share:.1%}) cannot be used, "
        f"more than data.max_bad_share = {config.data.max_bad_share:g}: {counts}{more}. First: {places}. "
        f"{_advice(most[0][0])}, or raise data.max_bad_share to go on without these rows"
    )


def _check_texts(config: Config, rows: Sequence[LabelledRow], reading: Reading) -> None:
    """Text formats do not say that a column holds numbers; the rows do."""
    if rows and all(is_number(row.text) for row in rows):
        raise DataError(
            f"{_names(reading)}: column {config.task.text!r} holds numbers, not texts; "
            "name the column with the texts in task.text"
        )


def _advice(kind: tuple[str, str]) -> str:
    field, reason = kind
    if reason.startswith("unknown label"):
        return "Correct the labels in the file or list them in task.labels"
    if reason == "duplicate id":
        return "Give every row its own id, or leave task.id out to use content hashes"
    if "UTF-8" in reason:
        return "Convert the file to UTF-8, for example with `iconv -f CP1252 -t UTF-8`"
    if reason == "not a string":
        return f"Is {field!r} the column with the texts (task.text)? If it is, correct the file"
    return "Correct the file"


def _names(reading: Reading) -> str:
    names = [file.path for file in reading.files]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _check_splits(
    config: Config, parts: Mapping[SplitName, tuple[Sample, ...]], duplicates: Duplicates
) -> None:
    needed: list[SplitName] = ["train", "validation"]
    if config.data.test or (config.data.fractions and config.data.fractions[2] > 0):
        needed.append("test")
    for split in needed:
        if not parts[split]:
            dropped = duplicates.dropped[split]
            why = f": all of its {dropped} texts stand in a later split, too" if dropped else ""
            raise DataError(f"no usable {split} row is left{why}; see [data] for how rows are divided")
    labels = {sample.label for sample in parts["train"]}
    if len(labels) == 1:
        raise DataError(
            f"all {len(parts['train'])} training rows have the label {labels.pop()!r}; "
            "at least two labels are needed to tell apart"
        )


def _content_hash(parts: Mapping[SplitName, tuple[Sample, ...]]) -> str:
    state = hashlib.sha256()
    for split in SPLITS:
        for sample in parts[split]:
            for part in (split, sample.id, sample.label, sample.text):
                data = part.encode()
                state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def _notices(
    config: Config,
    parts: Mapping[SplitName, tuple[Sample, ...]],
    duplicates: Duplicates,
    reading: Reading,
) -> Iterator[Notice]:
    if reading.renamed_splits:
        names = ", ".join(repr(name) for name in sorted(reading.renamed_splits))
        yield Notice(f"splits are called train, validation and test; {names} taken for one of them")
    if reading.rejected:
        counts = f"{len(reading.rejected)} of {reading.count} rows cannot be used and were set aside"
        yield Notice(f"{counts}; first: {reading.rejected[0]}", warning=True)
    later_splits: dict[SplitName, str] = {"train": "validation or test", "validation": "test"}
    for split, later in later_splits.items():
        if count := duplicates.dropped[split]:
            yield Notice(
                f"{count} {split} rows were left out: their texts stand in {later}, too", warning=True
            )
    if repeated := sum(duplicates.repeated.values()):
        yield Notice(f"{repeated} rows repeat a text of their own split and were kept")
    if duplicates.conflicting:
        yield Notice(f"{duplicates.conflicting} texts occur with different labels", warning=True)
    if not parts["test"]:
        yield Notice("there are no test rows: the verdict on validation stays provisional")
    for split in SPLITS[:2]:
        present = {sample.label for sample in parts[split]}
        if absent := [label for label in config.labels if label not in present]:
            names = ", ".join(map(repr, absent))
            yield Notice(f"no {split} row has the label {names}", warning=True)
