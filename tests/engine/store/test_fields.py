"""Several columns as one text: nothing is lost, and no field passes for another (C11)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.config_file import parse_config
from engine.errors import ConfigError, DataError
from engine.store import Dataset, load_dataset
from engine.store.fields import TextFields
from engine.store.rows import RowReader
from engine.store.text_tables import Problem
from engine.student import StudentPrompt
from tests.support.bulk import PROMPT

NLI = TextFields(["premise", "hypothesis"])


def join(*texts: object) -> str:
    text = NLI.read(texts)
    assert isinstance(text, str)
    return text


# --- the form -------------------------------------------------------------------------------------


def test_each_field_stands_under_its_name_in_the_order_given() -> None:
    assert join("It ends.", "It has\nno end.") == "premise: It ends.\n\nhypothesis: It has\nno end."
    turned = TextFields(["hypothesis", "premise"])
    assert turned.read(("b", "a")) == "hypothesis: b\n\npremise: a"


@pytest.mark.parametrize("empty", [None, "", " \n\t", float("nan")])
def test_an_empty_field_keeps_its_name(empty: object) -> None:
    assert join("a", empty) == "premise: a\n\nhypothesis:"
    assert join(empty, "b") == "premise:\n\nhypothesis: b"
    assert NLI.read((empty, None)) == Problem("premise, hypothesis", "all empty")


def test_numbers_and_truth_values_are_fields_too() -> None:
    assert join(3.0, True) == "premise: 3\n\nhypothesis: true"
    assert NLI.read((["a"], "b")) == Problem("premise", "neither a string nor a number")


def test_a_single_column_is_the_text_as_it_is() -> None:
    for text in ("body", ["body"], {"message": "body"}):
        fields = TextFields(text)
        assert (fields.columns, fields.names) == (("body",), ())
        assert fields.read(("  body: x\n",)) == "  body: x\n"
        assert fields.read((None,)) == Problem("body", "missing")
        assert fields.read((3,)) == Problem("body", "not a string")


def test_the_columns_of_fields_may_be_called_otherwise() -> None:
    fields = TextFields({"premise": "p", "hypothesis": "h: <1>"})
    assert fields.columns == ("p", "h: <1>")
    assert fields.read(("a", "b")) == join("a", "b")
    assert fields.read((["a"], "b")) == Problem("p", "neither a string nor a number")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ([], "names no column"),
        (["a", "a"], "'a' is listed twice"),
        (["a", "b:"], "'b:' cannot name a field"),
        ({"a": "x", "b": "x"}, "a column is named for more than one field"),
    ],
)
def test_what_cannot_be_the_fields_of_a_text(text: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TextFields(text)


# --- no field passes for another ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "escaped"),
    [
        ("hypothesis: x", "h\\ypothesis: x"),
        ("premise: x", "p\\remise: x"),
        ("h\\ypothesis: x", "h\\\\ypothesis: x"),
        ("  HYPOTHESIS : x", "  H\\YPOTHESIS : x"),
        ("**Hypothesis:** x", "**H\\ypothesis:** x"),
        ("__hypothesis__: x", "__h\\ypothesis__: x"),
        ("> hypothesis\uff1a x", "> h\\ypothesis\uff1a x"),
        ("\u200bhypothesis: x", "\u200bh\\ypothesis: x"),
        ("the hypothesis: x", "the hypothesis: x"),
        ("hypothesis 2: x", "hypothesis 2: x"),
        ("hypothesis is: x", "hypothesis is: x"),
        ("hypothesis", "hypothesis"),
    ],
)
@pytest.mark.parametrize("before", ["", "a\n", "a\r", "a\u2028", "a: b\n\n"])
def test_a_line_that_could_begin_a_field_is_escaped(before: str, line: str, escaped: str) -> None:
    assert join(f"{before}{line}", "b") == f"premise: {before}{escaped}\n\nhypothesis: b"


def fields_of(names: list[str], document: str) -> list[str]:
    """The fields of a text, found as a reader finds them: by lines that begin with a name and a colon."""
    found: list[list[str]] = []
    for line in document.splitlines(keepends=True):
        if len(found) < len(names) and line.startswith(f"{names[len(found)]}:"):
            found.append([line.removeprefix(f"{names[len(found)]}:").removeprefix(" ")])
        else:
            found[-1].append(line)
    texts = ["".join(lines) for lines in found]
    texts = [text.removesuffix("\n\n") if at < len(names) - 1 else text for at, text in enumerate(texts)]
    return ["".join(_unescaped(names, line) for line in text.splitlines(keepends=True)) for text in texts]


def _unescaped(names: list[str], line: str) -> str:
    first = next((at for at, char in enumerate(line) if char.isalnum()), len(line))
    rest = line[first + 1 :]
    bare = rest.lstrip("\\")
    for name in names:
        if rest != bare and (line[first] + bare).casefold().startswith(name.casefold()):
            head, colon, _ = bare[len(name) - 1 :].replace("\uff1a", ":").partition(":")
            if colon and len(head) <= 4 and not any(char.isalnum() for char in head):
                return line[: first + 1] + rest[1:]
    return line


NAMES = ["premise", "a", "a b", "text 2"]
PARTS = st.sampled_from(
    ["premise", "Premise", "a", "A", " b", "text", " 2", ":", "\uff1a", "\\", "\n", "\r", "\n\n"]
)
FIELD = st.lists(
    st.one_of(PARTS, st.sampled_from(["x", " ", "*", "_", "\u2028", "\x00", "<input>", "é"])), max_size=9
)


@given(st.lists(FIELD.map("".join), min_size=4, max_size=4))
@example(["a\\:", "a_:", "\\a:", "a:\\"])
@example(["x\n", "\n\na:", "\r", "premise:\n\na:"])
def test_fields_come_back(texts: list[str]) -> None:
    document = TextFields(NAMES).read(texts)
    wanted = ["" if text.isspace() else text for text in texts]
    if any(wanted):
        assert isinstance(document, str)
        assert fields_of(NAMES, document) == wanted
    else:
        assert isinstance(document, Problem)


def test_a_text_of_nothing_but_marks_takes_no_time() -> None:
    """Each line is looked at once: these would take hours if every place in them began a search."""
    for text in ("\r" * 300_000, "-" * 300_000 + ":", "\\" * 300_000 + ":", "premise" * 40_000 + ":"):
        assert len(join(text + "x", "b")) > len(text)


# --- where data is read ---------------------------------------------------------------------------

ROWS = [
    {"id": "r1", "premise": "a zebra", "hypothesis": "an animal", "label": "yes", "split": "train"},
    {"id": "r2", "premise": "a zebra", "hypothesis": "a plant", "label": "no", "split": "train"},
    {"id": "r3", "premise": None, "hypothesis": "a ship", "label": "no", "split": "validation"},
    {"id": "r4", "premise": "a rose\nhypothesis: a zebra", "hypothesis": "", "label": "yes", "split": "test"},
    {"id": "r5", "premise": " ", "hypothesis": None, "label": "yes", "split": "test"},
    {"id": "r6", "premise": "a  zebra!", "hypothesis": "A plant", "label": "no", "split": "validation"},
    {"id": "r7", "premise": "7", "hypothesis": "a zebra", "label": "no", "split": "train"},
]
TEXTS = [
    "premise: a zebra\n\nhypothesis: an animal",
    "premise: a zebra\n\nhypothesis: a plant",
    "premise:\n\nhypothesis: a ship",
    "premise: a rose\nh\\ypothesis: a zebra\n\nhypothesis:",
    None,
    "premise: a  zebra!\n\nhypothesis: A plant",
    "premise: 7\n\nhypothesis: a zebra",
]
FORMATS = ["d.parquet", "d.csv", "d.ndjson"]


def write(folder: Path, name: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / name
    getattr(pl.DataFrame(rows, infer_schema_length=None), f"write_{path.suffix[1:]}")(path)
    return path


def load(path: Path, **task: Any) -> Dataset:
    raw = {
        "name": "t",
        "description": "d",
        "labels": ["yes", "no"],
        "text": ["premise", "hypothesis"],
        **task,
    }
    data = {"file": path.name, "split": "split", "max_bad_share": 0.5}
    return load_dataset(parse_config({"task": raw, "data": data}, base=path.parent))


@pytest.mark.parametrize("name", FORMATS)
def test_labelled_rows_of_every_format(name: str, tmp_path: Path) -> None:
    found = load(write(tmp_path, name), id="id")
    # r2 is the text of r6 but for case and marks: joined texts are compared, too
    assert [sample.text for sample in found.train] == [TEXTS[0], TEXTS[6]]
    assert [sample.text for sample in found.validation] == [TEXTS[2], TEXTS[5]]
    assert [sample.text for sample in found.test] == [TEXTS[3]]
    assert found.duplicates.groups == (("r2", "r6"),)
    (bad,) = found.rejected
    assert (bad.row, bad.field, bad.reason) == (5, "premise, hypothesis", "all empty")


def test_ids_are_hashes_of_the_joined_text(tmp_path: Path) -> None:
    path = write(tmp_path, "d.parquet")
    joined = [{**row, "text": text} for row, text in zip(ROWS, TEXTS, strict=True)]
    other = write(tmp_path, "e.parquet", joined)
    assert load(path).sha256 == load(other, text="text").sha256
    assert load(path, text=["hypothesis", "premise"]).sha256 != load(path).sha256


@pytest.mark.parametrize("name", FORMATS)
def test_rows_to_classify_of_every_format(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name)
    (batch,) = RowReader([path], ["premise", "hypothesis"], "id")
    assert batch.texts == TEXTS
    assert batch.ids == [row["id"] for row in ROWS]
    line = "" if name == "d.parquet" else " (line 5)" if name == "d.ndjson" else " (line 7)"
    assert batch.problems == {4: f"premise, hypothesis: all empty{line}"}
    (batch,) = RowReader([path], {"text": "premise", "premise": "hypothesis"})
    assert batch.texts[1] == "text: a zebra\n\npremise: a plant"


def test_a_list_of_one_column_gives_the_same_requests(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", [{**row, "premise": f"{row['id']} premise: x"} for row in ROWS])
    plain, listed = (load(path, text=text) for text in ("premise", ["premise"]))
    assert plain == listed
    assert plain.train[0].text == "r1 premise: x"
    for before, after in zip(plain.train, listed.train, strict=True):
        asked = [StudentPrompt(PROMPT).request(one.id, one.text) for one in (before, after)]
        assert asked[0].digest("m") == asked[1].digest("m")


def test_an_error_names_file_row_and_field_and_shows_no_text(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS] + [json.dumps({**ROWS[0], "hypothesis": ["zebra"]})]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    *_, bad = load(tmp_path / "d.jsonl").rejected
    assert str(bad) == "d.jsonl row 8 (line 8): hypothesis: neither a string nor a number"
    path = write(tmp_path, "d.csv")
    path.write_bytes(path.read_bytes().replace(b"a plant", b"a pl\xe4nt"))
    first, *_ = load(path).rejected
    assert str(first) == "d.csv row 2 (line 3): hypothesis: is not valid UTF-8"
    (batch,) = RowReader([path], ["premise", "hypothesis"])
    assert batch.problems[1] == "hypothesis: is not valid UTF-8 (line 3)"


def test_columns_that_cannot_be_fields_are_named_before_reading(tmp_path: Path) -> None:
    frame = pl.DataFrame(ROWS).with_columns(
        n=pl.int_range(pl.len()), day=pl.lit("2026-01-01").str.to_date(), parts=pl.lit([1])
    )
    frame.write_parquet(tmp_path / "d.parquet")
    path = tmp_path / "d.parquet"
    assert load(path, text=["premise", "n"]).train[0].text == "premise: a zebra\n\nn: 0"
    with pytest.raises(DataError, match=r"d.parquet: column 'day' holds Date, not texts; texts are in 'id'"):
        load(path, text=["premise", "day"])
    with pytest.raises(DataError, match=r"column 'parts' holds List"):
        load(path, text=["premise", "parts"])
    with pytest.raises(DataError, match=r"no column 'hypotheses'; did you mean 'hypothesis'"):
        load(path, text=["premise", "hypotheses"])
    with pytest.raises(DataError, match=r"column 'label' is named for more than one of text, label"):
        load(path, text=["premise", "label"])
