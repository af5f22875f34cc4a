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
from adapters.cli.running import run as run_work
from adapters.registry import check_model, is_local, open_student, settings_of
from engine.bulk import ClassifyResult, classify
from engine.distillation.manifest import load_run_config
from engine.distillation.session import limits_of
from engine.errors import ConfigError
from engine.stopping import StopSignal
from engine.store import RunDirectory, TextColumns
from engine.store.compiled import load_prompt


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
    part_rows: Annotated[int, typer.Option(help="Rows in one part.", min=1)] = 50_000,
    max_cost: Annotated[
        float | None, typer.Option(help="Cap in USD: no request is sent that could pass it.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings only.")] = False,
) -> None:
    """Classify the rows of files with a compiled prompt, into Parquet parts.

    Each input row stands exactly once in `part-*.parquet` (label, confidence, prompt hash) or, with the
    reason, in `failures-*.parquet`. The same command resumes after the last finished part.

    Example: pld classify runs/tweets inbox/*.parquet -o labelled
    """
    display = Display(quiet=quiet)
    address = ""

    async def work(stop: StopSignal) -> ClassifyResult:
        nonlocal address
        config = load_run_config(RunDirectory.open(run))
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
        ),
        f"{result.rows_per_s:,.0f} rows/s; peak memory {result.peak_rss_mb:,.0f} MB",
        f"labels: {', '.join(f'{name} {count:,}' for name, count in result.label_counts.items())}",
        f"the parts: {out}",
    ]
    if is_local(address):
        lines.append(LOCAL_NOTE)
    for line in lines:
        say(console, line)


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


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
