"""Bulk classification: rows stream through a student into Parquet parts, in constant memory (C5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from engine.bulk.journal import PartJournal
from engine.bulk.manifest import Input, Task, open_manifest
from engine.bulk.progress import Progress
from engine.bulk.result import ClassifyResult, peak_rss_mb
from engine.bulk.stream import Classification
from engine.bulk.texts import valid
from engine.errors import ConfigError, DataError
from engine.events import EventSink, ignore_events
from engine.ports import ChatModel
from engine.prompt import CompiledPrompt
from engine.scheduler import Budget, Limits, Scheduler
from engine.stopping import StopSignal
from engine.store import RowReader, RunDirectory, TextColumns, fingerprint


async def classify(
    prompt: CompiledPrompt,
    student: ChatModel,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    text: TextColumns = "text",
    id: str | None = None,  # noqa: A002 - the name of the column in the configuration too
    limits: Limits = Limits(),  # noqa: B008 - frozen
    part_rows: int = 50_000,
    emit: EventSink = ignore_events,
    stop: StopSignal | None = None,
    max_cost_usd: float | None = None,
    seed: int = 0,
) -> ClassifyResult:
    """Classify every row of `inputs` (Parquet, CSV, NDJSON; globs too) into Parquet files in folder `out`.

    `part-00000.parquet` has the labelled ones of the first `part_rows` rows, in order: `row` (from 0 over all
    inputs), `file`, `id` (null without an id column), `label`, `confidence` and `margin` (null where the
    student tells none), `prompt_sha256`, `model`. `failures-00000.parquet`, where there are any, has the
    others: `row`, `file`, `id`, `reason`, `detail`. Each input row, broken ones included, stands exactly once
    in exactly one file. Texts are not written. Equal texts within a part are asked about once.

    `text` is the column with the text. For a prompt that was compiled from several, it is these, in their
    order, or where they are called otherwise here a mapping `{"premise": "column", …}` from each name that
    the prompt was compiled with.

    The same call on the same `out` goes on where it was stopped or killed, and does nothing once finished.
    A kill costs the answers in flight and at most 256 more (C2). `max_cost_usd` caps this call alone.
    Memory: about 200 bytes for each row of four parts, and the texts under way. The student is not closed.

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
    files = [valid(str(path)) for path in reader.paths]
    inputs_now = tuple(map(Input, files, marks))
    fields = reader.fields
    columns = fields.columns if fields.names else fields.columns[0]
    task = Task(prompt.sha256, valid(student.name), inputs_now, columns, id, part_rows, fields.names)
    run = RunDirectory.create(out)
    with run.lock():
        manifest = open_manifest(run, task, emit)
        rows_before = manifest.rows
        replayed = 0
        if not manifest.finished:
            progress = Progress(emit)
            budget = None if max_cost_usd is None else Budget(max_cost_usd)
            journal = PartJournal(run.path, part_rows)
            scheduler = Scheduler(journal, emit=progress, budget=budget, seed=seed)
            lane = scheduler.chat(student, limits)
            stop.on_request(scheduler.request_stop)
            work = Classification(
                run=run,
                manifest=manifest,
                prompt=prompt,
                reader=reader,
                journal=journal,
                progress=progress,
            )
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
