"""What became of a text: its label, or why it has none."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import NamedTuple, TypeAlias

import orjson

from engine.errors import CorruptStoreError

UNUSABLE = "unusable"
"""The reason of a row that has no text to classify."""

LabelledEntry: TypeAlias = tuple[int, float, float]
"""Index of the label, confidence and margin, in single precision; NaN where the student tells none."""

FailedEntry: TypeAlias = tuple[str, str]
"""Reason and detail."""

Entry: TypeAlias = LabelledEntry | FailedEntry

_HEAD = struct.Struct("<?q")
_LABELLED = struct.Struct("<?qiff")
_SINGLE = struct.Struct("<f")


class Known(NamedTuple):
    """What became of a text, and the row that was asked about: the first one with it."""

    row: int
    entry: Entry

    def pack(self) -> bytes:
        """As bytes, about 20 for a label."""
        if len(self.entry) == 3:
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
            _, _, label, confidence, margin = _LABELLED.unpack(data)
        except (struct.error, ValueError) as exc:
            raise CorruptStoreError("the index of texts is damaged") from exc
        return cls(row, (label, confidence, margin))


def single(figure: float | None) -> float:
    """A figure in the precision that files hold, so that all of them agree; NaN for None."""
    return math.nan if figure is None else float(_SINGLE.unpack(_SINGLE.pack(figure))[0])


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    # surrogatepass: half of a surrogate pair in a row must not stop the job
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
