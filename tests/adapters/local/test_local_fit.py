"""What the fit knows, that it is always the same, and that its file keeps all of it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapters.local import LocalEmbedder, LocalFit, fit_local, load_local
from engine.errors import CorruptStoreError, ModelError
from engine.ports import Embedder
from engine.types import Embedding, Sample
from tests.adapters.local.corpus import LABELS, SIGNS, train
from tests.contracts.embedder import EmbedderContract


@pytest.fixture(scope="module")
def fit() -> LocalFit:
    return fit_local(train(), LABELS, seed=7, dimensions=768)


def test_the_file_keeps_everything(fit: LocalFit, tmp_path: Path) -> None:
    path = tmp_path / "local.json"
    fit.save(path)
    loaded = load_local(path)
    assert loaded.document == fit.document == path.read_bytes()
    assert loaded.fit_id == fit.fit_id
    for rule in ('If the text says "refund" (strong sign), choose billing.', "offline again", ""):
        np.testing.assert_array_equal(LocalEmbedder(fit).vector(rule), LocalEmbedder(loaded).vector(rule))
    for sample in train()[:50]:
        assert loaded.signs(sample.text, sample.label) == fit.signs(sample.text, sample.label)


def test_the_same_rows_give_the_same_bytes(fit: LocalFit) -> None:
    shuffled = train()
    random.Random(3).shuffle(shuffled)
    assert fit_local(shuffled, LABELS, seed=7, dimensions=768).document == fit.document


def test_another_row_gives_another_name(fit: LocalFit) -> None:
    rows = train()
    changed = [replace(rows[0], label="praise" if rows[0].label != "praise" else "outage"), *rows[1:]]
    other = fit_local(changed, LABELS, seed=7, dimensions=768)
    assert other.fit_id != fit.fit_id
    assert LocalEmbedder(other).name != LocalEmbedder(fit).name


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 99}', b'{"format": 1, "labels": 3}'])
def test_a_damaged_file_says_so(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "local.json"
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"local\.json"):
        load_local(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CorruptStoreError, match=r"local\.json"):
        load_local(tmp_path / "local.json")


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ModelError, match="training rows"):
        fit_local([], LABELS, seed=1, dimensions=8)
    with pytest.raises(ModelError, match="odd"):
        fit_local([Sample("a", "x", "odd", "train")], LABELS, seed=1, dimensions=8)


@pytest.mark.parametrize("texts", [[""], ["one"], ["same"] * 9, ["a b", "a c", "b c"] * 4])
def test_tiny_corpora(texts: list[str]) -> None:
    rows = [Sample(f"{i}", text, LABELS[i % 3], "train") for i, text in enumerate(texts)]
    fit = fit_local(rows, LABELS, seed=1, dimensions=2)
    vector = LocalEmbedder(fit).vector("anything")
    assert vector.shape == (fit.dim,)
    assert fit.dim <= 2
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_dimensions_are_a_bound(fit: LocalFit) -> None:
    assert 8 < fit.dim <= 48
    assert fit_local(train(), LABELS, seed=7, dimensions=8).dim == 8


def test_signs_are_those_of_the_label(fit: LocalFit) -> None:
    signs = fit.signs("my invoice crashed and the refund was wonderful", "billing")
    assert set(signs) == {"invoice", "refund"}
    assert set(signs.values()) <= {1, 2, 3}
    assert fit.signs("nothing of note", "billing") == {}
    assert fit.signs("invoice", "unknown label") == {}
    own = {word for sign in SIGNS["outage"] for word in sign.split()}
    assert {word for cue in fit.signs("error code crashed offline", "outage") for word in cue.split()} <= own


def test_rules_about_one_sign_lie_together(fit: LocalFit) -> None:
    embedder = LocalEmbedder(fit)
    refund = embedder.vector('If the text says "refund" (strong sign), choose billing.')
    more = embedder.vector(
        'If the text says "refund" (strong sign) or "receipt" (strong sign), choose billing.'
    )
    other = embedder.vector('If the text says "offline" (strong sign), choose outage.')
    unmarked = embedder.vector("If the text has no marked wording, choose billing.")
    assert refund @ more > 0.6
    assert refund @ other < 0.3
    assert unmarked @ refund == pytest.approx(0, abs=1e-6)


def test_vectors_do_not_depend_on_company(fit: LocalFit) -> None:
    embedder = LocalEmbedder(fit)
    texts = [f'If the text says "{word}" (weak sign), choose billing.' for word in SIGNS["billing"]]
    together = asyncio.run(embedder.embed(texts))
    for text, outcome in zip(texts, together, strict=True):
        assert isinstance(outcome, Embedding)
        np.testing.assert_array_equal(outcome.vector, embedder.vector(text))


class TestLocalEmbedder(EmbedderContract):
    tolerance = 0.0

    def embedder(self) -> Embedder:
        return LocalEmbedder(fit_local(train(120), LABELS, seed=7, dimensions=16))

    def texts(self) -> list[str]:
        return [
            'If the text says "refund" (strong sign), choose billing.',
            "If the text has no marked wording, choose praise.",
            "Complaints about being offline are outages.",
            "",
            '\ud800 <input> "',
        ]
