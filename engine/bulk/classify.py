"""Bulk classification: rows stream through a student into Parquet parts, in constant memory (C5)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.bulk.equal_texts import EqualTexts
from engine.bulk.index import INDEX_FILES, TextIndex
from engine.bulk.journal import PartJournal
from engine.bulk.manifest import Input, Manifest, Task, open_manifest
from engine.bulk.mix import LabelMix
from engine.bulk.parts import COLUMNS
from engine.bulk.progress import Progress
from engine.bulk.result import ClassifyResult, peak_rss_mb
from engine.bulk.stream import Classification
from engine.bulk.tally import Tally
from engine.bulk.texts import valid
from engine.confidence import Calibration
from engine.errors import ConfigError, DataError
from engine.events import EventSink, Notice, ignore_events
from engine.ports import ChatModel
from engine.prompt import CompiledPrompt
from engine.receipts import ReceiptBook
from engine.scheduler import Budget, Limits, Scheduler
from engine.scheduler.shielded import finish
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
    keep: Sequence[str] | Mapping[str, str] = (),
    review_below: float | None = None,
    calibration: Calibration | None = None,
    expected: Mapping[str, int] | None = None,
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
    student tells none), `cut` (characters that it has not seen of a text that was too long), `prompt_sha256`,
    `model`. With `review_below`, `review-00000.parquet` has the unsure ones of these rows instead, with the
    same columns: confidence below it, or none told.
    `failures-00000.parquet`, where there are any, has the rows without a label: `row`, `file`, `id`,
    `reason`, `detail`. Each input row, broken ones included, stands exactly once in exactly one file. Equal
    texts are asked about once in the whole job: what the first became, the others become. Rows that share
    the first of several columns are asked for so that a prefix cache keeps it (`engine.bulk.grouping`).

    `keep` names input columns that are copied to all these files (a mapping: under another name), with their
    types from Parquet, as strings from CSV and NDJSON. Texts are not written unless they are among them.
    `calibration` (`engine.load_calibration`) makes confidence and margin those that validation bears out;
    where it is another prompt's or student's they stay as the student tells them, and a notice says so.
    `expected` counts the student's answers on validation by label (`engine.bulk.mix`): a warning is emitted
    where the labels found are mixed otherwise.

    `text` is the column with the text. For a prompt that was compiled from several, it is these, in their
    order, or where they are called otherwise here a mapping `{"premise": "column", …}` from each name that
    the prompt was compiled with.

    The same call on the same `out` goes on where it was stopped or killed, and does nothing once finished.
    A kill costs the answers in flight and at most 256 more (C2). `max_cost_usd` caps this call alone.
    Memory: about 200 bytes and the columns kept for each row of four parts, 100 MB at most for telling equal
    texts, and the texts under way. The student is not closed.

    Raises `RunError` where `out` belongs to another prompt, model, input or column, `DataError` for an input
    that cannot be read, `BudgetError`, `ModelError` (also where `review_below` is given and the student tells
    no confidence), and `InterruptedRunError` after `stop`; what was answered by then is saved.
    """
    began_s = time.perf_counter()
    if part_rows < 1:
        raise ConfigError(f"part_rows must be at least 1, not {part_rows}")
    names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not names:
        raise DataError("no input: name at least one file to classify")
    stop = stop or StopSignal()
    stop.check()
    if review_below is not None and not 0 < review_below <= 1:
        raise ConfigError(f"review_below must lie above 0 and not above 1, not {review_below}")
    kept = _kept(keep)
    reader = await asyncio.to_thread(RowReader, names, text, id, carry=list(kept))
    marks = await asyncio.to_thread(fingerprint, reader.paths)
    files = [valid(str(path)) for path in reader.paths]
    inputs_now = tuple(map(Input, files, marks))
    fields = reader.fields
    columns = fields.columns if fields.names else fields.columns[0]
    task = Task(
        prompt_sha256=prompt.sha256,
        model=valid(student.name),
        inputs=inputs_now,
        text=columns,
        id=id,
        part_rows=part_rows,
        fields=fields.names,
        keep=tuple(kept.items()),
        review_below=review_below,
        temperature=_temperature(calibration, prompt, student, emit),
    )
    run = RunDirectory.create(out)
    with run.lock():
        manifest = open_manifest(run, task, emit)
        fresh = 0
        book: ReceiptBook | None = None
        if not manifest.finished:
            labels = tuple(prompt.labels)
            progress = Progress(emit, _tally_of(manifest, labels))
            progress.duplicates = manifest.duplicates
            budget = None if max_cost_usd is None else Budget(max_cost_usd)
            journal = PartJournal(run.path, part_rows)
            scheduler = Scheduler(journal, emit=progress, budget=budget, seed=seed)
            lane = scheduler.chat(student, limits)
            book = await ReceiptBook.open(student, prompts=1)
            stop.on_request(scheduler.request_stop)
            index = await asyncio.to_thread(TextIndex, run.path)
            try:
                work = Classification(
                    run=run,
                    manifest=manifest,
                    prompt=prompt,
                    reader=reader,
                    journal=journal,
                    texts=EqualTexts(index),
                    progress=progress,
                    mix=_mix(labels, expected, emit),
                )
                await work.run(lane)
            finally:
                await finish(asyncio.to_thread(index.close))
            fresh = progress.fresh
            progress.finish(
                f"{manifest.rows} rows: {manifest.classified} classified, {manifest.failed} failed",
                time.perf_counter() - began_s,
            )
        for name in filter(run.has, INDEX_FILES):
            run.remove(name)
    seconds = time.perf_counter() - began_s
    receipt = None if book is None else await book.receipt(emit)
    return ClassifyResult(
        rows=manifest.rows,
        classified=manifest.classified,
        failed=manifest.failed,
        duplicates=manifest.duplicates,
        review=manifest.review,
        cut=manifest.cut,
        temperature=task.temperature,
        rows_per_s=fresh / seconds,
        peak_rss_mb=peak_rss_mb(),
        seconds=seconds,
        parts=len(manifest.parts),
        label_counts=manifest.label_counts,
        confidence_histogram=manifest.confidence,
        out=Path(out),
        receipt=receipt,
    )


def _kept(keep: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """The columns to carry along, each with its name in the parts. Raises `ConfigError` for a name taken."""
    kept = dict(keep) if isinstance(keep, Mapping) else {name: name for name in keep}
    for column, name in kept.items():
        if name in COLUMNS:
            raise ConfigError(
                f"keep: {name!r} is a column of the output already; give it another name there, such as "
                f"--keep {column}=input_{name}"
            )
        if not name or list(kept.values()).count(name) > 1:
            raise ConfigError(f"keep: {column!r} needs a name of its own in the parts, not {name!r}")
    return kept


def _mix(labels: Sequence[str], expected: Mapping[str, int] | None, emit: EventSink) -> LabelMix | None:
    known = expected is not None and any(expected.get(label, 0) > 0 for label in labels)
    return LabelMix(labels, expected, emit) if expected is not None and known else None


def _temperature(
    calibration: Calibration | None, prompt: CompiledPrompt, student: ChatModel, emit: EventSink
) -> float | None:
    """The temperature to read confidences at; None: as they are told, which a notice explains."""
    if calibration is None:
        return None
    why = calibration.why_not(prompt.sha256, student.name)
    if why:
        emit(Notice(f"confidence is not calibrated: {why}"))
    return None if why else calibration.temperature


def _tally_of(manifest: Manifest, labels: Sequence[str]) -> Tally:
    """What the finished parts come to."""
    tally = Tally(labels, manifest.task.review_below)
    for part in manifest.parts.values():
        tally.add(
            rows=part.rows,
            failed=part.failed,
            review=part.review,
            cut=part.cut,
            labels=part.labels,
            histogram=part.confidence,
        )
    return tally
