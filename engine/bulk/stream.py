"""The stream of one call: rows in, answers out, parts written as they become complete.

::

    reader (thread) -> batches -> _requests -> scheduler -> _settle -> finished -> writer (thread)
                                     |             |           |
                                     |     journal of them     |
                                     '------- open parts ------'

No barrier stands between parts: a few are open at once, and the slowest answer of one holds up its own
file only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from engine.bulk.journal import PartJournal, file_name
from engine.bulk.manifest import Manifest, PartEntry, failures_file, part_file
from engine.bulk.parts import Entry, Part
from engine.bulk.progress import Progress
from engine.bulk.texts import valid
from engine.errors import PldError
from engine.prompt import CompiledPrompt
from engine.scheduler import Lane
from engine.scheduler.shielded import finish
from engine.store import RowBatch, RowReader, RunDirectory
from engine.student import StudentPrompt, read_prediction
from engine.types import Answer, Failure, FinishReason, Request, Result

STAGE = "classify"
_OPEN_PARTS = 4
# Small parts must not keep the student waiting: at least so many rows are under way.
_OPEN_ROWS = 16_384
_BATCHES_AHEAD = 2


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
        progress: Progress,
    ) -> None:
        self.replayed = 0
        """Rows whose answers an earlier call had already brought."""
        self._run = run
        self._manifest = manifest
        self._part_rows = manifest.task.part_rows
        self._files = [one.path for one in manifest.task.inputs]
        self._prompt = StudentPrompt(prompt)
        self._label_index = {label: index for index, label in enumerate(self._prompt.labels)}
        self._reader = reader
        self._progress = progress
        self._journal = journal
        self._first_row = manifest.first_missing * self._part_rows
        self._open: dict[int, Part] = {}
        self._room = asyncio.Semaphore(max(_OPEN_PARTS, -(-_OPEN_ROWS // self._part_rows)))
        self._batches: asyncio.Queue[RowBatch | PldError | None] = asyncio.Queue(_BATCHES_AHEAD)
        self._finished: asyncio.Queue[Part | None] = asyncio.Queue()

    async def run(self, lane: Lane[Request, Answer]) -> None:
        """Classify what no finished part holds. Raises as `classify` does, everything answered saved."""
        await asyncio.to_thread(self._prepare)
        total = await asyncio.to_thread(self._reader.count_rows)
        failure: PldError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read())
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
        listed = {name for part in finished.values() for name in (part.file, part.failures_file)}
        for pattern in ("part-*.parquet", "failures-*.parquet"):
            for path in self._run.path.glob(pattern):
                if path.name not in listed:
                    self._run.remove(path.name)
        self._progress.add(self._manifest.rows, self._manifest.failed)
        self._reader.skip_rows(self._first_row)

    # --- rows in -------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read ahead, off the event loop. An error goes the way of the rows, behind those before it."""
        batches = iter(self._reader)
        try:
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                await self._batches.put(batch)
            await self._batches.put(None)
        except PldError as exc:
            await self._batches.put(exc)

    async def _requests(self) -> AsyncIterator[Request]:
        """A request for each row that has to be asked about, in order."""
        row = self._first_row
        while (batch := await self._batches.get()) is not None:
            if isinstance(batch, PldError):
                raise batch
            row = batch.first_row
            end = row + len(batch)
            while row < end:
                number = row // self._part_rows
                upto = min(end, (number + 1) * self._part_rows)
                if number in self._manifest.parts:
                    row = upto
                    continue
                part = await self._part(number)
                for index in range(row - batch.first_row, upto - batch.first_row):
                    row_id = (batch.ids[index] or None) if batch.ids is not None else None
                    text = batch.texts[index]
                    asked = part.add(batch.file_index, row_id, text, batch.problems.get(index, ""))
                    if asked and text is not None:
                        yield self._prompt.request(str(batch.first_row + index), text)
                row = upto
                if row == (number + 1) * self._part_rows:
                    self._seal(part)
        self._manifest.total_rows = row
        for part in list(self._open.values()):
            if not part.sealed:
                self._seal(part)

    async def _part(self, number: int) -> Part:
        """The open part of that number; waits while too many are open."""
        part = self._open.get(number)
        if part is None:
            await self._room.acquire()
            first_row = number * self._part_rows
            known = await asyncio.to_thread(self._journal.load, number)
            entries = [self._entry(int(result.id) - first_row, result) for result in known]
            part = self._open[number] = Part(number, first_row, entries)
            self.replayed += part.saved
            self._progress.add(part.saved, part.saved_failed)
        return part

    def _seal(self, part: Part) -> None:
        part.seal()
        self._hand_over(part)

    # --- answers out ---------------------------------------------------------------------------------

    def _settle(self, result: Result[Answer]) -> None:
        number, index = divmod(int(result.id), self._part_rows)
        part = self._open[number]
        entry = self._entry(index, result)
        part.settle(entry)
        if result.source == "sent":  # what an equal request of another part brought is not in the journal
            failed = len(entry) == 3
            part.saved += 1
            part.saved_failed += failed
            self._progress.add(1, failed)
        self._hand_over(part)

    def _entry(self, index: int, result: Result[Answer]) -> Entry:
        found = read_prediction(result, self._prompt.labels)
        if isinstance(found, Failure):
            return (index, valid(found.reason), valid(found.detail))
        if found.label is None:
            cut = not isinstance(result.outcome, Failure) and result.outcome.finish_reason
            detail = {
                FinishReason.LENGTH: "the answer was cut off",
                FinishReason.BLOCKED: "the answer was blocked",
            }.get(cut or FinishReason.STOP, "the answer is none of the labels")
            return (index, "malformed", detail)
        return (index, self._label_index[found.label], found.confidence, found.margin)

    def _hand_over(self, part: Part) -> None:
        """Give a part to the writer once it is complete."""
        if part.complete:
            del self._open[part.number]
            self._finished.put_nowait(part)

    async def _write_parts(self) -> None:
        while (part := await self._finished.get()) is not None:
            await finish(self._write(part))

    async def _write(self, part: Part) -> None:
        entry = await asyncio.to_thread(self._write_files, part)
        self._manifest.parts[part.number] = entry
        await asyncio.to_thread(self._run.write_manifest, self._manifest.to_json())
        await asyncio.to_thread(self._run.remove, file_name(part.number))
        self._progress.add(part.rows - part.saved, entry.failed - part.saved_failed)
        self._room.release()

    def _write_files(self, part: Part) -> PartEntry:
        task = self._manifest.task
        labels = self._prompt.labels
        failed = part.failed(self._files)
        classified = part.classified(self._files, labels, task.prompt_sha256, task.model)
        if failed.height:
            self._run.write_parquet(failures_file(part.number), failed)
        self._run.write_parquet(part_file(part.number), classified)
        return PartEntry(
            number=part.number,
            first_row=part.first_row,
            rows=part.rows,
            classified=classified.height,
            failed=failed.height,
            duplicates=part.duplicates,
            labels=part.counts(labels),
        )
