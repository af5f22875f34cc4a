"""`pld sweep`: what other settings of DBSCAN would make of a run's rules, and of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from adapters.cli.display import Display
from adapters.cli.eventlog import logged
from adapters.cli.figures import LOCAL_NOTE, print_json, say
from adapters.cli.running import run as run_work
from adapters.registry import check_models, is_local, open_models
from engine.distillation.manifest import load_run_config
from engine.distillation.sweeping import sweep
from engine.distillation.swept import SweepResult
from engine.stopping import StopSignal
from engine.store import RunDirectory
from engine.tokens import estimate_tokens

T = TypeVar("T")


class Within(StrEnum):
    ALL = "all"
    LABEL = "label"


def sweep_command(
    run: Annotated[Path, typer.Argument(help="A run directory that `pld compile` finished.")],
    eps: Annotated[
        str, typer.Option(help="Largest cosine distances of two neighbours, with commas between.")
    ],
    min_samples: Annotated[
        str | None,
        typer.Option(help="Neighbours that make a rule a core, one or several; default: the run's, or 6."),
    ] = None,
    within: Annotated[
        Within | None,
        typer.Option(help="Cluster all rules together or each label's apart; default: as the run."),
    ] = None,
    centred: Annotated[
        bool | None,
        typer.Option(
            "--centred/--raw",
            help="Take off the direction that all rules share, or not; default: as the run.",
            show_default=False,
        ),
    ] = None,
    synthesize: Annotated[
        bool | None,
        typer.Option(
            "--synthesize/--no-synthesize",
            help="Also write each setting's prompt and score it; default: only where synthesizer and student "
            "are local models.",
            show_default=False,
        ),
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Cap in USD: no request is sent that could pass it.", min=0)
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what this run had given up as failed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; warnings only.")] = False,
) -> None:
    """Cluster a run's rules with other settings of DBSCAN, and compare what comes of them.

    Rules and vectors are the run's, so this costs nothing: clusters, rules outside them, the largest cluster,
    how far a cluster agrees on its label, and labels that no cluster has.

    --synthesize adds what each setting is worth: its clusters become a prompt, as in a compilation before
    conflict resolution, and the run's student classifies the validation rows with it (never the test rows).
    That asks synthesizer and student; what they answered before comes from the response cache, so the same
    sweep again costs nothing, and one that was stopped goes on. Where answers come in files
    (answer-files:DIR) it exits with 75 while requests wait for them.

    A run that was clustered in centred vectors (method "calibrated" or "hdbscan") is swept in them. An eps to
    compile with (method = "dbscan", which takes vectors as they are) is to be chosen with --raw.

    Example: pld sweep runs/tweets --eps 0.2,0.3,0.4,0.5 --min-samples 6
    """
    distances = _numbers(eps, float, "--eps")
    cores = [] if min_samples is None else _numbers(min_samples, int, "--min-samples")
    display = Display(quiet=quiet)
    local = False

    async def work(stop: StopSignal) -> SweepResult:
        nonlocal local
        settings = load_run_config(RunDirectory.open(run))
        local = all(is_local(settings.role(role).model) for role in ("synthesizer", "student"))
        asked = local if synthesize is None else synthesize
        if asked:
            check_models(settings, max_cost)
        with logged(run, display) if asked else nullcontext(display) as emit:
            return await sweep(
                run,
                distances,
                min_samples=cores,
                within=None if within is None else within.value,
                centred=centred,
                models=open_models if asked else None,
                max_cost_usd=max_cost,
                retry_failed=retry_failed,
                emit=emit,
                stop=stop,
            )

    found = run_work(work, display)
    if as_json:
        print_json(found.to_json())
        return
    _print(Console(highlight=False), found, local=local)


def _numbers(text: str, kind: Callable[[str], T], option: str) -> list[T]:
    try:
        return [kind(one) for one in text.split(",")]
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers with commas between", param_hint=option
        ) from exc


def _print(console: Console, found: SweepResult, *, local: bool) -> None:
    drafted = any(one.drafted is not None for one in found.settings)
    space = "with the direction that all share taken off" if found.centred else "as embedded"
    apart = "each label's apart" if found.within == "label" else "all together"
    cores = ", ".join(str(one) for one in dict.fromkeys(one.min_samples for one in found.settings))
    table = Table(title=f"{found.rules:,} rules {space}, {apart}, min_samples {cores}", title_justify="left")
    several = len({one.min_samples for one in found.settings}) > 1
    names = ["eps", *["min"] * several, "clusters", "noise", "largest", "label"]
    for name in names + ["tokens", "F1", "95%"] * drafted:
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.settings:
        cells = [f"{one.eps:g}", *[f"{one.min_samples:,}"] * several, f"{one.clusters:,}"]
        cells += [f"{one.noise / found.rules:.0%}", f"{one.largest / found.rules:.0%}"]
        cells.append("" if one.majority_share is None else f"{one.majority_share:.0%}")
        if one.drafted is not None:
            scores = one.drafted.scores
            cells += [f"{estimate_tokens(one.drafted.prompt.text):,}", f"{scores.macro_f1:.3f}"]
            cells.append(f"{scores.ci95.low:.2f}-{scores.ci95.high:.2f}")
        table.add_row(*cells)
    console.print(table)
    for line in _lines(found, drafted=drafted, local=local):
        say(console, line)


def _lines(found: SweepResult, *, drafted: bool, local: bool) -> Iterator[str]:
    yield (
        "noise: rules outside every cluster; largest: rules in the largest one; label: share of the "
        "commonest label in a cluster, on average"
    )
    for one in found.settings:
        if one.missing_labels and one.clusters:
            missing = ", ".join(one.missing_labels)
            yield f"eps {one.eps:g}, min_samples {one.min_samples}: no cluster has a rule of {missing}"
    yield _own_line(found)
    if found.centred:
        yield 'method = "dbscan" in a configuration takes vectors as they are: --raw shows what it would make'
    if drafted:
        requests = found.requests
        failed = sum(len(one.drafted.failures) for one in found.settings if one.drafted is not None)
        yield (
            f"F1: macro-F1 on {found.validation_rows:,} validation rows, before conflict resolution, with "
            "its 95% interval; intervals that overlap do not tell settings apart"
        )
        yield (
            f"requests: {requests['sent']:,} sent, {requests['cached']:,} from the cache, "
            f"{failed:,} without an answer; ${found.cost_usd:,.4f}"
        )
        if local:
            yield LOCAL_NOTE
        return
    # one for each cluster, and one for the general rules
    most = sum(one.clusters + bool(one.clusters) for one in found.settings)
    rows = found.validation_rows * len(found.settings)
    yield (
        f"--synthesize adds prompt tokens and macro-F1: about {most:,} requests to the synthesizer and "
        f"{rows:,} to the student, less what the cache holds"
    )


def _own_line(found: SweepResult) -> str:
    own, used = found.compiled, found.compiled["clustering"]
    noise, largest = used["noise"] / found.rules, used["largest"] / found.rules
    return (
        f"this run ({used['method']}): {used['clusters']:,} clusters, {noise:.0%} noise, {largest:.0%} in "
        f"the largest; its prompt, after conflict resolution: about {own['prompt_tokens']:,} tokens, "
        f"macro-F1 {own['macro_f1']:.3f} on validation"
    )
