"""A task whose input stands in several columns: every command, on small and on real data."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from adapters.cli.main import app
from bench.quality import Job, write_job
from bench.subprocesses import run_pld
from engine.store.fields import TextFields
from tests.support import corpus

FIELDS = TextFields(["subject", "body"])


def pld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def figures(*arguments: str | Path) -> dict[str, object]:
    """What a command prints with `--json`."""
    found = pld(*arguments, "--json", "--quiet")
    assert found.exit_code == 0, found.stderr
    document: dict[str, object] = json.loads(found.stdout)
    return document


def two_columns() -> pl.DataFrame:
    """The corpus with its texts cut in two, `subject` and `body`; some rows lack one."""
    frame = pl.DataFrame(corpus.rows(120)).with_columns(words=pl.col("text").str.split(" "))
    cut = pl.col("words").list
    subject = pl.when(pl.int_range(pl.len()) % 9 > 0).then(cut.head(3).list.join(" "))
    return frame.with_columns(subject=subject, body=cut.tail(-3).list.join(" ")).drop("text", "words")


def write(folder: Path, frame: pl.DataFrame, text: str) -> Path:
    """The corpus' configuration over other rows, with another `task.text`."""
    config = corpus.write(folder)
    frame.write_parquet(folder / "data.parquet")
    document = config.read_text().replace('id = "id"', f'id = "id"\ntext = {text}')
    config.write_text(document.replace("max_rounds = 3", "max_rounds = 0"))
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the commands made from two columns."""
    made = tmp_path_factory.mktemp("fields")
    figures("compile", write(made, two_columns(), '["subject", "body"]'))
    return made


def test_it_is_compiled_evaluated_and_estimated_as_any_other(folder: Path) -> None:
    found = figures("evaluate", folder / "runs" / "tickets")
    assert found["verdict"]["decision"] == "gain"  # type: ignore[index]
    assert figures("estimate", folder / "pld.toml")["stages"]
    document = json.loads((folder / "runs" / "tickets" / "manifest.json").read_bytes())
    assert document["config"]["task"]["text"] == ["subject", "body"]


def test_the_prompt_is_that_of_texts_joined_by_hand(folder: Path, tmp_path: Path) -> None:
    frame = two_columns()
    joined = [FIELDS.read(row) for row in frame.select("subject", "body").iter_rows()]
    config = write(tmp_path, frame.with_columns(message=pl.Series(joined)), '"message"')
    figures("compile", config)
    by_hand, from_columns = (one / "runs" / "tickets" / "prompt.json" for one in (tmp_path, folder))
    assert by_hand.read_bytes() == from_columns.read_bytes()


def test_a_list_of_one_column_asks_for_nothing_anew(tmp_path: Path) -> None:
    rows = pl.DataFrame(corpus.rows(120))
    first = figures("compile", write(tmp_path, rows, '"text"'))
    again = figures("compile", write(tmp_path, rows, '["text"]'))
    assert first["requests"]["sent"] > 0  # type: ignore[index]
    assert again["requests"]["sent"] == 0  # type: ignore[index]
    assert again["prompt_sha256"] == first["prompt_sha256"]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
def test_rows_are_classified_whatever_their_columns_are_called(
    folder: Path, suffix: str, tmp_path: Path
) -> None:
    run = folder / "runs" / "tickets"
    labels = []
    for names in ({}, {"subject": "Betreff", "body": "Text: <1>"}):
        out = tmp_path / f"out-{len(names)}"
        source = tmp_path / f"rows-{len(names)}.{suffix}"
        getattr(two_columns().rename(names), f"write_{suffix}")(source)
        texts = [word for column in names.values() for word in ("--text", column)]
        assert figures("classify", run, source, "-o", out, *texts)["classified"] == 120
        labels.append(pl.read_parquet(out / "part-00000.parquet")["label"])
    assert labels[0].equals(labels[1])
    assert labels[0].n_unique() == 3


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (["body"], "compiled from columns 'subject', 'body': give --text 2 times, in this order"),
        (["subject", "body", "id"], "compiled from columns 'subject', 'body': give --text 2 times"),
        (["subject", "bdy"], "data.parquet: no column 'bdy'; did you mean 'body'?"),
        (["body", "body"], "a column is named for more than one field"),
    ],
)
def test_mistakes_get_one_line(folder: Path, named: list[str], words: str, tmp_path: Path) -> None:
    texts = [word for column in named for word in ("--text", column)]
    run = folder / "runs" / "tickets"
    found = pld("classify", run, folder / "data.parquet", "-o", tmp_path / "out", *texts)
    assert found.exit_code in (1, 2)
    assert words in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_columns_are_worth_as_much_as_one_on_real_data(pld_data: Path, tmp_path: Path) -> None:
    scores = {}
    for name, text in (("one", '"text"'), ("two", '["context", "sentence"]')):
        folder = tmp_path / name
        folder.mkdir()
        config = write_job(Job("stereoset", 1, shuffled=False), pld_data, folder)
        config.write_text(config.read_text().replace('id = "id"', f'id = "id"\ntext = {text}'))
        run_pld(["compile", config, "--run", folder / "run"], folder)
        found, _ = run_pld(["evaluate", folder / "run"], folder)
        assert found["verdict"]["decision"] == "gain"
        scores[name] = found["compiled"]["macro_f1"]
    assert abs(scores["one"] - scores["two"]) <= 0.05, scores
