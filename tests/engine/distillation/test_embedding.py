"""Rules to vectors: each distinct instruction once, and no rule lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distillation.embedding import embed_rules
from engine.errors import ModelError
from engine.scheduler import Scheduler
from engine.types import Embedding, EmbedOutcome, Failure, FloatVector, MicroRule
from tests.support.fakes import InMemoryJournal, ScriptedEmbedder
from tests.support.virtual_time import run_virtual

Embedded = tuple[tuple[MicroRule, ...], FloatVector, tuple[Failure, ...]]


def rules(*texts: str) -> list[MicroRule]:
    return [MicroRule(f"s{k}", "spam", text) for k, text in enumerate(texts)]


def embed(embedder: ScriptedEmbedder, given_rules: Sequence[MicroRule]) -> Embedded:
    async def embedding() -> Embedded:
        return await embed_rules(Scheduler(InMemoryJournal()).embed(embedder), given_rules)

    return run_virtual(embedding())


def test_rules_and_vectors_stand_in_the_same_order() -> None:
    embedder = ScriptedEmbedder()
    given_rules = rules("a", "b", "a", "c", "a")
    kept, vectors, failures = embed(embedder, given_rules)
    assert kept == tuple(given_rules)
    assert (vectors.shape, vectors.dtype, failures) == ((5, 8), np.float32, ())
    for rule, vector in zip(kept, vectors, strict=True):
        np.testing.assert_array_equal(vector, embedder.vector(rule.instruction))
    assert sorted(embedder.seen) == ["a", "b", "c"]


def test_a_text_that_fails_fails_all_its_rules() -> None:
    kept, vectors, failures = embed(ScriptedEmbedder(refuse=frozenset("a")), rules("a", "b", "a"))
    assert [rule.sample_id for rule in kept] == ["s1"]
    assert vectors.shape == (1, 8)
    assert [failure.id for failure in failures] == ["s0", "s2"]
    assert {failure.reason for failure in failures} == {"embedding: refused"}


def test_nothing_left() -> None:
    for given_rules in ([], rules("a", "a")):
        kept, vectors, failures = embed(ScriptedEmbedder(refuse=frozenset("a")), given_rules)
        assert (kept, vectors.shape, vectors.dtype) == ((), (0, 0), np.float32)
        assert [failure.id for failure in failures] == [rule.sample_id for rule in given_rules]


@dataclass
class Uneven(ScriptedEmbedder):
    """Vectors as long as their text."""

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        return [Embedding(np.eye(1, len(text), dtype=np.float32)[0]) for text in texts]


def test_vectors_of_different_lengths_are_the_models_fault() -> None:
    with pytest.raises(ModelError, match="scripted-embedder: vectors of different lengths"):
        embed(Uneven(), rules("aa", "bbb"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=20), st.sets(st.sampled_from("abcdef")))
def test_no_rule_is_lost_or_doubled(texts: list[str], refused: set[str]) -> None:
    given_rules = rules(*texts)
    kept, vectors, failures = embed(ScriptedEmbedder(refuse=frozenset(refused)), given_rules)
    assert len(kept) == len(vectors)
    assert [rule for rule in given_rules if rule.instruction not in refused] == list(kept)
    assert [rule.sample_id for rule in given_rules if rule.instruction in refused] == [
        failure.id for failure in failures
    ]
