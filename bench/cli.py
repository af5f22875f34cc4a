"""`pld bench`: side-by-side figures on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from bench import bulk, quality
from bench.environment import data_folder, environment

app = typer.Typer(help="Side-by-side figures on this machine.", no_args_is_help=True)


@app.command("quality")
def quality_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Data sets in PLD_DATA/data; default: all six.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds for each.", min=1)] = 3,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="Also with shuffled training labels.")] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also score the prompts that `pld compile --ablation` keeps.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Compile and evaluate real data sets with the local models; macro-F1 on test.

    `ratio` is the compiled prompt's macro-F1 to that of TF-IDF with logistic regression in the same run.

    Example: PLD_DATA=/data pld bench quality stereoset --seeds 3
    """
    unknown = set(names or ()) - set(quality.DATA_SETS)
    if unknown:
        known = ", ".join(quality.DATA_SETS)
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: not a data set here; known: {known}")
    _needs_data()
    rows = list(
        quality.measure(
            names or list(quality.DATA_SETS),
            list(range(1, seeds + 1)),
            data_folder(),
            shuffled=shuffled,
            ablation=ablation,
        )
    )
    _show(rows, {"medians": quality.medians(rows)}, as_json=as_json)


@app.command("bulk")
def bulk_command(
    name: Annotated[str, typer.Argument(help="Data set whose words the rows are made of.")] = (
        "hate_speech_offensive"
    ),
    rows: Annotated[int, typer.Option(help="Rows to classify.", min=1)] = 200_000,
    repeats: Annotated[int, typer.Option(help="Runs of each.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Classify rows in bulk with the local student, beside the bare student.

    `ratio` is rows per second to those of the same student with nothing around it, in the same run.

    Example: PLD_DATA=/data pld bench bulk --rows 200000
    """
    _needs_data()
    _show(bulk.measure(data_folder(), name, rows, repeats), {}, as_json=as_json)


def _needs_data() -> None:
    if not data_folder().is_dir():
        raise typer.BadParameter("set PLD_DATA to the folder that holds data/ with the data sets")


def _show(rows: list[dict[str, Any]], more: dict[str, Any], *, as_json: bool) -> None:
    where = environment()
    if as_json:
        document = {"environment": where, "results": rows, **more}
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console(highlight=False)
    for table_rows in (rows, *more.values()):
        table = Table()
        for column in table_rows[0]:
            table.add_column(column)
        for row in table_rows:
            table.add_row(*("" if value is None else str(value) for value in row.values()))
        console.print(table)
    console.print(f"{where['machine']}; Python {where['python']}; {where['date']}", markup=False)
