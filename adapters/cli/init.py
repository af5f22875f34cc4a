"""`pld init`: a commented configuration for an unknown data file, which compiles as it is."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shlex
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from adapters.cli.running import errors_as_one_line
from engine.config import DataConfig
from engine.config_file import parse_config
from engine.errors import ConfigError, PldError
from engine.store.columns import Role
from engine.store.guessing import FRACTIONS, Guess, guess_columns

_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_BAD_SHARE: float = DataConfig.model_fields["max_bad_share"].default
_LARGE_BYTES = 256 << 20
_SPARE = 0.05  # bad texts are known from a sample only


def init_command(
    file: Annotated[Path, typer.Argument(help="The labelled rows: a Parquet, CSV or NDJSON file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The configuration to write.")] = Path("pld.toml"),
    text: Annotated[
        list[str] | None,
        typer.Option(help="Column with the input text, once for each of several; default: guessed."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label; default: guessed.")] = None,
    row_id: Annotated[
        str | None, typer.Option("--id", help="Column with a unique id; default: guessed, or none.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Column that says train, validation or test; default: guessed, or none."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the task and its run; default: the file's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a configuration that is there.")] = False,
) -> None:
    """Look at a data file and write a commented configuration that `pld compile` takes as it is.

    Which columns hold texts, labels, ids and splits is guessed from names and values. Nothing is asked: what
    is uncertain stands on stderr and in a comment, and an option settles it.

    Example: pld init tweets.csv --label topic
    """
    if name is not None and not _TASK_NAME.fullmatch(name):
        raise typer.BadParameter(
            "letters, digits, '.', '_' and '-' only, beginning with a letter or digit", param_hint="--name"
        )
    given: dict[Role, str | list[str] | None]
    given = {"text": text or None, "label": label, "id": row_id, "split": split}
    with errors_as_one_line("nothing was written"):
        _check_free(out, force=force)
        if file.is_file() and file.stat().st_size > _LARGE_BYTES:
            typer.echo("reading the labels of all rows …", err=True)
        guess = guess_columns(file, {role: column for role, column in given.items() if column is not None})
        document = render(guess, name or task_name(guess.file), out)
        # whatever stands in names and labels, what is written can be read
        parse_config(tomllib.loads(document), base=out.resolve().parent, source=str(out))
        _write(out, document)
    for role, doubt in guess.doubts.items():
        typer.echo(f"warning: {_doubt(guess, role, doubt)}", err=True)
    for warning in guess.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for line in _summary(guess, out):
        typer.echo(line)


def task_name(file: Path) -> str:
    """A task's name from a file's: its stem, with what a name cannot hold taken away."""
    stem = file.name.removesuffix(".gz").rpartition(".")[0] or file.name
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-") or "task"


def toml_string(text: str) -> str:
    """A TOML basic string. Raises `ConfigError` for what is not Unicode and cannot stand in TOML at all."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(
            f"{text!r} is not valid Unicode and cannot stand in a configuration; rename it"
        ) from exc
    # JSON's escapes are TOML's, but for DEL, which JSON lets stand
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def render(guess: Guess, name: str, out: Path) -> str:
    """The configuration as TOML; the path of the data is relative to the folder of `out`."""
    folder = out.resolve().parent
    source = os.path.relpath(guess.file.absolute(), folder)
    lines = [
        f"# Compile it with `pld compile {out.name}`. Paths are relative to this file.",
        "",
        "[task]",
        "# Names the run.",
        f"name = {toml_string(name)}",
        "",
        "# What is decided, in a sentence or two. It becomes part of the compiled prompt. This one was made",
        "# from names alone: put it into your own words.",
        f"description = {toml_string(_description(guess, name))}",
        "",
        "# A written policy (a text file), if there is one: the teacher reads it while it explains examples.",
        '# policy = "policy.md"',
        "",
        '# The columns of the data file. Where the input is in several: text = ["premise", "hypothesis"]',
        *_column(guess, "text", guess.text),
        *_column(guess, "label", guess.label),
        *_column(guess, "id", guess.id, none="without an id, rows are told apart by a hash of their content"),
        "",
        "# Every label. Write what it means between the quotes: that goes into the prompt, too.",
        *(f"# {warning}" for warning in guess.warnings),
        "[task.labels]",
        *(f'{_key(label)} = ""  # {rows:,} rows' for label, rows in guess.labels.items()),
        "",
        "[data]",
        f"file = {toml_string(source)}",
        *_column(guess, "split", guess.split, none="no column says train and validation: rows are divided"),
        *_shares(guess),
        "",
        '# Every model is "local:" by default: keyword rules that need no key, account or GPU.',
        "# These are the settings most often changed, with their defaults:",
        "#",
        "# [cluster]",
        '# method = "calibrated" # or "dbscan", with eps and min_samples of your own; or "hdbscan"',
        "#",
        "# [resolve]",
        "# max_rounds = 8        # 0 leaves the first prompt as it is",
        "#",
        "# [run]",
        "# seed = 7",
    ]
    return "\n".join(lines) + "\n"


def _column(
    guess: Guess, role: Role, column: str | tuple[str, ...] | None, *, none: str = ""
) -> Iterator[str]:
    if role in guess.doubts:
        yield f"# {_doubt(guess, role, guess.doubts[role])}"
    if column is None:
        yield f"# {none}"
    elif isinstance(column, tuple) and len(column) > 1:
        yield f"{role} = [{', '.join(map(toml_string, column))}]"
    else:
        yield f"{role} = {toml_string(column if isinstance(column, str) else column[0])}"


def _doubt(guess: Guess, role: Role, doubt: str) -> str:
    column = guess.text[0] if role == "text" else getattr(guess, role)  # several texts are certain
    if column is None:
        return f"{role}: {doubt}"
    return f"{role}: {column!r} is a guess, {doubt}; --{role} settles it"


def _shares(guess: Guess) -> Iterator[str]:
    if guess.split is None:
        yield "# Shares of train, validation and test, drawn with the seed of [run], alike for each label."
        yield f"fractions = {list(FRACTIONS)}"
    if guess.bad_share > _MAX_BAD_SHARE - _SPARE / 2:
        allowed = min(1.0, math.ceil((guess.bad_share + _SPARE) * 20) / 20)
        yield f"# About {guess.bad_share:.0%} of the rows lack a text or a label and are set aside; a larger"
        yield "# share than this stops the job."
        yield f"max_bad_share = {allowed:g}"


def _description(guess: Guess, name: str) -> str:
    words = [" ".join(re.split(r"[\s_.-]+", column)).strip() for column in (*guess.text, guess.label)]
    *texts, label = words
    title = " ".join(re.split(r"[_.-]+", name))
    return f"{title[:1].upper()}{title[1:]}: decide which {label} fits this {' and '.join(texts)}."


def _key(label: str) -> str:
    return label if _BARE_KEY.fullmatch(label) else toml_string(label)


def _check_free(out: Path, *, force: bool) -> None:
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the file to write, for example {out / 'pld.toml'}")
    if out.exists() and not force:
        raise ConfigError(
            f"{out}: is there already; choose another name with -o, or overwrite it with --force"
        )


def _write(out: Path, document: str) -> None:
    temporary = out.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            temporary.write_text(document, encoding="utf-8")
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise PldError(f"{out}: cannot be written: {exc.strerror or type(exc).__name__}") from exc


def _summary(guess: Guess, out: Path) -> Iterator[str]:
    yield f"{guess.file}: {guess.rows:,} rows"
    yield f"text: {' and '.join(map(repr, guess.text))}"
    counts = sorted(guess.labels.items(), key=lambda pair: -pair[1])
    shown = ", ".join(f"{label} {rows:,}" for label, rows in counts[:12]) + (
        ", …" if len(counts) > 12 else ""
    )
    yield f"label: {guess.label!r}, {len(counts)} labels ({shown})"
    yield f"id: {guess.id!r}" if guess.id is not None else "id: none; a hash of the content"
    yield (
        f"split: {guess.split!r}"
        if guess.split is not None
        else "split: none; {:.0%} train, {:.0%} validation, {:.0%} test".format(*FRACTIONS)
    )
    yield f"written: {out}; read it through, above all `description` and the meanings of the labels"
    yield f"next: pld compile {shlex.quote(str(out))}"
