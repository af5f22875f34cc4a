"""The stream of one call: rows in, answers out, parts written as they become complete.

::

    reader (thread) -> batches -> _requests -> scheduler -> _settle -> finished -> writer (thread)
                                     |             |           |
                         index of texts     journal of them    |
                                     '------- open parts ------'

No barrier stands between parts: a few are open at once, and the slowest answer of one holds up its own
file only. A row with the text of an earlier one is not asked about: it gets that one's answer, at once where
there is one, else when it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from engine.bulk.entries import UNUSABLE, Entry, EntryReader, Known
from engine.bulk.equal_texts import EqualTexts
from engine.bulk.grouping import spread
from engine.bulk.journal import PartJournal, file_name
from engine.bulk.manifest import Manifest, PartEntry, failures_file, part_file, review_file
from engine.bulk.mix import LabelMix
from engine.bulk.parts import Part
from engine.bulk.progress import Progress
from engine.bulk.reading import Batch, ReadAhead
from engine.bulk.tally import Tally
from engine.errors import ModelError, PldError
from engine.prompt import CompiledPrompt
from engine.scheduler import Lane
from engine.scheduler.shielded import finish
from engine.store import RowReader, RunDirectory
from engine.student import StudentPrompt
from engine.types import Answer, Request, Result

STAGE = "classify"
_OPEN_PARTS = 4
# Small parts must not keep the student waiting: at least so many rows are under way.
_OPEN_ROWS = 16_384
# So many answers without a confidence are enough to know that the student tells none.
_ENOUGH_UNTOLD = 64


class _Asked(NamedTuple):
    """A row that has to be asked about."""

    row: int
    text: str
    group: str


class Classification:
    """One call's work in a locked directory. Everything but reading and writing happens on the event loop."""

    def __init__(
        self,
        *,
        run: RunDirectory,
        manifest: Manifest,
        prompt: CompiledPrompt,
        reader: RowReader,
        journal: PartJournal,
        texts: EqualTexts,
        progress: Progress,
        mix: LabelMix | None,
    ) -> None:
        self._run = run
        self._manifest = manifest
        self._task = manifest.task
        self._part_rows = manifest.task.part_rows
        self._files = [one.path for one in manifest.task.inputs]
        self._prompt = StudentPrompt(prompt)
        self._entry = EntryReader(self._prompt.labels, manifest.task.temperature).read
        self._reader = reader
        self._ahead = ReadAhead(reader)
        self._progress = progress
        self._mix = mix
        self._journal = journal
        self._texts = texts
        self._asked: dict[int, bytes] = {}
        self._held: list[_Asked] = []
        self._first_row = manifest.first_missing * self._part_rows
        self._open: dict[int, Part] = {}
        self._room = asyncio.Semaphore(max(_OPEN_PARTS, -(-_OPEN_ROWS // self._part_rows)))
        self._finished: asyncio.Queue[Part | None] = asyncio.Queue()

    async def run(self, lane: Lane[Request, Answer]) -> None:
        """Classify what no finished part holds. Raises as `classify` does, everything answered saved."""
        await asyncio.to_thread(self._prepare)
        total = self._progress.total = await asyncio.to_thread(self._reader.count_rows)
        failure: PldError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._ahead.run())
                group.create_task(self._write_parts())
                try:
                    async with lane.stream(self._requests(), stage=STAGE, total=total) as results:
                        async for result in results:
                            self._settle(result)
                except PldError as exc:
                    failure = exc  # raised below, when what is finished has been written
                reading.cancel()
                self._finished.put_nowait(None)
        except BaseExceptionGroup as errors:
            found = errors.exceptions
            raise next((one for one in found if isinstance(one, PldError)), found[0]) from None
        if failure is not None:
            raise failure
        await asyncio.to_thread(self._run.write_manifest, self._manifest.to_json())

    def _prepare(self) -> None:
        """Take away what a killed call left of parts that will be written anew."""
        finished = self._manifest.parts
        for number in self._journal.parts() & finished.keys():
            self._run.remove(file_name(number))
        listed = {name for part in finished.values() for name in part.files}
        for pattern in ("part-*.parquet", "review-*.parquet", "failures-*.parquet"):
            for path in self._run.path.glob(pattern):
                if path.name not in listed:
                    self._run.remove(path.name)
        self._reader.skip_rows(self._first_row)

    # --- rows in -------------------------------------------------------------------------------------

    async def _requests(self) -> AsyncIterator[Request]:
        """A request for each text that has to be asked about, in order, but for groups within a batch."""
        row = self._first_row
        while (found := await self._ahead.next()) is not None:
            batch = found.rows
            await self._texts.prepare(one for one in found.hashes if one is not None)
            self._progress.read(batch.first_row + len(batch), batch.share)
            row = batch.first_row
            end = row + len(batch)
            while row < end:
                number = row // self._part_rows
                upto = min(end, (number + 1) * self._part_rows)
                if number not in self._manifest.parts:
                    if number not in self._open and self._room.locked():
                        # what is held back may be what the open parts wait for
                        for held in self._release():
                            yield held
                    part = await self._part(number)
                    for asked in self._add(part, found, row, upto):
                        if found.groups is None:
                            yield self._prompt.request(str(asked.row), asked.text)
                        else:
                            self._held.append(asked)
                    if upto == (number + 1) * self._part_rows:
                        self._seal(part)
                row = upto
            for held in self._release():
                yield held
        self._manifest.total_rows = row
        for part in list(self._open.values()):
            if not part.sealed:
                self._seal(part)

    def _add(self, part: Part, found: Batch, row: int, upto: int) -> Iterator[_Asked]:
        """Add the rows from `row` to `upto` to their part; gives those that have to be asked about."""
        batch = found.rows
        first = batch.first_row
        if batch.carried is not None:
            part.carry(batch.carried.slice(row - first, upto - row))
        for index in range(row - first, upto - first):
            text, name = batch.texts[index], found.hashes[index]
            part.add(batch.file_index, (batch.ids[index] or None) if batch.ids is not None else None)
            if text is None or name is None:
                self._settle_row(first + index, (UNUSABLE, batch.problems[index]))
            elif self._has_to_be_asked(part, first + index, name):
                group = "" if found.groups is None else found.groups[index]
                yield _Asked(first + index, text, group)

    def _release(self) -> Iterator[Request]:
        """Requests for the rows held back, in an order that keeps groups in a prefix cache."""
        held, self._held = self._held, []
        for place in spread([asked.group for asked in held]):
            row, text, group = held[place]
            yield self._prompt.request(str(row), text, group)

    async def _part(self, number: int) -> Part:
        """The open part of that number; waits while too many are open."""
        part = self._open.get(number)
        if part is None:
            await self._room.acquire()
            first_row = number * self._part_rows
            saved = await asyncio.to_thread(self._journal.load, number)
            known = {int(result.id) - first_row: self._entry(result) for result in saved}
            tally = Tally(self._prompt.labels, self._task.review_below)
            part = self._open[number] = Part(number, first_row, known, tally)
        return part

    def _has_to_be_asked(self, part: Part, row: int, text: bytes) -> bool:
        """Whether the student has to be asked about the row; else it is settled, or waits for its equal."""
        known = self._texts.find(text)
        entry = part.known.pop(row - part.first_row, None)
        if entry is not None:
            if known is None:
                for waiting in self._texts.settle(text, Known(row, entry)):
                    self._settle_row(waiting, entry, duplicate=True)
            self._settle_row(row, entry, replayed=True)
            return False
        if known is not None:
            # a part may be gone, or its journal: then the index still has what its own row was told
            own = known.row == row
            self._settle_row(row, known.entry, duplicate=not own, replayed=own)
            return False
        if not self._texts.wait(text, row):
            return False
        self._asked[row] = text
        return True

    def _seal(self, part: Part) -> None:
        part.seal()
        self._hand_over(part)

    # --- answers out ---------------------------------------------------------------------------------

    def _settle(self, result: Result[Answer]) -> None:
        row = int(result.id)
        entry = self._entry(result)
        for waiting in self._texts.settle(self._asked.pop(row), Known(row, entry)):
            self._settle_row(waiting, entry, duplicate=waiting != row)
        if self._mix is not None and len(entry) == 4:
            self._mix.count(entry[0])
        if self._progress.tally.classified >= _ENOUGH_UNTOLD:
            self._check_confidence()

    def _settle_row(self, row: int, entry: Entry, *, duplicate: bool = False, replayed: bool = False) -> None:
        number, index = divmod(row, self._part_rows)
        part = self._open[number]
        part.settle(index, entry)
        part.duplicates += duplicate
        self._progress.count(entry, duplicate=duplicate, replayed=replayed)
        self._hand_over(part)

    def _check_confidence(self) -> None:
        """Raise `ModelError` where unsure rows cannot be told from sure ones."""
        tally = self._progress.tally
        if self._task.review_below is not None and tally.classified and not tally.told:
            raise ModelError(
                f"{self._task.model}: tells no confidence with its answers, so no row can be called unsure: "
                "leave --review-below out (in another output folder), or use a student that tells the "
                "probabilities of labels"
            )

    def _hand_over(self, part: Part) -> None:
        """Give a part to the writer once it is complete."""
        if part.complete:
            del self._open[part.number]
            self._finished.put_nowait(part)

    async def _write_parts(self) -> None:
        while (part := await self._finished.get()) is not None:
            await finish(self._write(part))

    async def _write(self, part: Part) -> None:
        self._check_confidence()
        # what the part's rows were told must outlive its journal
        await self._texts.keep()
        entry = await asyncio.to_thread(self._write_files, part)
        self._manifest.parts[part.number] = entry
        await asyncio.to_thread(self._run.write_manifest, self._manifest.to_json())
        await asyncio.to_thread(self._run.remove, file_name(part.number))
        self._room.release()

    def _write_files(self, part: Part) -> PartEntry:
        task = self._task
        found = part.frames(
            self._files,
            self._prompt.labels,
            prompt=task.prompt_sha256,
            model=task.model,
            carried=dict(task.keep),
            review_below=task.review_below,
        )
        if found.failed.height:
            self._run.write_parquet(failures_file(part.number), found.failed)
        if found.review.height:
            self._run.write_parquet(review_file(part.number), found.review)
        self._run.write_parquet(part_file(part.number), found.classified)
        tally = part.tally
        return PartEntry(
            number=part.number,
            first_row=part.first_row,
            rows=tally.rows,
            classified=tally.classified,
            failed=tally.failed,
            review=tally.review,
            cut=tally.cut,
            duplicates=part.duplicates,
            labels=tally.label_counts,
            confidence=tuple(tally.histogram),
        )
