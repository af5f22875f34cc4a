"""`pld compile`: from a labelled set to a system prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters.cli.display import Display
from adapters.cli.eventlog import logged
from adapters.cli.figures import (
    LOCAL_NOTE,
    LOCAL_TEACHER_NOTE,
    confidence_line,
    print_json,
    print_scores,
    rules_line,
    say,
    verdict_line,
)
from adapters.cli.running import run as run_work
from adapters.registry import check_models, is_local, open_models
from engine.config_file import load_config
from engine.distillation.pipeline import compile_prompt, default_run_folder
from engine.distillation.result import CompileResult
from engine.stopping import StopSignal


def compile_command(
    config: Annotated[Path, typer.Argument(help="The configuration, a TOML file.")],
    run: Annotated[
        Path | None, typer.Option(help="Run directory; default: runs/TASK beside the configuration.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Cap in USD: no request is sent that could pass it.", min=0)
    ] = None,
    faithful: Annotated[
        bool, typer.Option("--faithful", help="The paper's recipe to the letter; see above.")
    ] = False,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation",
            help="Also keep the prompt before conflict resolution, and the one the resolver reaches from "
            "an empty prompt; `pld evaluate` then scores both.",
        ),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what this run had given up as failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings only.")] = False,
) -> None:
    """Compile a labelled set into a system prompt, and say on validation what it is worth.

    The same command resumes: what was answered before comes from the response cache beside the run directory.
    Where a model's answers come in files (answer-files:DIR) it exits with 75 while requests wait for them.

    --faithful follows the paper to the letter: rules are taken as the teacher wrote them, clustered all
    together with eps 0.4 and min_samples 6, noise is discarded, each cluster becomes one instruction, and
    conflict resolution takes every edit until the validation error converges; the last prompt is kept. What
    that leaves out: checks of rules and asking again, clustering within labels, general rules ahead of the
    instructions, the gate on validation with best prompt kept, floors, pruning, and the limit on the
    prompt's length. It still never shows validation or test text to a model that writes prompts.

    Example: pld compile tweets/pld.toml
    """
    display = Display(quiet=quiet)
    student = ""

    async def work(stop: StopSignal) -> CompileResult:
        nonlocal student
        settings = load_config(config)
        student = settings.student.model
        check_models(settings, max_cost)
        folder = run or default_run_folder(settings)
        with logged(folder, display) as emit:
            return await compile_prompt(
                settings,
                open_models,
                run=folder,
                max_cost_usd=max_cost,
                faithful=faithful,
                ablation=ablation,
                retry_failed=retry_failed,
                emit=emit,
                stop=stop,
            )

    result = run_work(work, display)
    if as_json:
        print_json(result.to_json())
        return
    note = LOCAL_NOTE if is_local(student) else LOCAL_TEACHER_NOTE
    _summary(Console(highlight=False), result, note if any(map(is_local, result.addresses)) else "")


def _summary(console: Console, result: CompileResult, note: str) -> None:
    figures = result.to_json()
    requests = result.requests
    print_scores(console, result.validation)
    lines = [
        verdict_line(result.validation, provisional=True),
        confidence_line(result.validation.confidence),
        rules_line(result.extraction),
        f"prompt: {figures['instructions']} instructions, about {figures['prompt_tokens']:,} tokens; "
        f"{result.rounds} rounds of conflict resolution ({result.stop_reason})",
        f"requests: {requests['sent']:,} sent, {requests['cached']:,} from the cache, "
        f"{requests['failed']:,} failed; ${result.cost_usd:,.4f}; {result.seconds:.1f} s",
        f"the prompt: {result.run / 'prompt.md'}",
        f"next: pld evaluate {result.run}",
    ]
    if note:
        lines.insert(1, note)
    for line in lines:
        say(console, line)
