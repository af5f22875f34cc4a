"""Equal texts are classified once in the whole job: those in flight, those just answered, those on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from engine.bulk.entries import Known
from engine.bulk.index import TextIndex
from engine.scheduler.shielded import finish

_MOST_RECENT = 65_536


class EqualTexts:
    """Who asks about a text, and who waits for the answer. All but the index's work is on the event loop.

    A text is in one of four states: new, waited for, recent (answered, its answer in the journal of its part
    and in memory) or in the index. Rows come in batches: `prepare` first looks up a batch's texts, and until
    the next batch nothing that is known of them gets lost on its way from memory to disk. Memory: the texts
    in flight, at most about 65,536 recent ones, and a batch.
    """

    def __init__(self, index: TextIndex) -> None:
        self._index = index
        self._lock = asyncio.Lock()
        self._waiting: dict[bytes, list[int]] = {}
        self._recent: dict[bytes, Known] = {}
        self._batch: dict[bytes, Known | None] = {}

    async def prepare(self, texts: Iterable[bytes]) -> None:
        """Look up the texts of the next batch of rows."""
        if len(self._recent) >= _MOST_RECENT:
            await self.keep()
        # not cut in two either: whoever closes the index must find it idle
        await finish(self._prepare(texts))

    async def _prepare(self, texts: Iterable[bytes]) -> None:
        async with self._lock:
            self._batch = dict.fromkeys(texts)
            hashes = [text for text in self._batch if text not in self._recent and text not in self._waiting]
            self._batch.update(await asyncio.to_thread(self._index.look_up, hashes))

    def find(self, text: bytes) -> Known | None:
        """What is known of a text of the batch."""
        return self._batch.get(text) or self._recent.get(text)

    def wait(self, text: bytes, row: int) -> bool:
        """Let `row` wait for what becomes of a text. Returns whether it is the first, so has to be asked."""
        rows = self._waiting.setdefault(text, [])
        rows.append(row)
        return len(rows) == 1

    def settle(self, text: bytes, known: Known) -> list[int]:
        """Take in what became of a text, its answer being on disk. Returns the rows that waited for it."""
        self._recent[text] = known
        return self._waiting.pop(text, [])

    async def keep(self) -> None:
        """Put all that is known on disk. Not cut in two by a cancellation."""
        await finish(self._keep())

    async def _keep(self) -> None:
        async with self._lock:
            kept = dict(self._recent)
            if kept:
                await asyncio.to_thread(self._index.add, kept)
            for text, known in kept.items():
                del self._recent[text]
                if text in self._batch:
                    self._batch[text] = known
