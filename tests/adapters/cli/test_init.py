"""`pld init`: what it writes can be compiled without a change, whatever the names in it."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from adapters.cli.init import render, task_name, toml_string
from adapters.cli.main import app
from engine.config import Config, can_be_label
from engine.config_file import load_config, parse_config
from engine.errors import ConfigError
from engine.store import load_dataset
from engine.store.guessing import Guess
from tests.engine.store.test_guessing import DATA_SETS, save, table
from tests.support import corpus


def pld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(*arguments: str | Path) -> Config:
    """The configuration that `pld init` makes, loaded."""
    found = pld("init", *arguments)
    assert found.exit_code == 0, found.stderr
    return load_config("pld.toml")


def test_it_says_what_it_guessed_and_how_to_go_on(tmp_path: Path) -> None:
    save(tmp_path, table(240), "tickets.csv")
    found = pld("init", "tickets.csv")
    assert found.exit_code == 0
    assert found.stderr == ""
    assert found.stdout.splitlines() == [
        "tickets.csv: 240 rows",
        "text: 'text'",
        "label: 'label', 3 labels (praise 84, outage 83, billing 73)",
        "id: 'id'",
        "split: 'split'",
        "written: pld.toml; read it through, above all `description` and the meanings of the labels",
        "next: pld compile pld.toml",
    ]
    config = load_config("pld.toml")
    assert config.task.name == "tickets"
    assert config.task.description == "Tickets: decide which label fits this text."
    assert config.task.labels == {"billing": "", "outage": "", "praise": ""}
    assert config.data.file == ("tickets.csv",)
    assert (config.data.split, config.data.fractions) == ("split", None)
    assert pld("compile", "pld.toml", "--quiet").exit_code == 0
    assert (tmp_path / "runs/tickets/prompt.md").is_file()


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.tsv", "rows.jsonl"])
def test_without_split_and_id_it_compiles_too(name: str, tmp_path: Path) -> None:
    separator = "\t" if name.endswith("tsv") else ";"
    save(tmp_path, table(240, id="", split="", text="Message body", label="Topic"), name, separator)
    config = written(name)
    assert config.data.fractions == (0.7, 0.15, 0.15)
    assert (config.task.id, config.data.split) == (None, None)
    assert config.task.description == "Rows: decide which Topic fits this Message body."
    assert pld("compile", "pld.toml", "--quiet").exit_code == 0


def test_the_options_decide(tmp_path: Path) -> None:
    frame = table(240).with_columns(
        body=pl.col("text").str.reverse(), topic=pl.col("label").str.to_uppercase(), part=pl.col("split")
    )
    save(tmp_path, frame, "rows.parquet")
    arguments = ["--text", "body", "--label", "topic", "--id", "text", "--split", "part", "--name", "mine"]
    config = written("rows.parquet", *arguments)
    task = config.task
    assert (task.name, task.text, task.label, task.id) == ("mine", "body", "topic", "text")
    assert config.data.split == "part"
    assert config.labels == ("BILLING", "OUTAGE", "PRAISE")


def test_several_columns_become_a_list(tmp_path: Path) -> None:
    save(tmp_path, table(240, text="premise").with_columns(hypothesis=pl.lit("so it is")), "rows.csv")
    found = pld("init", "rows.csv")
    assert (found.exit_code, found.stderr) == (0, "")
    assert "text: 'premise' and 'hypothesis'" in found.stdout
    config = load_config("pld.toml")
    assert config.task.text == ("premise", "hypothesis")
    assert config.task.description == "Rows: decide which label fits this premise and hypothesis."
    assert load_dataset(config).rejected == ()
    config = written("rows.csv", "--force", "--text", "hypothesis", "--text", "premise")
    assert config.task.text == ("hypothesis", "premise")
    assert written("rows.csv", "--force", "--text", "premise").task.text == "premise"


def test_doubts_stand_on_stderr_and_in_a_comment(tmp_path: Path) -> None:
    frame = table(240, text="headline", label="a").with_columns(
        title=pl.col("headline"), b=pl.col("a"), id=pl.lit("same")
    )
    frame = frame.with_columns(split=pl.col("split").replace("validation", "test"))
    save(tmp_path, frame.with_columns(id=pl.lit("same")), "rows.csv")
    found = pld("init", "rows.csv")
    assert found.exit_code == 0
    document = (tmp_path / "pld.toml").read_text()
    expected = [
        "text: 'headline' is a guess, could also be 'title'; --text settles it",
        "label: 'a' is a guess, could also be 'b'; --label settles it",
        "split: 'split' cannot be used: no row says validation",
    ]
    assert [line.removeprefix("warning: ") for line in found.stderr.splitlines()] == expected
    for line in expected:
        assert f"# {line}" in document.splitlines()
    load_dataset(load_config("pld.toml"))


def test_rows_without_a_label_are_allowed_for(tmp_path: Path) -> None:
    frame = table(240).with_columns(label=pl.when(pl.int_range(pl.len()) % 3 > 0).then("label"))
    save(tmp_path, frame, "rows.csv")
    config = written("rows.csv")
    assert config.data.max_bad_share == pytest.approx(0.4)
    assert len(load_dataset(config).rejected) == 80


def test_few_rows_of_a_label_are_a_warning(tmp_path: Path) -> None:
    save(tmp_path, table(50), "rows.csv")
    found = pld("init", "rows.csv")
    assert "warning: labels with fewer than 20 rows can hardly be learnt or judged: billing 1" in found.stderr
    assert found.exit_code == 0


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    save(tmp_path, table(), "rows.csv")
    mine = tmp_path / "pld.toml"
    mine.write_text("mine")
    found = pld("init", "rows.csv")
    assert found.exit_code == 2
    assert found.stderr.startswith("pld: pld.toml: is there already")
    assert mine.read_text() == "mine"
    assert written("rows.csv", "--force").task.name == "rows"
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "pld.toml"}


def test_the_data_is_found_from_where_the_configuration_lies(tmp_path: Path) -> None:
    for folder in ("data", "configs", "other"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "data", table(), "rows.csv")
    (tmp_path / "link").symlink_to(tmp_path / "configs")
    for out, path in (("configs/a.toml", "../data/rows.csv"), ("link/b.toml", "../data/rows.csv")):
        found = pld("init", "data/rows.csv", "-o", out)
        assert found.exit_code == 0
        assert f"next: pld compile {out}" in found.stdout
        config = load_config(out)
        assert config.data.file == (path,)
        assert load_dataset(config).rows == 120


NAMES = [
    "naïve 'text'",
    'a "quoted" [column]',
    "back\\slash\t.",
    "日本語",
    "a = 1 # no comment",
    "\x7f\x1b[0m",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_column_name_and_label(name: str, tmp_path: Path) -> None:
    labels = {"billing": "a.b, c = [1] #", "outage": "日本\\語 🎉", "praise": "self-harm"}
    frame = table(240, text=name, id="").with_columns(pl.col("label").replace(labels))
    save(tmp_path, frame, "rows [1] (ä).ndjson")
    config = written("rows [1] (ä).ndjson", "--text", name)
    assert config.task.text == name
    assert set(config.labels) == set(labels.values())
    assert config.task.name == "rows-1-a"
    assert load_dataset(config).rows == 240


@given(st.text())
def test_toml_strings_come_back(text: str) -> None:
    assert tomllib.loads(f"a = {toml_string(text)}") == {"a": text}
    assert tomllib.loads(f"{toml_string(text)} = 1") == {text: 1}


def test_what_is_not_unicode_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match="not valid Unicode"):
        toml_string("half of an emoji: \ud83d")


@given(
    st.lists(st.text(min_size=1), min_size=4, max_size=4, unique=True),
    st.sets(st.text().filter(can_be_label), min_size=2, max_size=5),
    st.sets(st.sampled_from(["text", "label", "id", "split"])),
    st.floats(0, 1),
    st.booleans(),
)
def test_whatever_is_guessed_can_be_read_back(
    columns: list[str], labels: set[str], doubtful: set[str], bad_share: float, bare: bool
) -> None:
    text, label, row_id, split = columns
    guess = Guess(
        file=Path("rows.csv"),
        rows=100,
        text=(text,),
        label=label,
        id=None if bare else row_id,
        split=None if bare else split,
        labels=dict.fromkeys(sorted(labels), 30),
        doubts=dict.fromkeys(doubtful, f"could also be {columns!r}"),  # type: ignore[arg-type]
        warnings=("odd",),
        bad_share=bad_share,
    )
    config = parse_config(tomllib.loads(render(guess, "task", Path("pld.toml"))), base=Path())
    assert (config.task.text, config.task.label, config.task.id) == (text, label, guess.id)
    assert config.labels == tuple(sorted(labels))
    assert config.data.split == guess.split
    assert config.data.max_bad_share >= min(1, bad_share)


@given(st.text(max_size=30))
def test_task_names_are_valid(stem: str) -> None:
    name = task_name(Path("folder") / f"{stem.replace('/', '_')}.csv.gz")
    task = {"name": name, "description": "d", "labels": ["a", "b"]}
    assert (
        parse_config({"task": task, "data": {"file": "f.csv", "split": "s"}}, base=Path()).task.name == name
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [("tweets.parquet", "tweets"), ("My Tweets (v2).csv.gz", "My-Tweets-v2"), ("日本語.csv", "task")],
)
def test_task_names_come_from_the_file(file: str, name: str) -> None:
    assert task_name(Path(file)) == name


def as_format(name: str, suffix: str, source: Path, folder: Path) -> Path:
    """A real data set with all its columns; CSV knows no lists."""
    path = folder / f"{name}.{suffix}"
    if suffix == "parquet":
        shutil.copyfile(source / path.name, path)
        return path
    frame = pl.read_parquet(source / f"{name}.parquet")
    if suffix == "csv":
        nested = [column for column, kind in frame.schema.items() if kind.is_nested()]
        frame = frame.with_columns(pl.col(nested).list.join("|"))
    return save(folder, frame, path.name)


FORMATS = ["parquet", "csv", "ndjson"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", DATA_SETS)
def test_real_data_loads_as_it_is(name: str, suffix: str, pld_data: Path, tmp_path: Path) -> None:
    config = written(as_format(name, suffix, pld_data, tmp_path))
    dataset = load_dataset(config)
    assert config.task.name == name
    assert dataset.rejected == ()
    counts = pl.read_parquet(pld_data / f"{name}.parquet")["split"].value_counts()
    assert {split: len(dataset.split(split)) for split in counts["split"]} == dict(counts.iter_rows())  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        (name, suffix)
        for name in DATA_SETS
        for suffix in FORMATS
        # one compilation of this one takes as long as all others together
        if name != "hate_speech_offensive" or suffix == "parquet"
    ],
)
def test_real_data_compiles_as_it_is(name: str, suffix: str, pld_data: Path, tmp_path: Path) -> None:
    written(as_format(name, suffix, pld_data, tmp_path))
    found = pld("compile", "pld.toml", "--quiet")
    assert found.exit_code == 0, found.stderr
    assert (tmp_path / "runs" / name / "prompt.md").is_file()


def test_the_corpus_compiles_like_its_own_configuration(tmp_path: Path) -> None:
    """The written configuration asks for nothing else than the one by hand, meanings and wording aside."""
    mine = corpus.config(tmp_path / "mine")
    found = pld("init", tmp_path / "mine" / "data.parquet", "--name", "tickets")
    assert found.exit_code == 0
    config = load_config("pld.toml")
    assert (config.labels, config.task.id, config.data.split) == (mine.labels, mine.task.id, mine.data.split)
    assert load_dataset(config).sha256 == load_dataset(mine).sha256
