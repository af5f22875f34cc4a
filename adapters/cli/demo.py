"""`pld demo`: the whole thing at work on the bundled example."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adapters.cli import figures
from adapters.cli.display import Display
from adapters.cli.eventlog import logged
from adapters.cli.figures import LOCAL_NOTE, print_json, print_scores, verdict_line
from adapters.cli.running import run as run_work
from adapters.registry import open_models, open_student
from engine.bulk import ClassifyResult, classify
from engine.config_file import load_config
from engine.distillation.evaluation import Evaluation
from engine.distillation.judging import evaluate
from engine.distillation.pipeline import compile_prompt
from engine.distillation.result import CompileResult
from engine.errors import RunError
from engine.stopping import StopSignal

NAMES = ("pld.toml", "policy.md", "messages.csv", "README.md")
_EXCERPT_INSTRUCTIONS = 3


def demo_command(
    folder: Annotated[
        Path, typer.Option("--dir", help="Folder for the example and all that comes of it.")
    ] = Path("pld-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings only.")] = False,
) -> None:
    """Compile, evaluate and classify the bundled example with the local models.

    Messages of an invented gardeners' board under its own house rules; needs no key, account or GPU.

    Example: pld demo
    """
    display = Display(quiet=quiet)

    async def work(stop: StopSignal) -> tuple[CompileResult, Evaluation, ClassifyResult]:
        copy_example(folder)
        config = load_config(folder / "pld.toml")
        with logged(folder / "run", display) as emit:
            compiled = await compile_prompt(config, open_models, run=folder / "run", emit=emit, stop=stop)
        student = open_student(config.student, config.prices)
        try:
            with logged(compiled.run, display) as emit:
                found = await evaluate(compiled.run, student, emit=emit, stop=stop)
            with logged(folder / "labelled", display) as emit:
                sorted_ = await classify(
                    compiled.prompt,
                    student,
                    [folder / "messages.csv"],
                    folder / "labelled",
                    id=config.task.id,
                    emit=emit,
                    stop=stop,
                )
        finally:
            await student.aclose()
        return compiled, found, sorted_

    compiled, found, labelled = run_work(work, display)
    if as_json:
        print_json(
            {"compile": compiled.to_json(), "evaluate": found.to_json(), "classify": labelled.to_json()}
        )
        return
    _show(Console(highlight=False), folder, compiled, found, labelled)


@contextmanager
def bundled_example() -> Iterator[Path]:
    """The folder of the bundled example: inside an installed wheel, or `examples/` of a checkout."""
    with as_file(files("adapters") / "example") as packed:
        yield packed if packed.is_dir() else Path(__file__).resolve().parents[2] / "examples"


def copy_example(folder: Path) -> None:
    """Copy the example into `folder`, where its files can be looked at and changed.

    Files that are there already stay as they are. Raises `RunError` where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with bundled_example() as source:
            for name in NAMES:
                if not (folder / name).exists():
                    shutil.copyfile(source / name, folder / name)
    except OSError as exc:
        raise RunError(f"{folder}: the example cannot be copied there: {exc.strerror}") from exc


def excerpt(text: str, instructions: int) -> str:
    """The prompt up to its first few instructions."""
    parts = text.split("\n## ")
    shown = "\n## ".join(parts[: instructions + 1])
    left = len(parts) - 1 - instructions
    return f"{shown.strip()}\n\n[… {left} more instructions …]" if left > 0 else shown.strip()


def _show(
    console: Console, folder: Path, compiled: CompileResult, found: Evaluation, labelled: ClassifyResult
) -> None:
    say = partial(figures.say, console)
    say()
    say(f"--- {compiled.run / 'prompt.md'}, the beginning ---")
    say(excerpt(compiled.prompt.text, _EXCERPT_INSTRUCTIONS))
    say("--- end of the excerpt ---")
    say()
    print_scores(console, found)
    say(verdict_line(found, provisional=False))
    say(LOCAL_NOTE)
    say()
    say(f"classified: {labelled.rows:,} messages at {labelled.rows_per_s:,.0f} rows/s")
    say("where everything lies:")
    say(f"  {folder / 'pld.toml'}: the configuration, to be changed and compiled again")
    say(f"  {compiled.run}: the run (prompt.md, prompt.json, rules, clusters, rounds, evaluation.json)")
    say(f"  {folder / 'labelled'}: the labelled rows, as Parquet")
    say("what to do next:")
    say("  pld init FILE    looks at a file of yours and writes a configuration for it")
    say("  pld compile pld.toml, pld evaluate RUN, pld classify RUN FILES -o DIR")
