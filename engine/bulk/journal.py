"""What is answered of open parts: with it, `kill -9` costs the answers in flight, not whole parts (C2).

One file for each open part, `open-00003.log`, a frame for each outcome::

    row (8 bytes), failed (1), length (4), CRC-32 of the payload (4), payload

The payload is the encoded answer, or reason and detail of a failure as JSON. Numbers are little-endian.
"""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import orjson

from engine.bulk.texts import valid
from engine.errors import CorruptStoreError, RunError
from engine.ports import Record
from engine.scheduler import decode_answer
from engine.store.rundir import sync_folder
from engine.types import Answer, Failure, Result

_HEAD = struct.Struct("<Q?II")
_PREFIX = "open-"
_SUFFIX = ".log"


class PartJournal:
    """`engine.ports.Journal` of the open parts in a locked folder. Requests are named by their row.

    `lookup` knows nothing: rows that `load` finds are not asked about in the first place.
    """

    def __init__(self, folder: Path, part_rows: int) -> None:
        self._folder = folder
        self._part_rows = part_rows
        self._synced: set[int] = set()

    async def lookup(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | Failure]:  # noqa: ARG002 - the port
        """Nothing."""
        return {}

    async def commit(self, records: Sequence[Record]) -> None:
        """Append the records to their parts' files. Raises `RunError` where they cannot be written."""
        frames: defaultdict[int, list[bytes]] = defaultdict(list)
        for record in records:
            frames[int(record.request_id) // self._part_rows].append(_frame(record))
        await asyncio.to_thread(self._append, frames)

    def parts(self) -> set[int]:
        """The numbers of the parts that have a file."""
        names = (path.stem.removeprefix(_PREFIX) for path in self._folder.glob(f"{_PREFIX}*{_SUFFIX}"))
        return {int(name) for name in names if name.isdecimal()}

    def load(self, number: int) -> list[Result[Answer]]:
        """What earlier calls have kept of a part. Cuts off a last frame that a kill left incomplete.

        Raises `RunError` where the file cannot be read.
        """
        path = self._folder / file_name(number)
        try:
            data = path.read_bytes()
            end = 0
            results = []
            for end, result in _frames(data):  # noqa: B007 - the last one is used below
                results.append(result)
            if end < len(data):
                os.truncate(path, end)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise RunError(f"{path}: cannot be read: {exc.strerror}") from exc
        return results

    def _append(self, frames: Mapping[int, Sequence[bytes]]) -> None:
        for number, parts in frames.items():
            path = self._folder / file_name(number)
            try:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(b"".join(parts))
                    file.flush()
                    os.fsync(fd)
                if number not in self._synced:
                    sync_folder(self._folder)
                    self._synced.add(number)
            except OSError as exc:
                raise RunError(
                    f"{path}: cannot be written: {exc.strerror}; what is saved is complete, "
                    "the same command goes on"
                ) from exc


def file_name(number: int) -> str:
    """The journal file of a part."""
    return f"{_PREFIX}{number:05d}{_SUFFIX}"


def _frame(record: Record) -> bytes:
    if record.failure is not None:
        payload = orjson.dumps([valid(record.failure.reason), valid(record.failure.detail)])
    else:
        payload = record.payload or b""
    failed = record.failure is not None
    return _HEAD.pack(int(record.request_id), failed, len(payload), zlib.crc32(payload)) + payload


def _frames(data: bytes) -> Iterator[tuple[int, Result[Answer]]]:
    """The whole frames at the beginning of `data`, each with the place where it ends."""
    start = 0
    while start + _HEAD.size <= len(data):
        row, failed, length, checksum = _HEAD.unpack_from(data, start)
        start += _HEAD.size
        payload = data[start : start + length]
        start += length
        # after a power cut the tail may be there in length only
        if len(payload) < length or zlib.crc32(payload) != checksum or not payload:
            return
        row_id = str(row)
        try:
            outcome = Failure(row_id, *orjson.loads(payload)) if failed else decode_answer(payload)
        except CorruptStoreError:  # of another version: asked about again
            return
        yield start, Result(row_id, outcome, "journal")
