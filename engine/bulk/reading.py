"""Rows read ahead, off the event loop, with all that can be told of them without the student."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from engine.bulk.entries import digest
from engine.bulk.grouping import name_groups
from engine.errors import PldError
from engine.store import RowBatch, RowReader

_BATCHES_AHEAD = 2


class Batch(NamedTuple):
    """Rows with the hash of each text, and their groups where rows share the beginning of their texts."""

    rows: RowBatch
    hashes: list[bytes | None]
    groups: list[str] | None


class ReadAhead:
    """The batches of a reader; two are kept ready."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader
        self._batches: asyncio.Queue[Batch | PldError | None] = asyncio.Queue(_BATCHES_AHEAD)

    async def run(self) -> None:
        """Read to the end. An error goes the way of the rows, behind those before it."""
        batches = iter(self._reader)
        fields = self._reader.fields

        def read() -> Batch | None:
            rows = next(batches, None)
            if rows is None:
                return None
            hashes = [None if text is None else digest(text) for text in rows.texts]
            groups = name_groups(rows.texts, fields.beginnings) if fields.names else None
            return Batch(rows, hashes, groups)

        try:
            while (found := await asyncio.to_thread(read)) is not None:
                await self._batches.put(found)
            await self._batches.put(None)
        except PldError as exc:
            await self._batches.put(exc)

    async def next(self) -> Batch | None:
        """The next batch; None at the end. Raises what reading raised."""
        found = await self._batches.get()
        if isinstance(found, PldError):
            raise found
        return found
