"""Tables of figures, for people; and the one object that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from engine.confidence import Reliability
from engine.distillation.evaluation import Evaluation
from engine.types import Scores

NAMES = {
    "compiled": "compiled prompt",
    "zero_shot": "zero-shot, same student",
    "majority": "majority class",
    "tfidf_logreg": "TF-IDF + logistic regression",
    "clustered": "before conflict resolution",
    "resolver_only": "resolver from an empty prompt",
}

LOCAL_NOTE = (
    "These are the local models: a keyword-rule baseline that shows the pipeline at work without a key. "
    "Their scores say nothing about what a language model would reach."
)

LOCAL_TEACHER_NOTE = (
    "Local models, which know keyword rules only, had a hand in this prompt. The scores are this student's, "
    "but say nothing about the prompt that language models would write."
)


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON object on stdout, nothing else."""
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def say(console: Console, text: str = "") -> None:
    """Plain text: broken between words on a terminal, left as it is elsewhere."""
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def print_scores(console: Console, evaluation: Evaluation) -> None:
    """Accuracy and macro-F1 of every system on the same rows."""
    table = Table(title=f"{evaluation.split}: {evaluation.compiled.n:,} rows", title_justify="left")
    table.add_column("system")
    for name in ("accuracy", "macro-F1", "95% interval"):
        table.add_column(name, justify="right")
    for name, scores in evaluation.systems.items():
        interval = f"{scores.ci95.low:.3f} to {scores.ci95.high:.3f}"
        table.add_row(NAMES.get(name, name), f"{scores.accuracy:.3f}", f"{scores.macro_f1:.3f}", interval)
    console.print(table)


def confidence_line(confidence: Reliability) -> str:
    """Expected calibration error of the compiled prompt, as told and calibrated."""
    if confidence.ece_raw is None:
        return f"confidence: {confidence.reason}"
    line = f"confidence: expected calibration error {confidence.ece_raw:.3f}"
    if confidence.ece_calibrated is None:
        return f"{line}; not calibrated: {confidence.reason}"
    return f"{line}, calibrated {confidence.ece_calibrated:.3f} (temperature {confidence.temperature:g})"


def rules_line(extraction: Mapping[str, Any]) -> str:
    """What came of the teacher's answers: rules, second askings, rows without a rule, and why."""
    line = f"rules: {extraction['rules']:,} of {extraction['asked']:,} training rows"
    first = {name: extraction[name] for name in ("malformed", "cut")} | extraction["findings"]
    if extraction["asked_again"]:
        line += f"; {extraction['asked_again']:,} asked again{_counted(first)}"
    if extraction["failures"]:
        line += f"; {extraction['failures']:,} set aside{_counted(extraction['reasons'])}"
        lost = {name: one["failures"] / one["asked"] for name, one in extraction["by_label"].items()}
        worst = min(lost, key=lambda name: (-lost[name], name))
        line += f", {lost[worst]:.1%} of {worst}"
    return line


def _counted(counts: Mapping[str, int]) -> str:
    named = sorted(
        ((count, name) for name, count in counts.items() if count), key=lambda one: (-one[0], one[1])
    )
    shown = ", ".join(f"{count:,} {name.replace('_', ' ')}" for count, name in named)
    return f" ({shown})" if shown else ""


def print_classes(console: Console, scores: Scores) -> None:
    """Precision, recall and F1 of each label, and how labels are confused."""
    table = Table(title="compiled prompt, by label", title_justify="left")
    table.add_column("label")
    for name in ("rows", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    table.add_column("taken for")
    for label, figures in scores.per_class.items():
        others = sorted(
            ((count, name) for name, count in scores.confusion[label].items() if name != label and count),
            key=lambda pair: (-pair[0], pair[1]),
        )
        taken = ", ".join(f"{name or '(no label)'} {count}" for count, name in others[:3])
        table.add_row(
            label,
            f"{figures['support']:,.0f}",
            f"{figures['precision']:.3f}",
            f"{figures['recall']:.3f}",
            f"{figures['f1']:.3f}",
            taken,
        )
    console.print(table)


def verdict_line(evaluation: Evaluation, *, provisional: bool) -> str:
    """The verdict in words, with the figures that decide it."""
    found = evaluation.verdict
    if found is None:
        return "verdict: none without the zero-shot prompt"
    kind = "provisional verdict" if provisional else "verdict"
    zero, most = found.over_zero_shot, found.over_majority
    return (
        f"{kind}: {found.decision} (over zero-shot {zero.difference:+.3f}, 95% {zero.ci95.low:+.3f} to "
        f"{zero.ci95.high:+.3f}; over majority {most.difference:+.3f}, 95% {most.ci95.low:+.3f} to "
        f"{most.ci95.high:+.3f}; chance reaches {found.chance_p99:.3f})"
    )
