"""`pld bench`: side-by-side figures on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from adapters.cli.running import errors_as_one_line
from adapters.serving.installation import find_vllm
from bench import bulk, bulk_kills, clustering, journals, quality, scheduler, student
from bench.environment import data_folder, environment
from engine.store.compiled import load_prompt

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
    duplicates: Annotated[
        float, typer.Option(help="Share of rows that repeat an earlier text.", min=0, max=0.99)
    ] = 0.0,
    kills: Annotated[
        int | None, typer.Option(help="Kill one long job so often (`kill -9`), and check every row.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Classify rows in bulk with the local student, beside the bare student.

    `ratio` is rows per second to those of the same student with nothing around it, in the same run. With
    --kills it is one long job instead, with its memory on the way; each row must come out exactly once.

    Example: PLD_DATA=/data pld bench bulk --rows 200000
    Example: PLD_DATA=/data pld bench bulk --rows 5000000 --duplicates 0.33 --kills 3
    """
    _needs_data()
    if kills is None and duplicates:
        raise typer.BadParameter("--duplicates goes with --kills (0 for none)")
    found = (
        bulk.measure(data_folder(), name, rows, repeats)
        if kills is None
        else bulk_kills.measure(data_folder(), name, rows, duplicates, kills)
    )
    _show(found, {}, as_json=as_json)


_SCHEDULER_PARTS = ("speed", "gemini", "latency", "cached", "journals", "limits", "faults", "kills", "memory")


@app.command("scheduler")
def scheduler_command(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(_SCHEDULER_PARTS)}; default: all.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of one job.", min=1000)] = 20_000,
    repeats: Annotated[
        int, typer.Option(help="Runs of each row of speed, gemini, latency, cached and journals.", min=1)
    ] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a job under limits or latency.", min=5)] = 60.0,
    kills: Annotated[int, typer.Option(help="How often the job is killed.", min=1)] = 20,
    stream: Annotated[int, typer.Option(help="Requests of the long stream.", min=200_000)] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Drive a fake LLM server over loopback with pld's scheduler and adapter, and with other clients.

    CPU is the client's, in microseconds for a request; `ratio` is that to a bare aiohttp loop's in the same
    run (for Gemini, to its SDK's), or the share of what is possible. Clients that are not installed (openai,
    litellm) are left out. SDKs get a part of the requests.

    Example: pld bench scheduler speed --repeats 5
    """
    chosen = _chosen(parts, _SCHEDULER_PARTS)
    measures: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "speed": lambda: scheduler.measure_speed(requests, repeats),
        "gemini": lambda: scheduler.measure_gemini(requests // 10, repeats),
        "latency": lambda: scheduler.measure_latency(seconds / 2, repeats),
        "cached": lambda: scheduler.measure_cached(requests, repeats),
        "journals": lambda: journals.measure(repeats=repeats),
        "limits": lambda: scheduler.measure_limits(seconds),
        "faults": lambda: scheduler.measure_faults(requests),
        "kills": lambda: scheduler.measure_kills(requests, kills),
        "memory": lambda: scheduler.measure_memory(stream),
    }
    _show_parts({part: measures[part]() for part in chosen}, as_json=as_json)


@app.command("student")
def student_command(
    model: Annotated[str, typer.Argument(help="A folder with a model, or its name on the Hugging Face Hub.")],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="Flags for `vllm serve` itself.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="A compiled run whose prompt is measured; default: one of about 4,600 tokens."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of one run; some ways take a part of them.", min=20)] = 400,
    repeats: Annotated[int, typer.Option(help="Runs of each way.", min=1)] = 5,
    price: Annotated[float, typer.Option(help="US dollars for an hour of the machine.", min=0)] = 1.0,
    parts: Annotated[
        list[str] | None, typer.Option("--part", help=f"Of {', '.join(student.PARTS)}; default: all.")
    ] = None,
    vllm: Annotated[
        Path | None,
        typer.Option(envvar="PLD_VLLM", help="The vllm program, or its environment; default: that on PATH."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Serve a model with vLLM and ask it in several ways: what a prompt costs, and what its cache saves.

    `ways`: zero-shot, compiled prompt, chain of thought; then the compiled prompt with the prefix cache off.
    `to_uncached` is requests per second to those of that last one. `concurrency`: closed loops with fixed
    numbers of requests in flight, and how near `pld classify` comes in a minute to the best of them from a
    bad start. Rows are made up, about 200 tokens each.

    Example: pld bench student Qwen/Qwen3-4B --run runs/tweets --price 2.5 -- --max-model-len 16384
    """
    with errors_as_one_line("the server is gone"):
        setting = student.Setting(
            model=model,
            vllm=find_vllm(vllm),
            prompt=None if run is None else load_prompt(run),
            rows=rows,
            repeats=repeats,
            price_usd=price,
            parts=tuple(_chosen(parts, student.PARTS)),
            flags=tuple(extra or ()),
        )
        _show_parts(student.measure_student(setting), as_json=as_json)


_CLUSTERING_PARTS = ("speed", "grid", "curve", "backends", "approximate")


@app.command("clustering")
def clustering_command(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(_CLUSTERING_PARTS)}; default: all.")
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            help="Rows of speed and grid; curve goes to five times as many, approximate has ten times.",
            min=100,
        ),
    ] = 20_000,
    dim: Annotated[int, typer.Option(help="Values of a row.", min=2)] = 768,
    data: Annotated[str | None, typer.Option(help="sparse or dense; default: both.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each row of speed, grid and backends.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of everything that is measured.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Cluster made-up embeddings with DBSCAN, exactly and approximately, beside scikit-learn.

    Each run has a process of its own. `ratio` is CPU to the half-GEMM limit: what one thread would take for
    n²·d operations at the rate of a large matrix product, which the same process measures.

    Example: pld bench clustering speed --rows 20000
    """
    chosen = _chosen(parts, _CLUSTERING_PARTS)
    if data is not None and data not in clustering.KINDS:
        raise typer.BadParameter(f"--data is {' or '.join(clustering.KINDS)}, not {data}")
    kinds = [kind for kind in clustering.KINDS if data in {None, kind}]
    measures: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "speed": lambda: clustering.measure_speed(rows, dim, repeats=repeats, threads=threads, kinds=kinds),
        "grid": lambda: clustering.measure_grid(rows, dim, repeats=repeats, threads=threads, kinds=kinds),
        "curve": lambda: clustering.measure_curve(rows, dim, threads=threads, kinds=kinds),
        "backends": lambda: clustering.measure_backends(
            rows, dim, repeats=repeats, threads=threads, kinds=kinds
        ),
        "approximate": lambda: clustering.measure_approximate(rows, dim, threads=threads, kinds=kinds),
    }
    _show_parts({part: measures[part]() for part in chosen}, as_json=as_json)


def _chosen(parts: list[str] | None, known: Sequence[str]) -> list[str]:
    if unknown := set(parts or ()) - set(known):
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: not a part of this benchmark; known: {', '.join(known)}"
        )
    return [part for part in known if not parts or part in parts]


def _show_parts(found: dict[str, list[dict[str, Any]]], *, as_json: bool) -> None:
    where = environment()
    if as_json:
        rows = [{"part": part, **row} for part, part_rows in found.items() for row in part_rows]
        _print_json({"environment": where, "results": rows})
    else:
        _print_tables(list(found.values()), where)


def _needs_data() -> None:
    if not data_folder().is_dir():
        raise typer.BadParameter("set PLD_DATA to the folder that holds data/ with the data sets")


def _show(rows: list[dict[str, Any]], more: dict[str, Any], *, as_json: bool) -> None:
    where = environment()
    if as_json:
        _print_json({"environment": where, "results": rows, **more})
    else:
        _print_tables([rows, *more.values()], where)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def _print_tables(tables: list[list[dict[str, Any]]], where: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for rows in ([_folded(row) for row in found] for found in tables):
        table = Table()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        for column in columns:
            table.add_column(column)
        for row in rows:
            cells = (row.get(column) for column in columns)
            table.add_row(*("" if value is None else str(value) for value in cells))
        console.print(table)
    console.print(f"{where['machine']}; Python {where['python']}; {where['date']}", markup=False)


def _folded(row: dict[str, Any]) -> dict[str, Any]:
    """A median with its least and greatest beside it in one cell."""
    found = {}
    for name, value in row.items():
        if name.endswith(("_min", "_max")) and name[:-4] in row:
            continue
        least, greatest = row.get(f"{name}_min"), row.get(f"{name}_max")
        found[name] = value if least == greatest else f"{value} ({least}-{greatest})"
    return found
