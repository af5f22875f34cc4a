"""The baselines: what they predict, what they fall back to, and that nothing but the rows decides."""

from __future__ import annotations

import polars as pl
import pytest

from engine.distillation.baseline import C_GRID, majority, tfidf_logreg
from engine.metrics import score
from engine.types import Sample, SplitName

LABELS = ["spam", "none"]
TRAIN = [
    *(("win a prize now", "spam"), ("claim your prize", "spam"), ("free prize now", "spam")),
    *(("see you at lunch", "none"), ("lunch at noon", "none"), ("at lunch again", "none")),
]


def samples(rows: list[tuple[str, str]], split: SplitName = "train") -> list[Sample]:
    return [Sample(f"{split}-{k}", text, label, split) for k, (text, label) in enumerate(rows)]


def test_majority_is_the_commonest_training_label() -> None:
    assert majority(samples([("a", "x"), ("b", "y"), ("c", "y")]), 3) == ["y", "y", "y"]
    assert majority(samples([("a", "y"), ("b", "x")]), 2) == ["x", "x"]
    assert majority(samples([("a", "y")]), 0) == []
    with pytest.raises(ValueError, match="training rows"):
        majority([], 3)


def test_words_of_the_training_texts_decide() -> None:
    validation = samples([("a prize for you", "spam"), ("lunch today", "none")], "validation")
    found = tfidf_logreg(samples(TRAIN), validation, ["prize", "lunch", "PRIZE now!"], LABELS, seed=1)
    assert found == ["spam", "none", "spam"]
    assert all(type(label) is str for label in found)


def test_validation_chooses_how_strongly_to_regularise() -> None:
    # a pair of words that turns the meaning round needs weights that the strongest penalty does not allow
    rows = [*[("good", "none")] * 12, *[("not good", "spam")] * 2, *[("bad", "spam")] * 12]
    train = samples([*rows, *[("not bad", "none")] * 2])
    asked = ["not good", "not bad"]
    turned = samples([("not good", "spam"), ("not bad", "none")], "validation")
    plain = samples([("not good", "none"), ("not bad", "spam")], "validation")
    assert tfidf_logreg(train, turned, asked, LABELS, seed=1) == ["spam", "none"]
    assert tfidf_logreg(train, plain, asked, LABELS, seed=1) == ["none", "spam"]
    assert list(C_GRID) == sorted(C_GRID)


def test_without_validation_rows() -> None:
    assert tfidf_logreg(samples(TRAIN), [], ["prize", "lunch"], LABELS, seed=1) == ["spam", "none"]


@pytest.mark.parametrize(
    "rows",
    [
        [("one text", "none")],
        [("same words", "none"), ("same words", "none")],
        [("all", "none"), ("different", "none"), ("words", "spam")],
        [("", "none"), ("!?", "none"), ("...", "spam")],
    ],
    ids=["one row", "one label", "no word twice", "no words"],
)
def test_nothing_to_learn_is_the_majority(rows: list[tuple[str, str]]) -> None:
    validation = samples([("words", "spam")], "validation")
    assert tfidf_logreg(samples(rows), validation, ["words", ""], LABELS, seed=1) == ["none", "none"]


def test_nothing_asked() -> None:
    assert tfidf_logreg(samples(TRAIN), [], [], LABELS, seed=1) == []


def test_the_order_of_the_rows_does_not_matter() -> None:
    train, validation = samples(TRAIN), samples(TRAIN[1::2], "validation")
    asked = ["prize at noon", "you", "lunch prize", "zzz"]
    forth = tfidf_logreg(train, validation, asked, LABELS, seed=1)
    assert forth == tfidf_logreg(train[::-1], validation[::-1], asked, LABELS, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("hate_speech_offensive", 0.70), ("stereoset", 0.90)])
def test_real_data_reaches_the_known_level(pld_data: object, name: str, least: float) -> None:
    table = pl.read_parquet(f"{pld_data}/{name}.parquet", columns=["id", "text", "label", "split"])
    rows = [Sample(**row) for row in table.iter_rows(named=True)]
    train, validation, test = (
        [row for row in rows if row.split == split] for split in ("train", "validation", "test")
    )
    labels = sorted({row.label for row in rows})
    predicted = tfidf_logreg(train, validation, [row.text for row in test], labels, seed=7)
    assert score([row.label for row in test], predicted, labels, seed=7).macro_f1 > least
