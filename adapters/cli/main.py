"""`pld`: the commands, and those that other packages register in the entry point group `pld.commands`."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from adapters.cli import classify, compile_, demo, estimate, evaluate, init, serve, sweep

app = typer.Typer(
    name="pld",
    help="Prompt-Level Distillation: compile a labelled set into a readable system prompt for a small model, "
    "prove what it is worth, and classify bulk traffic with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init_command)
app.command("compile")(compile_.compile_command)
app.command("estimate")(estimate.estimate_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("classify")(classify.classify_command)
app.command("sweep")(sweep.sweep_command)
app.command("serve")(serve.serve_command)
app.command("demo")(demo.demo_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pld {metadata.version('pld-engine')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `pld` itself."""


def main() -> None:
    """Entry point of the `pld` command."""
    for entry in sorted(metadata.entry_points(group="pld.commands"), key=lambda one: one.name):
        # bench stands above adapters: it registers itself here instead of being imported
        app.add_typer(entry.load(), name=entry.name)
    app()
