"""`pld classify`: bulk classification with a compiled prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters.cli.display import Display
from adapters.cli.eventlog import logged
from adapters.cli.figures import LOCAL_NOTE, print_json, say
from adapters.cli.receipt import receipt_lines
from adapters.cli.running import run as run_work
from adapters.cli.wording import histogram
from adapters.registry import check_model, is_local, open_student, settings_of
from engine.bulk import ClassifyResult, classify, predicted_on_validation
from engine.confidence import Calibration
from engine.distillation.manifest import load_run_config
from engine.distillation.session import limits_of
from engine.errors import ConfigError
from engine.events import EventSink, Notice
from engine.stopping import StopSignal
from engine.store import RunDirectory, TextColumns
from engine.store.compiled import load_calibration, load_prompt


def classify_command(
    run: Annotated[Path, typer.Argument(help="A run directory that `pld compile` made.")],
    inputs: Annotated[list[str], typer.Argument(help="Parquet, CSV or NDJSON files, or globs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the Parquet parts.")],
    student: Annotated[
        str | None, typer.Option(help="Address of another student than the configuration's.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Column with the text; default: the configuration's. Of several, give each in their order."
        ),
    ] = None,
    row_id: Annotated[
        str | None, typer.Option("--id", help="Column with a row id, carried to the output; default: none.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Input column to copy to the output, COLUMN=NAME under another name; any number of times."
        ),
    ] = None,
    review_below: Annotated[
        float | None,
        typer.Option(help="Write rows with a lower confidence to review-*.parquet, for a person to look at."),
    ] = None,
    part_rows: Annotated[int, typer.Option(help="Rows in one part.", min=1)] = 50_000,
    max_cost: Annotated[
        float | None, typer.Option(help="Cap in USD: no request is sent that could pass it.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings only.")] = False,
) -> None:
    """Classify the rows of files with a compiled prompt, into Parquet parts.

    Each input row stands exactly once: in `part-*.parquet` (label, confidence, prompt hash), where it is
    unsure in `review-*.parquet` (with --review-below), or with the reason in `failures-*.parquet`. Equal
    texts are asked about once. The same command goes on where it was stopped or killed.

    Example: pld classify runs/tweets inbox/*.parquet -o labelled --keep author --review-below 0.6
    """
    display = Display(quiet=quiet)
    address = ""

    async def work(stop: StopSignal) -> ClassifyResult:
        nonlocal address
        directory = RunDirectory.open(run)
        config = load_run_config(directory)
        prompt = load_prompt(run)
        columns = text_columns(config.task.text, text or [])
        settings = settings_of(config.student, student)
        address = settings.model
        check_model(settings, config.prices, max_cost)
        model = open_student(settings, config.prices)
        try:
            with logged(out, display) as emit:
                return await classify(
                    prompt,
                    model,
                    inputs,
                    out,
                    text=columns,
                    id=row_id,
                    keep=kept_columns(keep or []),
                    review_below=review_below,
                    calibration=_calibration(run, emit),
                    expected=predicted_on_validation(directory.read_manifest(), prompt.sha256, model.name),
                    limits=limits_of(config.student),
                    part_rows=part_rows,
                    max_cost_usd=max_cost,
                    emit=emit,
                    stop=stop,
                )
        finally:
            await model.aclose()

    result = run_work(work, display)
    if as_json:
        print_json(result.to_json())
        return
    console = Console(highlight=False)
    lines = [
        (
            f"{result.rows:,} rows: {result.classified:,} classified, {result.failed:,} failed, "
            f"{result.duplicates:,} answered by an equal text"
            + ("" if review_below is None else f", {result.review:,} to review")
        ),
        f"{_speed(result)}; peak memory {result.peak_rss_mb:,.0f} MB",
        f"labels: {', '.join(f'{name} {count:,}' for name, count in result.label_counts.items())}",
    ]
    if any(result.confidence_histogram):
        lines.append(
            f"confidence from 0 to 1{_calibrated(result.temperature)}: "
            f"{histogram(result.confidence_histogram)}"
        )
    if result.failed:
        lines.append(f"why rows failed: {out / 'failures-*.parquet'} (columns reason and detail)")
    if result.cut:
        lines.append(f"{result.cut:,} rows were too long: the student has not seen their middle (column cut)")
    lines += receipt_lines(result.receipt)
    lines.append(f"the parts: {out}")
    if is_local(address):
        lines.append(LOCAL_NOTE)
    for line in lines:
        say(console, line)


def _calibration(run: Path, emit: EventSink) -> Calibration | None:
    """What the run says of its student's confidence; a notice where it says nothing."""
    found = load_calibration(run)
    if found is None:
        emit(Notice("confidence is not calibrated: the run has no calibration.json; compile again"))
    return found


def _speed(result: ClassifyResult) -> str:
    if not result.rows_per_s:
        return "nothing was left to ask"
    return (
        f"{result.rows_per_s:,.1f} rows/s" if result.rows_per_s < 10 else f"{result.rows_per_s:,.0f} rows/s"
    )


def _calibrated(temperature: float | None) -> str:
    if temperature is None:
        return ", as the student tells it"
    return f", calibrated at temperature {temperature:g}"


def text_columns(compiled: str | tuple[str, ...], named: Sequence[str]) -> TextColumns:
    """The columns of the input, where `named` ones stand for those that the prompt was compiled from.

    The names of several fields stand in the prompt's input, so they stay. Raises `ConfigError` where there
    are more or fewer.
    """
    fields = (compiled,) if isinstance(compiled, str) else compiled
    if not named:
        return compiled
    if len(named) != len(fields):
        raise ConfigError(
            f"the prompt was compiled from {_columns(fields)}: give --text "
            f"{'once' if len(fields) == 1 else f'{len(fields)} times, in this order'}"
        )
    return dict(zip(fields, named, strict=True))


def kept_columns(named: Sequence[str]) -> dict[str, str]:
    """What `--keep` names: each column with its name in the output. Raises `ConfigError`."""
    kept: dict[str, str] = {}
    for one in named:
        column, separator, name = one.rpartition("=")
        column, name = (column, name) if separator else (one, one)
        if not column or not name:
            raise ConfigError(f"--keep {one!r}: give COLUMN, or COLUMN=NAME")
        if column in kept:
            raise ConfigError(f"--keep names the column {column!r} twice")
        kept[column] = name
    return kept


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
