"""Guessing columns: whatever a file's columns are called and however it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.store.columns import Column, Role
from engine.store.guessing import Guess, guess_columns
from tests.support import corpus

DATA_SETS = [
    "contract_nli",
    "hate_speech_offensive",
    "hatecheck",
    "logiqa",
    "openai_moderation",
    "stereoset",
]


def table(n: int = 120, **renamed: str) -> pl.DataFrame:
    """The corpus with other column names; the name "" leaves a column out."""
    frame = pl.DataFrame(corpus.rows(n))
    frame = frame.drop(name for name, new in renamed.items() if not new)
    return frame.rename({name: new for name, new in renamed.items() if new})


def save(folder: Path, frame: pl.DataFrame, name: str = "rows.parquet", separator: str = ",") -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        frame.write_csv(path, separator=separator)
    else:
        frame.write_ndjson(path)
    return path


def roles(guess: Guess) -> tuple[str, str, str | None, str | None]:
    return " + ".join(guess.text), guess.label, guess.id, guess.split


@pytest.mark.parametrize("name", DATA_SETS)
def test_real_data(name: str, pld_data: Path) -> None:
    path = pld_data / f"{name}.parquet"
    frame = pl.read_parquet(path)
    guess = guess_columns(path)
    assert roles(guess) == ("text", "label", "id", "split")
    assert guess.rows == frame.height
    counts = frame["label"].value_counts()
    assert guess.labels == dict(sorted(zip(counts["label"], counts["count"], strict=True)))
    assert (guess.doubts, guess.warnings, guess.bad_share) == ({}, (), 0)


@pytest.mark.parametrize(
    ("file", "separator"),
    [
        ("a.csv", ","),
        ("a.csv", ";"),
        ("a.csv", "\t"),
        ("a.csv", "|"),
        ("a.tsv", "\t"),
        ("a.jsonl", ""),
        ("a.parquet", ""),
    ],
)
def test_every_format_and_separator(file: str, separator: str, tmp_path: Path) -> None:
    frame = table(text="Message body", label="Topic").with_columns(n=pl.int_range(pl.len()) % 3)
    guess = guess_columns(save(tmp_path, frame, file, separator))
    assert roles(guess) == ("Message body", "Topic", "id", "split")
    assert sum(guess.labels.values()) == guess.rows == 120


@pytest.mark.parametrize(
    ("renamed", "expected"),
    [
        ({"text": "tweet", "label": "class"}, ("tweet", "class", "id", "split")),
        ({"text": "commentText", "label": "gold_label"}, ("commentText", "gold_label", "id", "split")),
        ({"text": "spalte1", "label": "spalte2", "id": "spalte3"}, ("spalte1", "spalte2", None, "split")),
        ({"text": "x", "label": "y", "id": "", "split": ""}, ("x", "y", None, None)),
        ({"id": "row_id", "split": "partition"}, ("text", "label", "row_id", "partition")),
        ({"split": "teil"}, ("text", "label", "id", "teil")),
    ],
)
def test_names_and_values_decide(
    renamed: dict[str, str], expected: tuple[str | None, ...], tmp_path: Path
) -> None:
    assert roles(guess_columns(save(tmp_path, table(**renamed)))) == expected


PAIRS = [
    ("premise", "hypothesis"),
    ("Sentence1", "sentence_2"),
    ("question1", "question2"),
    ("text_1", "text_2"),
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("file", ["a.parquet", "a.csv", "a.ndjson"])
def test_two_columns_that_are_one_input(pair: tuple[str, str], file: str, tmp_path: Path) -> None:
    first, second = pair
    frame = table(text=first).with_columns((pl.lit("so ") + pl.col("label")).alias(second))
    guess = guess_columns(save(tmp_path, frame, file))
    assert guess.text == pair
    assert roles(guess)[1:] == ("label", "id", "split")
    assert guess.doubts == {}


def test_a_pair_is_no_input_where_a_text_is_or_half_of_it_is_missing(tmp_path: Path) -> None:
    frame = table(text="premise").with_columns(hypothesis=pl.col("premise").str.reverse())
    whole = frame.with_columns(text=pl.col("premise") + pl.col("hypothesis"))
    assert guess_columns(save(tmp_path, whole)).text == ("text",)
    numbers = frame.with_columns(hypothesis=pl.int_range(pl.len()) / 7)
    assert guess_columns(save(tmp_path, numbers)).text == ("premise",)


def test_several_columns_that_the_user_names(tmp_path: Path) -> None:
    frame = table(text="b").with_columns(a=pl.when(pl.col("split") == "test").then("b"), n=pl.col("b").hash())
    path = save(tmp_path, frame)
    guess = guess_columns(path, {"text": ["b", "a", "n"]})
    assert guess.text == ("b", "a", "n")
    assert guess.bad_share == 0, "one that is filled will do"
    with pytest.raises(DataError, match="no usable column 'c'"):
        guess_columns(path, {"text": ["b", "c"]})
    with pytest.raises(DataError, match="'b' is named for more than one"):
        guess_columns(path, {"text": ["b", "b"]})
    odd = save(tmp_path, frame.rename({"a": "a:"}))
    with pytest.raises(DataError, match="column 'a:' cannot name a field in a prompt"):
        guess_columns(odd, {"text": ["b", "a:"]})


def test_what_the_user_names_is_taken(tmp_path: Path) -> None:
    frame = table().with_columns(other=pl.col("text").str.reverse(), topic=pl.col("label").str.slice(0, 1))
    path = save(tmp_path, frame.rename({"id": "rowname"}))
    named: dict[Role, str] = {"text": "other", "label": "topic", "id": "rowname"}
    guess = guess_columns(path, named)
    assert roles(guess) == ("other", "topic", "rowname", "split")
    assert set(guess.labels) == {"b", "o", "p"}


def test_an_uncertain_guess_says_so_and_names_the_others(tmp_path: Path) -> None:
    frame = table(text="headline", label="a").with_columns(
        title=pl.col("headline").str.to_uppercase(), b=pl.col("a").str.to_uppercase()
    )
    doubts = guess_columns(save(tmp_path, frame)).doubts
    assert "'title'" in doubts["text"]
    assert "'b'" in doubts["label"]
    assert "id" not in doubts


def test_other_columns_do_not_disturb(tmp_path: Path) -> None:
    """Lists, structures, bytes, dates, empty columns, numbers, an index without a name."""
    frame = table(40).with_columns(
        pl.int_range(pl.len()).alias(""),
        pl.lit([1, 2]).alias("list"),
        pl.struct(a="id").alias("struct"),
        pl.lit(b"\x00").alias("bytes"),
        pl.lit("2026-01-01").str.to_date().alias("date"),
        pl.lit(None).alias("nothing"),
        pl.int_range(pl.len()).alias("score") / 7,
    )
    assert roles(guess_columns(save(tmp_path, frame))) == ("text", "label", "id", "split")


def test_a_file_sorted_by_label_and_by_split(tmp_path: Path) -> None:
    """The first rows show a single label and a single split; the whole file has them all."""
    frame = table(9000, label="colour").sort("split", "colour")
    for name in ("sorted.ndjson", "sorted.parquet"):
        guess = guess_columns(save(tmp_path, frame, name))
        assert roles(guess) == ("text", "colour", "id", "split")
        assert len(guess.labels) == 3


def test_ids_that_repeat_after_the_sample_are_none(tmp_path: Path) -> None:
    frame = table(9000)
    frame = frame.with_columns(
        id=pl.when(pl.int_range(pl.len()) < 8000).then("id").otherwise(pl.lit("r0000"))
    )
    path = save(tmp_path, frame, "rows.csv")
    guess = guess_columns(path)
    assert guess.id is None
    assert guess.doubts["id"] == "'id' cannot be used: 1,000 rows repeat the id of another"
    with pytest.raises(DataError, match=r"column 'id' \(--id\) cannot be used: 1,000 rows repeat"):
        guess_columns(path, {"id": "id"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"validation": "test"}, "no row says validation"),
        ({"test": "holdout"}, "30 rows say neither train, validation nor test"),
    ],
)
def test_a_split_column_that_does_not_serve(change: dict[str, str], problem: str, tmp_path: Path) -> None:
    # hidden from the sample, which finds all three
    frame = pl.concat([table(8000), table(120).with_columns(pl.col("split").replace(change))])
    if problem.startswith("no row"):
        frame = frame.with_columns(pl.col("split").replace(change))
    path = save(tmp_path, frame.drop("id"), "rows.csv")
    guess = guess_columns(path)
    assert guess.split is None
    assert guess.doubts["split"] == f"'split' cannot be used: {problem}"
    with pytest.raises(DataError, match=rf"\(--split\) cannot be used: {problem}"):
        guess_columns(path, {"split": "split"})


def test_a_split_whose_training_rows_have_one_label(tmp_path: Path) -> None:
    frame = table().with_columns(
        label=pl.when(pl.col("split") == "train").then(pl.lit("praise")).otherwise("label")
    )
    guess = guess_columns(save(tmp_path, frame))
    assert guess.split is None
    assert "its training rows have a single label" in guess.doubts["split"]


def test_numbers_and_truth_values_are_labels(tmp_path: Path) -> None:
    frame = table(label="").with_columns(label=pl.int_range(pl.len()) % 2)
    found = guess_columns(save(tmp_path, frame))
    assert found.labels == {"0": 60, "1": 60}
    assert "the labels are numbers" in found.warnings[0]
    found = guess_columns(save(tmp_path, frame.with_columns(pl.col("label") == 1)))
    assert found.labels == {"false": 60, "true": 60}
    both = frame.with_columns(label_text=pl.lit("is ") + pl.col("label").cast(pl.String))
    assert "could also be 'label_text'" in guess_columns(save(tmp_path, both)).doubts["label"]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    frame = table().with_columns(label=pl.when(pl.int_range(pl.len()) < 90).then("label"))
    guess = guess_columns(save(tmp_path, frame))
    assert guess.bad_share == pytest.approx(0.25)
    assert sum(guess.labels.values()) == 90


def test_rows_without_a_text_are_counted(tmp_path: Path) -> None:
    frame = table().with_columns(text=pl.when(pl.int_range(pl.len()) < 90).then("text"))
    assert guess_columns(save(tmp_path, frame)).bad_share == pytest.approx(0.25)


def test_columns_without_a_name_of_their_own_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = table().write_csv().splitlines()
    path.write_text("\n".join([f"{lines[0]},,x,x", *(f"{line},1,2,3" for line in lines[1:])]))
    assert roles(guess_columns(path)) == ("text", "label", "id", "split")
    with pytest.raises(DataError, match="column 'x' appears twice in the header"):
        guess_columns(path, {"label": "x"})


def test_columns_of_one_value_hide_no_labels(tmp_path: Path) -> None:
    frame = table(label="colour").with_columns(pl.lit("same").alias(name) for name in ("a", "b", "c", "d"))
    guess = guess_columns(save(tmp_path, frame))
    assert guess.label == "colour"


def test_few_rows_of_a_label_are_a_warning(tmp_path: Path) -> None:
    frame = table().with_columns(
        label=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("rare")).otherwise("label")
    )
    assert guess_columns(save(tmp_path, frame)).warnings == (
        "labels with fewer than 20 rows can hardly be learnt or judged: rare 3",
    )


def errors() -> list[tuple[str, pl.DataFrame, dict[Role, str], str]]:
    """Name of the file, rows, columns that are named, what the error says."""
    whole = table()
    numbers = pl.DataFrame({"a": range(90), "b": [i % 3 for i in range(90)]})
    quoted = whole.with_columns(pl.col("label").replace("praise", 'so "good"'))
    return [
        ("a.parquet", numbers, {}, "no column holds texts; name it with --text, one of 'a', 'b'"),
        ("a.csv", numbers, {}, "no column holds texts; name it with --text, one of 'a', 'b'"),
        (
            "a.parquet",
            whole.select("id", "text"),
            {},
            "no column holds labels .* with --label, one of 'id', 'text'",
        ),
        ("a.csv", whole.with_columns(label=pl.lit("one")), {}, "no column holds labels .at least two"),
        ("a.csv", whole, {"label": "lable"}, "no usable column 'lable' .--label.; did you mean 'label'"),
        ("a.csv", whole, {"label": "text", "text": "text"}, "'text' is named for more than one of"),
        ("a.csv", table(3000), {"label": "text", "text": "id"}, "has more than 1000 different values"),
        ("a.csv", whole.with_columns(one=pl.lit("x")), {"label": "one"}, "the same value in every row"),
        ("a.csv", whole.with_columns(no=pl.lit(None)), {"label": "no"}, "'no' .--label. is empty"),
        ("a.csv", whole.with_columns(n=1), {"text": "n"}, "'n' .--text. holds numbers, not texts"),
        ("a.csv", quoted, {}, r"1 of the 3 labels in column 'label' cannot be used: 'so \"good\"'"),
        ("a.csv", table(9, split=""), {}, "too few rows to divide .* the commonest label has"),
        ("a.csv", whole.clear(), {}, "has no row that can be read"),
    ]


@pytest.mark.parametrize(("name", "frame", "named", "words"), errors())
def test_errors_say_what_to_do(
    name: str, frame: pl.DataFrame, named: dict[Role, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words) as raised:
        guess_columns(save(tmp_path, frame, name), named)
    assert "\n" not in str(raised.value)
    assert "ticket" not in str(raised.value)


def test_a_file_without_header_shows_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    table().select("label", "text").write_csv(path, include_header=False)
    with pytest.raises(DataError) as raised:
        guess_columns(path)
    assert "ticket" not in str(raised.value)
    assert "first line" in str(raised.value)


def test_several_files_and_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path, table(), "a.csv")
    assert guess_columns(tmp_path / "*.csv").file == tmp_path / "a.csv"
    save(tmp_path, table(), "b.csv")
    with pytest.raises(DataError, match="is 2 files; name one here"):
        guess_columns(tmp_path / "*.csv")
    with pytest.raises(DataError, match="is a folder"):
        guess_columns(tmp_path)


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.lists(st.integers(), max_size=2),
)


@given(st.lists(_VALUES, max_size=40), st.text(min_size=1, max_size=12))
def test_a_look_at_any_values(values: list[Any], name: str) -> None:
    column = Column.look(name, values)
    for share in (column.filled, column.textual, column.words, column.prose):
        assert 0 <= share <= 1
    assert column.distinct <= column.values <= len(values)
    assert all(0 <= column.named(role) <= 2 for role in ("text", "label", "id", "split"))


def test_a_broken_line_spoils_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    lines = [json.dumps(row) for row in corpus.rows(60)]
    path.write_text("\n".join([*lines[:30], "{broken", *lines[30:]]))
    guess = guess_columns(path)
    assert guess.rows == 61
    assert guess.bad_share == pytest.approx(1 / 61)
