"""Loading labelled data: every format, every way to divide it, every mistake a user can make."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.config import Config
from engine.config_file import parse_config
from engine.errors import DataError
from engine.store.datasets import Dataset, load_dataset
from engine.types import SPLITS

PRIVATE = "zebra unicorn"  # stands in every text; must stand in no message
SPLIT_OF = ("train", "train", "validation", "test")


def config(folder: Path, data: Mapping[str, Any], **task: Any) -> Config:
    defaults = {"name": "t", "description": "d", "labels": ["ham", "spam"], "id": "id"}
    raw_task = {key: value for key, value in {**defaults, **task}.items() if value is not None}
    return parse_config({"task": raw_task, "data": dict(data)}, base=folder)


def table(n: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{i:03}",
            "text": f"{PRIVATE} row {i}",
            "label": ("ham", "spam")[i // 4 % 2],
            "split": SPLIT_OF[i % 4],
        }
        for i in range(n)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pl.DataFrame(rows)
    kind = path.name.split(".", 1)[1]
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "csv":
        frame.write_csv(path)
    elif kind == "tsv":
        frame.write_csv(path, separator="\t")
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    return path


def load(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Dataset:
    write(folder / "d.jsonl", rows)
    return load_dataset(config(folder, {"file": "d.jsonl", "split": "split", **data}))


@pytest.mark.parametrize(
    "name", ["d.parquet", "d.csv", "d.tsv", "d.ndjson", "d.jsonl", "d.jsonl.gz", "d.json"]
)
def test_every_format_gives_the_same_data_set(tmp_path: Path, name: str) -> None:
    reference = load(tmp_path, table())
    write(tmp_path / name, table())
    data = load_dataset(config(tmp_path, {"file": name, "split": "split"}))
    assert (data.train, data.validation, data.test) == (reference.train, reference.validation, reference.test)
    assert data.sha256 == reference.sha256
    assert [len(data.split(split)) for split in SPLITS] == [20, 10, 10]
    assert [sample.id for sample in data.train] == sorted(sample.id for sample in data.train)
    assert data.files[0].path == name
    assert data.files[0].size == (tmp_path / name).stat().st_size
    assert data.rejected == ()
    assert data.notices == ()


def test_the_content_hash_ignores_layout_and_sees_every_change(tmp_path: Path) -> None:
    rows = table()
    reference = load(tmp_path, rows).sha256
    assert load(tmp_path, rows[::-1]).sha256 == reference
    for field, value in (("text", "another"), ("label", "spam"), ("id", "zz"), ("split", "test")):
        assert load(tmp_path, [{**rows[0], field: value}, *rows[1:]]).sha256 != reference


def test_several_files_globs_and_own_files_for_each_split(tmp_path: Path) -> None:
    rows = table()
    reference = load(tmp_path, rows)
    write(tmp_path / "part-1.csv", rows[:17])
    write(tmp_path / "part-2.csv", rows[17:])
    for file in ("part-*.csv", ["part-2.csv", "part-1.csv"], ["part-1.csv", "part-*.csv"]):
        data = load_dataset(config(tmp_path, {"file": file, "split": "split"}))
        assert data.sha256 == reference.sha256
        assert len(data.files) == 2
    for split in SPLITS:
        write(tmp_path / f"{split}.parquet", [row for row in rows if row["split"] == split])
    own: dict[str, Any] = {split: f"{split}.parquet" for split in SPLITS}
    assert load_dataset(config(tmp_path, own)).sha256 == reference.sha256
    del own["test"]
    assert load_dataset(config(tmp_path, own)).test == ()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_csv_is_found_by_its_columns(tmp_path: Path, separator: str) -> None:
    pl.DataFrame(table()).write_csv(tmp_path / "d.csv", separator=separator, quote_style="always")
    data = load_dataset(config(tmp_path, {"file": "d.csv", "split": "split"}))
    assert data.sha256 == load(tmp_path, table()).sha256


def test_labels_and_ids_that_are_numbers_are_compared_as_strings(tmp_path: Path) -> None:
    rows = [
        {"id": i, "text": f"text {i}", "label": i // 4 % 2, "split": SPLIT_OF[i % 4], "f": i // 4 % 2 + 0.0,
         "b": i // 4 % 2 == 1} for i in range(24)
    ]  # fmt: skip
    for name in ("n.parquet", "n.csv", "n.jsonl"):
        write(tmp_path / name, rows)
        for label, labels in (("label", ["0", "1"]), ("f", ["0", "1"]), ("b", ["false", "true"])):
            if (name, label) == ("n.csv", "f"):
                continue  # a CSV has text only: "1.0" is "1.0"
            data = load_dataset(
                config(tmp_path, {"file": name, "split": "split"}, label=label, labels=labels)
            )
            assert {sample.label for sample in data.train} == set(labels)
            assert data.train[0].id == "0"


def test_other_names_for_splits_are_accepted_and_said(tmp_path: Path) -> None:
    for name in ("valid", "val", "dev", "Validation"):
        rows = [{**row, "split": name if row["split"] == "validation" else row["split"]} for row in table()]
        data = load(tmp_path, rows)
        assert len(data.validation) == 10
        assert any(repr(name) in notice.text for notice in data.notices)


def test_bad_rows_are_named_counted_and_set_aside(tmp_path: Path) -> None:
    good = table(200)
    lines = [json.dumps(row) for row in good]
    bad = {
        3: ('{"id": "x", "text": "cut', "line", "is not valid JSON"),
        10: ('["a"]', "line", "is not a JSON object"),
        20: (json.dumps({**good[0], "id": "b1", "text": " \n"}), "text", "empty"),
        30: (json.dumps({**good[0], "id": "b2", "text": None}), "text", "missing"),
        40: (json.dumps({**good[0], "id": "b3", "text": 5}), "text", "not a string"),
        50: (json.dumps({**good[0], "id": "b4", "label": "spm"}), "label", "did you mean 'spam'?"),
        60: (json.dumps({**good[0], "id": None}), "id", "missing"),
        70: (json.dumps({**good[0], "id": "r005"}), "id", "duplicate id 'r005', first in row 7"),
        80: (json.dumps({**good[0], "id": "b5", "split": "tset"}), "split", "unknown split 'tset'"),
    }
    for index, (line, _, _) in bad.items():
        lines.insert(index, line)
    # blank lines shift line numbers, not row numbers
    (tmp_path / "d.jsonl").write_text("\n\n" + "\n".join(lines))
    data = load_dataset(config(tmp_path, {"file": "d.jsonl", "split": "split"}))
    assert data.rows == 209
    found = {rejected.row - 1: rejected for rejected in data.rejected}
    assert found.keys() == bad.keys()
    for index, (_, field, reason) in bad.items():
        assert found[index].field == field
        assert reason in found[index].reason
        assert found[index].line == index + 3
        assert PRIVATE not in str(found[index])
    assert any("9 of 209 rows" in notice.text and notice.warning for notice in data.notices)


def test_a_broken_csv_record_costs_its_own_line_only(tmp_path: Path) -> None:
    rows = table(100)
    lines = ["id,text,label,split"] + [",".join(row.values()) for row in rows]
    lines[10] = 'bad1,"never closed,ham,train'
    lines[20] = 'bad2,"closed" too early,ham,train'
    lines[30] = "bad3,two,fields,too,many"
    lines[40] = 'r039,"' + PRIVATE + ' with\nnew ""line"", fine",spam,train'
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    data = load_dataset(config(tmp_path, {"file": "d.csv", "split": "split"}))
    assert [(r.row, r.line, r.field) for r in data.rejected] == [
        (10, 11, "line"), (20, 21, "line"), (30, 31, "line"),
    ]  # fmt: skip
    assert data.rows == 100
    assert sum(len(data.split(split)) for split in SPLITS) == 97
    assert any(s.text == PRIVATE + ' with\nnew "line", fine' for s in data.train)


def test_training_texts_of_the_other_splits_are_dropped(tmp_path: Path) -> None:
    rows = table()
    train, validation, test = (next(r for r in rows if r["split"] == split) for split in SPLITS)
    extra = [
        {**train, "id": "a", "text": validation["text"].upper() + "!!"},
        {**train, "id": "b", "text": "  " + test["text"].replace(" ", " , ")},
        {**validation, "id": "c", "text": test["text"] + "\u200b"},
        {**train, "id": "d", "label": "spam"},
    ]
    data = load(tmp_path, rows + extra)
    ids = {sample.id for split in SPLITS for sample in data.split(split)}
    assert ids == {row["id"] for row in rows} | {"d"}
    assert data.duplicates.dropped == {"train": 2, "validation": 1, "test": 0}
    assert data.duplicates.repeated == {"train": 1, "validation": 0, "test": 0}
    assert data.duplicates.conflicting == 1
    assert ("b", "c", test["id"]) in data.duplicates.groups
    assert sum("left out" in notice.text for notice in data.notices) == 2


def test_ids_without_a_column_come_from_the_content(tmp_path: Path) -> None:
    rows = [*table(), {**table()[0]}, {**table()[0]}]
    random.Random(0).shuffle(rows)

    def ids(rows: list[dict[str, Any]]) -> list[str]:
        write(tmp_path / "d.csv", rows)
        data = load_dataset(config(tmp_path, {"file": "d.csv", "split": "split"}, id=None))
        return [sample.id for sample in data.train]

    found = ids(rows)
    assert len(set(found)) == len(found) == 22
    assert sum("-" in row_id for row_id in found) == 2
    assert ids(rows[::-1]) == found
    assert all(len(row_id.split("-")[0]) == 16 for row_id in found)


def test_content_ids_do_not_depend_on_the_order_of_splits_in_the_file(tmp_path: Path) -> None:
    train, test = table()[0], {**table()[0], "split": "test"}
    for extra in ([train, test], [test, train]):
        write(tmp_path / "d.csv", extra + table()[4:])
        data = load_dataset(config(tmp_path, {"file": "d.csv", "split": "split"}, id=None))
        assert [sample.id[16:] for sample in data.test if sample.text == train["text"]] == ["-2"]


def test_places_are_right_far_into_a_file(tmp_path: Path) -> None:
    rows = table(9000)
    rows[8765]["text"] = ""
    for name, line in (("d.parquet", None), ("d.csv", 8767), ("d.jsonl", 8766)):
        write(tmp_path / name, rows)
        data = load_dataset(config(tmp_path, {"file": name, "split": "split"}))
        assert [(bad.row, bad.line) for bad in data.rejected] == [(8766, line)]


# --- every mistake, with the words that help ----------------------------------------------------

Broken = tuple[Callable[[Path], object], dict[str, Any], dict[str, Any], tuple[str, ...]]
SPLIT = {"file": "d.csv", "split": "split"}


def rows_with(name: str = "d.csv", **changes: Any) -> Callable[[Path], object]:
    return lambda folder: write(folder / name, [{**row, **changes} for row in table()])


def content(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def relabelled(folder: Path) -> None:
    write(
        folder / "d.csv",
        [{**row, "label": "spm" if i < 3 else row["label"]} for i, row in enumerate(table())],
    )


CSV = "".join(f"r{i},{PRIVATE} {i},{('ham', 'spam')[i % 2]},{SPLIT_OF[i % 4]}\n" for i in range(40)).encode()
HEAD = b"id,text,label,split\n"
MISTAKES: dict[str, Broken] = {
    "missing file": (lambda folder: None, SPLIT, {}, ("d.csv: no such file",)),
    "glob without matches": (lambda f: None, {**SPLIT, "file": "x*.csv"}, {}, ("x*.csv: no file matches",)),
    "folder": (lambda f: (f / "d.csv").mkdir(), SPLIT, {}, ("is a folder", "*.parquet")),
    "unknown format": (
        rows_with("d.csv"), {**SPLIT, "file": ["d.csv", "e.xlsx"]}, {}, ("e.xlsx: no such file",)),
    "spreadsheet": (
        content("d.xlsx", b"PK\x03\x04"), {**SPLIT, "file": "d.xlsx"}, {}, ("unknown format", ".parquet")),
    "zstd": (content("d.csv.zst", b"x"), {**SPLIT, "file": "d.csv.zst"}, {}, ("zstd -d",)),
    "empty file": (content("d.csv", b""), SPLIT, {}, ("d.csv: is empty",)),
    "header only": (content("d.csv", HEAD), SPLIT, {}, ("d.csv: no rows",)),
    "blank lines only": (content("d.csv", b"\n\n\n"), SPLIT, {}, ("no header",)),
    "misspelt text column": (rows_with(), SPLIT, {"text": "txt"}, ("no column 'txt'", "mean 'text'?")),
    "misspelt id column": (rows_with(), SPLIT, {"id": "idd"}, ("no column 'idd'", "did you mean 'id'?")),
    "misspelt split column": (rows_with(), {**SPLIT, "split": "fold"}, {}, ("no column 'fold'", "'split'")),
    "one column for two": (rows_with(), SPLIT, {"label": "text"}, ("'text' is named for more than one",)),
    "missing Parquet column": (
        rows_with("d.parquet"), {**SPLIT, "file": "d.parquet"}, {"label": "lable"}, ("mean 'label'?",)),
    "missing NDJSON key": (
        rows_with("d.jsonl"), {**SPLIT, "file": "d.jsonl"}, {"label": "lable"}, ("mean 'label'?",)),
    "no header": (content("d.csv", CSV), SPLIT, {}, ("is the first line a header?", "4 fields")),
    "column twice": (content("d.csv", b"id,text,text,label,split\n"), SPLIT, {}, ("'text' appears twice",)),
    "Parquet named CSV": (
        lambda f: write(f / "d.parquet", table()).rename(f / "d.csv"), SPLIT, {}, ("name it .parquet",)),
    "gzip named CSV": (content("d.csv", gzip.compress(HEAD + CSV)), SPLIT, {}, ("add .gz",)),
    "cut gzip": (
        content("d.csv.gz", gzip.compress(HEAD + CSV)[:60]), {**SPLIT, "file": "d.csv.gz"}, {},
        ("cut off",),
    ),
    "binary named CSV": (content("d.csv", random.Random(1).randbytes(999)), SPLIT, {}, ("not UTF-8 text",)),
    "UTF-16": (content("d.csv", (HEAD + CSV).decode().encode("utf-16")), SPLIT, {}, ("UTF-16", "iconv")),
    "Latin-1": (
        content("d.csv", HEAD + CSV.replace(b"zebra", "zèbré".encode("latin-1"))), SPLIT, {},
        ("text: is not valid UTF-8", "iconv"),
    ),
    "CSV named Parquet": (
        content("d.parquet", HEAD), {**SPLIT, "file": "d.parquet"}, {}, ("is not a Parquet file",)),
    "damaged Parquet": (
        content("d.parquet", b"PAR1" + bytes(300)), {**SPLIT, "file": "d.parquet"}, {}, ("damaged",)),
    "Parquet text is a list": (
        rows_with("d.parquet", text=["a"]), {**SPLIT, "file": "d.parquet"}, {}, ("'text' holds List",)),
    "JSON array": (
        content("d.json", b"[{}]"), {**SPLIT, "file": "d.json"}, {}, ("JSON array", "one object per line")),
    "NDJSON without objects": (
        content("d.jsonl", b"1\n2\n"), {**SPLIT, "file": "d.jsonl"}, {}, ("no line is a JSON object",)),
    "unknown label": (
        relabelled, SPLIT, {},
        ("3 of 40 rows (7.5%)", "unknown label 'spm'", "mean 'spam'?", "row 1 (line 2)", "task.labels"),
    ),
    "wrong label column": (
        rows_with(label=PRIVATE * 9), SPLIT, {}, ("unknown label of 117 characters", "the label column?")),
    "unknown splits": (rows_with(split="fold1"), SPLIT, {}, ("unknown split 'fold1'; known: train",)),
    "one id for all": (rows_with(id="same"), SPLIT, {}, ("39 of id: duplicate id", "leave task.id out")),
    "all texts empty": (rows_with(text=""), SPLIT, {}, ("40 of text: missing",)),
    "no validation rows": (rows_with(split="train"), SPLIT, {}, ("no usable validation row",)),
    "no training rows": (rows_with(split="test"), SPLIT, {}, ("no usable train row",)),
    "all training texts leak": (rows_with(text=PRIVATE), SPLIT, {}, ("20 texts stand in a later split",)),
    "one class": (rows_with(label="ham"), SPLIT, {}, ("20 training rows have the label 'ham'", "two labels")),
    "one file for two splits": (
        rows_with(), {"train": "d.csv", "validation": "d.csv"}, {}, ("more than one split",)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_gets_one_line_that_helps(tmp_path: Path, mistake: str) -> None:
    make, data, task, words = MISTAKES[mistake]
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset(config(tmp_path, data, **task))
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert "zebra" not in message
    assert "unicorn" not in message


def test_the_share_of_bad_rows_that_is_tolerated_is_configured(tmp_path: Path) -> None:
    relabelled(tmp_path)
    data = load_dataset(config(tmp_path, {**SPLIT, "max_bad_share": 0.075}))
    assert Counter(rejected.field for rejected in data.rejected) == {"label": 3}
    with pytest.raises(DataError, match="3 of 40"):
        load_dataset(config(tmp_path, {**SPLIT, "max_bad_share": 0.07}))


def test_labels_that_a_split_lacks_are_pointed_out(tmp_path: Path) -> None:
    write(tmp_path / "d.csv", [row for row in table() if row["split"] != "test"])
    data = load_dataset(config(tmp_path, SPLIT, labels=["ham", "spam", "eggs"]))
    texts = [notice.text for notice in data.notices]
    assert texts == [
        "there are no test rows: the verdict on validation stays provisional",
        "no train row has the label 'eggs'",
        "no validation row has the label 'eggs'",
    ]
