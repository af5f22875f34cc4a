"""The manifest of a classification: what was asked for, and which parts are finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from engine.bulk.index import INDEX_FILES
from engine.bulk.tally import TENTHS, most_frequent_first
from engine.errors import CorruptStoreError, RunError
from engine.events import EventSink, Notice
from engine.store import RunDirectory

FORMAT = 3
KIND = "classification"


@dataclass(frozen=True, slots=True)
class Input:
    """One input file as it was named, and its fingerprint."""

    path: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that decides what the parts hold. Another task needs another directory.

    `text` is the column of the text, or the columns of its `fields`, which are named where there are several.
    `keep` has the columns that are carried along, each with its name in the parts. `temperature` calibrates
    confidence; None: it is as the student tells it.
    """

    prompt_sha256: str
    model: str
    inputs: tuple[Input, ...]
    text: str | tuple[str, ...]
    id: str | None
    part_rows: int
    fields: tuple[str, ...] = ()
    keep: tuple[tuple[str, str], ...] = ()
    review_below: float | None = None
    temperature: float | None = None

    def difference(self, other: Task) -> str | None:
        """The first thing in which `other` differs from this one, in words; None where nothing does."""
        for one, two in zip(self.inputs, other.inputs, strict=False):
            if one.path == two.path and one.fingerprint != two.fingerprint:
                return f"{one.path} has changed since this classification began"
        for name, what in (
            ("prompt_sha256", "prompt"),
            ("model", "model"),
            ("inputs", "input files"),
            ("text", "text column"),
            ("fields", "fields of the text"),
            ("id", "id column"),
            ("part_rows", "rows per part"),
            ("keep", "columns to keep"),
            ("review_below", "review threshold"),
            ("temperature", "calibration of confidence"),
        ):
            was, now = getattr(self, name), getattr(other, name)
            if was != now:
                values = "" if name == "inputs" else f": {_shown(was)}, not {_shown(now)}"
                return f"it was begun with another {what}{values}"
        return None


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if not isinstance(value, tuple):
        return str(value)
    names = (one if isinstance(one, str) else "=".join(dict.fromkeys(one)) for one in value)
    return ", ".join(names) or "none"


@dataclass(frozen=True, slots=True)
class PartEntry:
    """One finished part. `rows = classified + failed`; `review` of the classified ones are unsure, and of
    `cut` ones the student has not seen the whole text.

    `labels` counts rows per label, `confidence` those in each tenth from 0 to 1.
    """

    number: int
    first_row: int
    rows: int
    classified: int
    failed: int
    review: int
    cut: int
    duplicates: int
    labels: Mapping[str, int]
    confidence: Sequence[int]

    @property
    def file(self) -> str:
        """The Parquet file of the classified rows."""
        return part_file(self.number)

    @property
    def review_file(self) -> str | None:
        """The Parquet file of the unsure rows; None where there are none."""
        return review_file(self.number) if self.review else None

    @property
    def files(self) -> list[str]:
        """All its files."""
        return [name for name in (self.file, self.review_file, self.failures_file) if name is not None]

    @property
    def failures_file(self) -> str | None:
        """The Parquet file of the failures; None where there are none."""
        return failures_file(self.number) if self.failed else None

    def to_json(self) -> dict[str, Any]:
        # not by asdict, which copies deeply: every part is written again with each new one
        return {name: getattr(self, name) for name in _STORED} | {
            "file": self.file,
            "review_file": self.review_file,
            "failures_file": self.failures_file,
        }


_STORED = tuple(one.name for one in fields(PartEntry))


@dataclass
class Manifest:
    """`manifest.json`. `total_rows` is None until the end of the input has been seen."""

    task: Task
    total_rows: int | None = None
    parts: dict[int, PartEntry] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every row of the input stands in a finished part."""
        return self.rows == self.total_rows

    @property
    def first_missing(self) -> int:
        """The lowest number that no finished part has."""
        return next(number for number in range(len(self.parts) + 1) if number not in self.parts)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts.values())

    @property
    def classified(self) -> int:
        return sum(part.classified for part in self.parts.values())

    @property
    def failed(self) -> int:
        return sum(part.failed for part in self.parts.values())

    @property
    def review(self) -> int:
        return sum(part.review for part in self.parts.values())

    @property
    def cut(self) -> int:
        return sum(part.cut for part in self.parts.values())

    @property
    def duplicates(self) -> int:
        return sum(part.duplicates for part in self.parts.values())

    @property
    def label_counts(self) -> dict[str, int]:
        """Rows per label, most frequent first."""
        counts: Counter[str] = Counter()
        for part in self.parts.values():
            counts.update(part.labels)
        return most_frequent_first(counts)

    @property
    def confidence(self) -> tuple[int, ...]:
        """Rows in each tenth of confidence, from 0 to 1."""
        return tuple(sum(part.confidence[tenth] for part in self.parts.values()) for tenth in range(TENTHS))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": KIND,
            "task": asdict(self.task),
            "total_rows": self.total_rows,
            "parts": [self.parts[number].to_json() for number in sorted(self.parts)],
        }


def part_file(number: int) -> str:
    return f"part-{number:05d}.parquet"


def review_file(number: int) -> str:
    return f"review-{number:05d}.parquet"


def failures_file(number: int) -> str:
    return f"failures-{number:05d}.parquet"


def open_manifest(run: RunDirectory, task: Task, emit: EventSink) -> Manifest:
    """The manifest of `task` in a locked directory, written there if it is new.

    Raises `RunError` where the directory belongs to something else, and `CorruptStoreError` for a damaged
    manifest. Parts whose files are gone are not finished any more; a warning says so.
    """
    if not run.has("manifest.json"):
        # what somebody who deleted the manifest has left may belong to another task
        for path in [*run.path.glob("open-*.log"), *map(run.path.joinpath, INDEX_FILES)]:
            run.remove(path.name)
        manifest = Manifest(task)
        run.write_manifest(manifest.to_json())
        return manifest
    document = run.read_manifest()
    if document.get("kind") != KIND:
        raise RunError(f"{run.path}: holds another kind of run; choose another output folder (-o)")
    if document.get("format") != FORMAT:
        raise RunError(
            f"{run.path}: was written by another version (format {document.get('format')}, not {FORMAT}); "
            "choose another output folder (-o)"
        )
    manifest = _read(run, document)
    if (difference := manifest.task.difference(task)) is not None:
        raise RunError(f"{run.path}: {difference}; choose another output folder (-o), or delete this one")
    gone = [part for part in manifest.parts.values() if not all(map(run.has, part.files))]
    for part in gone:
        del manifest.parts[part.number]
        emit(Notice(f"{run.path / part.file}: is gone; its rows are classified again", warning=True))
    return manifest


def _read(run: RunDirectory, document: Mapping[str, Any]) -> Manifest:
    try:
        task = dict(document["task"])
        task["inputs"] = tuple(Input(**one) for one in task["inputs"])
        if isinstance(task["text"], list):
            task["text"] = tuple(task["text"])
        task["fields"] = tuple(task["fields"])
        task["keep"] = tuple((column, name) for column, name in task["keep"])
        parts = [PartEntry(**{name: one[name] for name in _STORED}) for one in document["parts"]]
        return Manifest(Task(**task), document["total_rows"], {part.number: part for part in parts})
    except (KeyError, TypeError, ValueError) as exc:
        raise CorruptStoreError(
            f"{run.path / 'manifest.json'}: is damaged; choose another output folder (-o), or delete this one"
        ) from exc
