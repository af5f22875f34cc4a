"""Properties of splits, duplicates and content ids, on random rows and on the real data sets."""

from __future__ import annotations

import json
import string
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config_file import parse_config
from engine.errors import DataError
from engine.store.datasets import load_dataset
from engine.store.splits import largest_remainder, normal_form, separate, stratify
from engine.types import SPLITS, Sample

LABELS = ("a", "b", "c")
TEXTS = st.text(alphabet="ab ,.!A", min_size=1, max_size=5)
FRACTIONS = st.tuples(*[st.integers(1, 8)] * 2, st.integers(0, 8)).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


@st.composite
def samples(draw: st.DrawFn, *, texts: st.SearchStrategy[str] = TEXTS) -> list[Sample]:
    rows = draw(st.lists(st.tuples(texts, st.sampled_from(LABELS), st.sampled_from(SPLITS)), max_size=40))
    return [Sample(f"r{i}", *row) for i, row in enumerate(rows)]


@given(st.text(), st.randoms(use_true_random=False))
def test_normal_form_ignores_case_punctuation_and_spacing(text: str, random: Any) -> None:
    noisy = "".join(char + random.choice(["", " ", "\n", "!", "-", "\u00a0", "\u200b"]) for char in text)
    reference = normal_form(text)
    if any(char.isalnum() for char in text):
        assert normal_form(noisy) == reference
    # folding twice changes nothing; comparing stays transitive
    assert normal_form(reference) == reference


def test_normal_form_keeps_what_carries_meaning() -> None:
    assert normal_form("Don't  STOP!") == normal_form("dont stop")
    assert normal_form("good 😀") != normal_form("good 😡")
    assert normal_form("5 €") != normal_form("5")
    assert normal_form("caf\u00e9") == normal_form("cafe\u0301") != normal_form("cafe")
    assert normal_form("कि") != normal_form("की")  # vowel signs are marks, not punctuation
    assert normal_form(" !! ") == "!!" != normal_form("??")


@given(samples())
def test_no_text_stands_in_two_splits_and_counts_add_up(rows: list[Sample]) -> None:
    kept, duplicates = separate(rows)
    texts = {split: {normal_form(s.text) for s in kept if s.split == split} for split in SPLITS}
    assert not texts["train"] & (texts["validation"] | texts["test"])
    assert not texts["validation"] & texts["test"]
    assert len(kept) + sum(duplicates.dropped.values()) == len(rows)
    assert [s for s in rows if s.split == "test"] == [s for s in kept if s.split == "test"]
    # a text is never lost, only moved out of the earlier split
    assert {normal_form(s.text) for s in kept} == {normal_form(s.text) for s in rows}
    assert separate(kept)[0] == kept
    repeats = sum(len(group) - 1 for group in duplicates.groups)
    assert len({normal_form(s.text) for s in rows}) == len(rows) - repeats


@given(st.integers(0, 500), FRACTIONS)
def test_largest_remainder_sums_up_and_is_within_one(n: int, fractions: tuple[float, ...]) -> None:
    counts = largest_remainder(n, fractions)
    assert sum(counts) == n
    assert all(abs(count - n * share) < 1 for count, share in zip(counts, fractions, strict=True))


def test_exact_shares_are_not_spoilt_by_rounding() -> None:
    assert largest_remainder(20, (0.7, 0.15, 0.15)) == [14, 3, 3]
    assert largest_remainder(3, (0.7, 0.15, 0.15)) == [2, 1, 0]
    assert largest_remainder(100, (0.1 + 0.2, 0.7, 0.0)) == [30, 70, 0]
    assert largest_remainder(36, (0.05, 0.1, 0.85)) == [2, 4, 30]
    assert largest_remainder(10**7, (0.5, 0.25, 0.2500005)) == [4999997, 2499999, 2500004]


@given(st.lists(st.sampled_from(LABELS), max_size=120), FRACTIONS, st.integers(0, 9), st.randoms())
def test_fractions_hold_within_every_label_whatever_the_order(
    labels: list[str], fractions: tuple[float, float, float], seed: int, random: Any
) -> None:
    rows = [(f"r{i}", f"text {i:03}", label) for i, label in enumerate(labels)]
    chosen = stratify(rows, fractions, seed)
    for label in LABELS:
        ids = [row_id for row_id, _, own in rows if own == label]
        counts = Counter(chosen[row_id] for row_id in ids)
        assert [counts[split] for split in SPLITS] == largest_remainder(len(ids), fractions)
    random.shuffle(rows)
    assert stratify(rows, fractions, seed) == chosen


@given(st.lists(st.tuples(TEXTS, st.sampled_from(LABELS)), max_size=60), FRACTIONS, st.randoms())
def test_fractions_never_part_equal_texts(
    pairs: list[tuple[str, str]], fractions: tuple[float, float, float], random: Any
) -> None:
    rows = [(f"r{i}", text, label) for i, (text, label) in enumerate(pairs)]
    chosen = stratify(rows, fractions, 1)
    assert len(chosen) == len(rows)
    assert stratify(random.sample(rows, len(rows)), fractions, 1) == chosen
    _, duplicates = separate([Sample(i, text, label, chosen[i]) for i, text, label in rows])
    assert sum(duplicates.dropped.values()) == 0


def test_shares_hold_where_every_text_stands_twice() -> None:
    rows = [(f"r{i}", f"text {i // 2:03}", "a") for i in range(400)]
    counts = Counter(stratify(rows, (0.5, 0.25, 0.25), 3).values())
    assert counts == {"train": 200, "validation": 100, "test": 100}


def test_the_seed_decides_who_goes_where() -> None:
    rows = [(f"r{i}", f"text {i:03}", "a") for i in range(100)]
    first, again, other = (stratify(rows, (0.5, 0.25, 0.25), seed) for seed in (1, 1, 2))
    assert first == again != other
    # ids in file order must not end up in one split
    assert sum(first[a] != first[b] for (a, _, _), (b, _, _) in pairwise(rows)) > 30


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.one_of(st.text(max_size=6), st.none(), st.integers(), st.just("same text")),
            "label": st.one_of(st.sampled_from([*LABELS, *LABELS, "d"]), st.none()),
            "split": st.sampled_from([*SPLITS, "dev", "other"]),
            "id": st.one_of(st.text(alphabet=string.ascii_lowercase, max_size=2), st.integers(0, 99)),
        }
    ),
    min_size=1,
    max_size=30,
)


@given(ROWS, st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_row_is_used_rejected_or_dropped_exactly_once(
    rows: list[dict[str, Any]], with_ids: bool, fractions: bool
) -> None:
    # rows that make the load succeed, so that the property is about counting
    anchors = [
        {"id": f"anchor{i}", "text": f"anchor number {i}", "label": LABELS[i % 2], "split": split}
        for i, split in enumerate(SPLITS * 6)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in anchors + rows), encoding="utf-8")
        task = {"name": "t", "description": "d", "labels": list(LABELS)} | ({"id": "id"} if with_ids else {})
        data: dict[str, Any] = {"file": "d.jsonl", "max_bad_share": 1.0}
        data |= {"fractions": [0.5, 0.3, 0.2]} if fractions else {"split": "split"}
        config = parse_config({"task": task, "data": data}, base=Path(folder))
        loaded = load_dataset(config)
        assert load_dataset(config) == loaded
    usable = sum(len(loaded.split(split)) for split in SPLITS)
    dropped = sum(loaded.duplicates.dropped.values())
    assert loaded.rows == len(anchors + rows) == usable + dropped + len(loaded.rejected)
    every = [sample for split in SPLITS for sample in loaded.split(split)]
    assert len({sample.id for sample in every}) == len(every)
    places = [(rejected.file, rejected.row) for rejected in loaded.rejected]
    assert len(set(places)) == len(places)


REAL = ("stereoset", "contract_nli", "logiqa", "openai_moderation", "hatecheck", "hate_speech_offensive")


def real_config(pld_data: Path, name: str, **data: Any) -> Any:
    path = pld_data / f"{name}.parquet"
    labels = sorted(pl.scan_parquet(path).select("label").collect()["label"].unique())
    task = {"name": name, "description": "d", "labels": labels, "id": "id"}
    return parse_config({"task": task, "data": {"file": path.name, **data}}, base=pld_data)


@pytest.mark.parametrize("name", REAL)
def test_the_published_splits_load_without_a_loss(pld_data: Path, name: str) -> None:
    data = load_dataset(real_config(pld_data, name, split="split"))
    frame = pl.read_parquet(pld_data / f"{name}.parquet")
    assert data.rows == frame.height
    assert data.rejected == ()
    assert data.duplicates.dropped == dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        expected = frame.filter(split=split).sort("id")
        assert [(s.id, s.text, s.label) for s in data.split(split)] == list(
            expected.select("id", "text", "label").iter_rows()
        )


def test_seeded_fractions_of_real_data(pld_data: Path) -> None:
    data = load_dataset(real_config(pld_data, "stereoset", fractions=[0.8, 0.1, 0.1]))
    shares = {split: Counter(sample.label for sample in data.split(split)) for split in SPLITS}
    for label, total in Counter(s.label for split in SPLITS for s in data.split(split)).items():
        expected = largest_remainder(total, (0.8, 0.1, 0.1))
        assert [shares[split][label] for split in SPLITS] == expected


def test_a_wrong_label_column_in_real_data_shows_no_text(pld_data: Path) -> None:
    path = pld_data / "stereoset.parquet"
    task = {"name": "t", "description": "d", "labels": ["a", "b"], "label": "context", "text": "text"}
    config = parse_config({"task": task, "data": {"file": path.name, "split": "split"}}, base=pld_data)
    with pytest.raises(DataError, match="cannot be used") as caught:
        load_dataset(config)
    assert not any(text in str(caught.value) for text in pl.read_parquet(path)["text"])
