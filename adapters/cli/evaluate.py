"""`pld evaluate`: what a compiled prompt is worth."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters.cli.display import Display
from adapters.cli.eventlog import logged
from adapters.cli.figures import (
    LOCAL_NOTE,
    confidence_line,
    print_classes,
    print_json,
    print_scores,
    say,
    verdict_line,
)
from adapters.cli.receipt import receipt_lines
from adapters.cli.running import run as run_work
from adapters.registry import check_model, is_local, open_judged, settings_of
from engine.distillation.evaluation import Evaluation
from engine.distillation.judging import evaluate
from engine.distillation.manifest import load_run_config
from engine.receipts import receipt_json
from engine.stopping import StopSignal
from engine.store import RunDirectory


class Split(StrEnum):
    TEST = "test"
    VALIDATION = "validation"


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="A run directory that `pld compile` made.")],
    split: Annotated[Split, typer.Option(help="Which rows; test gives the final verdict.")] = Split.TEST,
    student: Annotated[
        str | None, typer.Option(help="Address of another student than the configuration's.")
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option(help="Also ask the student without instructions; without it, no verdict.")
    ] = True,
    max_cost: Annotated[
        float | None, typer.Option(help="Cap in USD: no request is sent that could pass it.", min=0)
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what this run had given up as failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings only.")] = False,
) -> None:
    """Score a compiled prompt beside its baselines, and give the verdict.

    Beside it: the same student without instructions, the majority class, and TF-IDF with logistic
    regression. A gain means: the 95% interval of the macro-F1 difference lies above 0 against both zero-
    shot and majority, and chance does not reach it.

    A student whose answers come in files (answer-files:DIR) makes it exit with 75 while requests wait for
    them.

    Example: pld evaluate runs/tweets
    """
    display = Display(quiet=quiet)
    address = ""

    async def work(stop: StopSignal) -> Evaluation:
        nonlocal address
        config = load_run_config(RunDirectory.open(run))
        settings = settings_of(config.student, student)
        address = settings.model
        cap = config.run.max_cost_usd if max_cost is None else max_cost
        check_model(settings, config.prices, cap)
        model = open_judged(settings, config.prices, config.base)
        try:
            with logged(run, display) as emit:
                return await evaluate(
                    run,
                    model,
                    split=split.value,
                    zero_shot=zero_shot,
                    max_cost_usd=max_cost,
                    retry_failed=retry_failed,
                    emit=emit,
                    stop=stop,
                )
        finally:
            await model.aclose()

    found = run_work(work, display)
    if as_json:
        print_json(found.to_json() | {"prefix_cache": receipt_json(found.receipt)})
        return
    console = Console(highlight=False)
    print_scores(console, found)
    print_classes(console, found.compiled)
    malformed, missing = found.compiled.malformed_rate, len(found.failures)
    lines = [
        f"malformed answers: {malformed:.2%}; rows without an answer: {missing}"
        + (f"; texts cut as too long: {found.cut}" if found.cut else ""),
        confidence_line(found.confidence),
        verdict_line(found, provisional=split is not Split.TEST),
        *receipt_lines(found.receipt),
    ]
    if is_local(address):
        lines.append(LOCAL_NOTE)
    for line in lines:
        say(console, line)
