"""What became of a text: its label, or why it has none."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import orjson

from engine.bulk.texts import valid
from engine.errors import CorruptStoreError
from engine.student import read_prediction
from engine.types import Answer, Failure, FinishReason, Result

UNUSABLE = "unusable"
"""The reason of a row that has no text to classify."""

LabelledEntry: TypeAlias = tuple[int, float, float, int]
"""Index of the label, confidence and margin, in single precision (NaN where the student tells none), and how
many characters of the text the student has not seen."""

FailedEntry: TypeAlias = tuple[str, str]
"""Reason and detail."""

Entry: TypeAlias = LabelledEntry | FailedEntry

_HEAD = struct.Struct("<?q")
_LABELLED = struct.Struct("<?qiffi")
_SINGLE = struct.Struct("<f")
_MOST_CUT = 2**31 - 1


class Known(NamedTuple):
    """What became of a text, and the row that was asked about: the first one with it."""

    row: int
    entry: Entry

    def pack(self) -> bytes:
        """As bytes, 25 for a label."""
        if len(self.entry) == 4:
            return _LABELLED.pack(False, self.row, *self.entry)
        return _HEAD.pack(True, self.row) + orjson.dumps(self.entry)

    @classmethod
    def unpack(cls, data: bytes) -> Known:
        """The opposite of `pack`. Raises `CorruptStoreError` for other bytes."""
        try:
            failed, row = _HEAD.unpack_from(data)
            if failed:
                reason, detail = orjson.loads(data[_HEAD.size :])
                return cls(row, (str(reason), str(detail)))
            _, _, label, confidence, margin, cut = _LABELLED.unpack(data)
        except (struct.error, ValueError) as exc:
            raise CorruptStoreError("the index of texts is damaged") from exc
        return cls(row, (label, confidence, margin, cut))


class EntryReader:
    """Outcomes as entries: labels by their place in the label set, confidence at one temperature."""

    def __init__(self, labels: Sequence[str], temperature: float | None) -> None:
        self._labels = labels
        self._index = {label: index for index, label in enumerate(labels)}
        self._temperature = temperature

    def read(self, result: Result[Answer]) -> Entry:
        """What became of the text that the result is about."""
        found = read_prediction(result, self._labels, self._temperature)
        if isinstance(found, Failure):
            return (valid(found.reason), valid(found.detail))
        if found.label is None:
            ended = not isinstance(result.outcome, Failure) and result.outcome.finish_reason
            detail = {
                FinishReason.LENGTH: "the answer was cut off",
                FinishReason.BLOCKED: "the answer was blocked",
            }.get(ended or FinishReason.STOP, "the answer is none of the labels")
            return ("malformed", detail)
        cut = min(found.cut_characters, _MOST_CUT)
        return (self._index[found.label], single(found.confidence), single(found.margin), cut)


def single(figure: float | None) -> float:
    """A figure in the precision that files hold, so that all of them agree; NaN for None."""
    return math.nan if figure is None else float(_SINGLE.unpack(_SINGLE.pack(figure))[0])


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    # surrogatepass: half of a surrogate pair in a row must not stop the job
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
