"""`pld estimate`: what a compilation would send, before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from adapters.cli.display import Display
from adapters.cli.figures import print_json, say
from adapters.cli.running import run as run_work
from adapters.registry import check_addresses
from engine.config_file import load_config
from engine.distillation.estimating import Estimate, StageEstimate, estimate
from engine.stopping import StopSignal

NOT_COUNTED = (
    "Not counted: retries, and second askings (an answer that fails a check is asked for once more). Answers "
    "that the response cache holds already are counted. Tokens are estimated, without the models' tokenizers."
)


def estimate_command(
    config: Annotated[Path, typer.Argument(help="The configuration, a TOML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings only, beside the figures.")] = False,
) -> None:
    """Say how many requests and tokens each stage would send, before anything is sent.

    Extraction is counted on the real rows. What comes after it depends on answers that nobody has yet, so
    those figures are bounds ("≤"), each with what it rests on; a compilation that stops earlier, or writes
    shorter prompts, stays far below them. Nothing is written, and no model is opened.

    Example: pld estimate tweets/pld.toml
    """
    display = Display(quiet=quiet)

    async def work(stop: StopSignal) -> Estimate:
        settings = load_config(config)
        check_addresses(settings)
        return await estimate(settings, emit=display, stop=stop)

    found = run_work(work, display)
    if as_json:
        print_json(found.to_json())
        return
    _print(Console(highlight=False), found)


def _print(console: Console, found: Estimate) -> None:
    rows = ", ".join(f"{count:,} {split}" for split, count in found.rows.items())
    table = Table(title=f"{found.task}: {rows} rows", title_justify="left", show_footer=True)
    total = found.total
    table.add_column("stage", "total")
    table.add_column("model")
    table.add_column("requests", f"≤ {total['requests']:,}", justify="right", no_wrap=True)
    table.add_column("input", f"≤ {short(total['input_tokens'])}", justify="right", no_wrap=True)
    usual, most = short(total["usual_output_tokens"]), short(total["output_tokens"])
    table.add_column("output", f"≤ {most}", justify="right", no_wrap=True)
    table.add_column("usually", usual, justify="right", no_wrap=True)
    for stage in found.stages:
        sign = "" if stage.bound == "exact" else "≤ "
        table.add_row(
            stage.stage,
            stage.role,
            f"{sign}{stage.requests:,}",
            f"{sign}{short(stage.input_tokens)}",
            f"≤ {short(stage.output_tokens)}" if stage.output_tokens else "0",
            short(stage.usual_output_tokens),
        )
    console.print(table)
    lines = ["input and output in tokens; usually: what as many answers have without thinking"]
    lines += [f"{stage.stage}: {stage.assumption}" for stage in found.stages]
    lines += [NOT_COUNTED, _models(found.stages)]
    for line in lines:
        say(console, line)


def short(count: int) -> str:
    """A number of tokens in at most eight characters: exact below a million, then to three figures."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if count >= size:
            value = count / size
            return f"{value:,.0f} {unit}" if value >= 99.95 else f"{value:#.3g} {unit}"
    return f"{count:,}"


def _models(stages: tuple[StageEstimate, ...]) -> str:
    roles = {stage.role: stage.model for stage in stages}
    return "models: " + ", ".join(f"{role} {address}" for role, address in roles.items())
