"""Bulk classification: rows stream through a student into Parquet parts; memory does not grow with them (C5).

::

    reader (thread) -> batches -> _requests -> scheduler -> _settle -> finished parts -> writer (thread)
                                     |                         |
                                     '------ open parts -------'---- journal of open parts (thread)

No barrier stands between parts: a few are open at once, and the slowest answer of one holds up its own
file only.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from engine.bulk.journal import Journal, file_name
from engine.bulk.manifest import (
    Input,
    Manifest,
    PartEntry,
    Task,
    failures_file,
    open_manifest,
    part_file,
)
from engine.bulk.parts import Entry, Part
from engine.bulk.progress import Progress
from engine.bulk.result import ClassifyResult, peak_rss_mb
from engine.errors import ConfigError, DataError, PldError
from engine.events import EventSink, Notice, ignore_events
from engine.ports import ChatModel
from engine.prompt import CompiledPrompt
from engine.scheduler import Budget, Lane, Limits, Scheduler
from engine.scheduler.shielded import finish
from engine.stopping import StopSignal
from engine.store import RowBatch, RowReader, RunDirectory, fingerprint
from engine.student import StudentPrompt, read_prediction
from engine.types import Answer, Failure, FinishReason, Request, Result

STAGE = "classify"
_OPEN_PARTS = 4
# Small parts must not keep the student waiting: at least so many rows are under way.
_OPEN_ROWS = 16_384
_BATCHES_AHEAD = 2


async def classify(
    prompt: CompiledPrompt,
    student: ChatModel,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    text: str = "text",
    id: str | None = None,  # noqa: A002 - the name of the column in the configuration too
    limits: Limits = Limits(),  # noqa: B008 - frozen
    part_rows: int = 50_000,
    emit: EventSink = ignore_events,
    stop: StopSignal | None = None,
    max_cost_usd: float | None = None,
    seed: int = 0,
) -> ClassifyResult:
    """Classify every row of `inputs` (Parquet, CSV, NDJSON; globs too) into Parquet files in the folder `out`.

    `part-00000.parquet` holds the labelled rows of the first `part_rows` rows, in order: `row` (counted from 0
    over all inputs), `file`, `id` (null without an id column), `label`, `confidence` and `margin` (null where
    the student tells none), `prompt_sha256`, `model`. `failures-00000.parquet`, where there are any, holds
    their rows without a label: `row`, `file`, `id`, `reason`, `detail`. Each input row stands exactly once in
    exactly one file, broken rows included. Texts are not written. Equal texts within a part are asked once.

    The same call on the same `out` goes on where it was stopped or killed (answers lost: those in flight and
    256 at most), and does nothing once finished. `max_cost_usd` caps this call. Memory: about 200 bytes for
    each of the rows of four parts, and the texts under way. The student is not closed.

    Raises `RunError` where `out` belongs to another prompt, model, input or column, `DataError` for an input
    that cannot be read, `BudgetError`, `ModelError`, and `InterruptedRunError` after `stop`; what was
    answered by then is saved.
    """
    began_s = time.perf_counter()
    if part_rows < 1:
        raise ConfigError(f"part_rows must be at least 1, not {part_rows}")
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not names:
        raise DataError("no input: name at least one file to classify")
    stop = stop or StopSignal()
    stop.check()
    reader = await asyncio.to_thread(RowReader, names, text, id)
    marks = await asyncio.to_thread(fingerprint, reader.paths)
    files = [_valid(str(path)) for path in reader.paths]
    inputs_now = tuple(map(Input, files, marks))
    task = Task(prompt.sha256, student.name, inputs_now, text, id, part_rows)
    run = RunDirectory.create(out)
    with run.lock():
        manifest = open_manifest(run, task)
        rows_before = manifest.rows
        replayed = 0
        if not manifest.finished:
            progress = Progress(emit)
            budget = None if max_cost_usd is None else Budget(max_cost_usd)
            scheduler = Scheduler(None, emit=progress, budget=budget, seed=seed)
            lane = scheduler.chat(student, limits)
            stop.on_request(scheduler.request_stop)
            work = _Classification(run, manifest, prompt, reader, progress)
            await work.run(lane)
            replayed = work.replayed
            progress.finish(
                f"{manifest.rows} rows: {manifest.classified} classified, {manifest.failed} failed",
                time.perf_counter() - began_s,
            )
    seconds = time.perf_counter() - began_s
    return ClassifyResult(
        rows=manifest.rows,
        classified=manifest.classified,
        failed=manifest.failed,
        duplicates=manifest.duplicates,
        rows_per_s=(manifest.rows - rows_before - replayed) / seconds,
        peak_rss_mb=peak_rss_mb(),
        seconds=seconds,
        parts=len(manifest.parts),
        label_counts=manifest.label_counts,
        out=Path(out),
    )


class _Classification:
    """One call's work in a locked directory. Everything but reading and writing happens on the event loop."""

    def __init__(
        self,
        run: RunDirectory,
        manifest: Manifest,
        prompt: CompiledPrompt,
        reader: RowReader,
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
        self._journal = Journal(run.path, progress.add)
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
                            await self._settle(result)
                except PldError as exc:
                    failure = exc  # raised below, when what is finished has been written
                reading.cancel()
                self._finished.put_nowait(None)
        except BaseExceptionGroup as errors:
            raise next((one for one in errors.exceptions if isinstance(one, PldError)), errors) from None
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
                    if part.add(batch.file_index, row_id, text, batch.problems.get(index, "")) and text:
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
            known = await asyncio.to_thread(self._journal.load, number)
            self.replayed += len(known)
            self._progress.add(len(known), sum(len(entry) == 3 for entry in known))
            part = self._open[number] = Part(number, number * self._part_rows, known)
        return part

    def _seal(self, part: Part) -> None:
        part.seal()
        self._hand_over(part)

    # --- answers out ---------------------------------------------------------------------------------

    async def _settle(self, result: Result[Answer]) -> None:
        number, index = divmod(int(result.id), self._part_rows)
        part = self._open[number]
        entry = self._entry(index, result)
        part.settle(entry)
        self._journal.append(number, entry)
        self._hand_over(part)
        if self._journal.due:
            await self._journal.commit()

    def _entry(self, index: int, result: Result[Answer]) -> Entry:
        found = read_prediction(result, self._prompt.labels)
        if isinstance(found, Failure):
            return (index, _valid(found.reason), _valid(found.detail))
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
        await self._journal.commit()

    async def _write(self, part: Part) -> None:
        # first the journal: no line of this part may be appended after its file is gone
        await self._journal.commit()
        entry = await asyncio.to_thread(self._write_files, part)
        self._manifest.parts[part.number] = entry
        await asyncio.to_thread(self._run.write_manifest, self._manifest.to_json())
        await asyncio.to_thread(self._run.remove, file_name(part.number))
        self._progress.add(part.rows - part.asked, entry.failed - part.asked_and_failed)
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


def _valid(text: str) -> str:
    """Text that Parquet and JSON can hold: a file name or a message may have half of a surrogate pair."""
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "replace") if False else text
