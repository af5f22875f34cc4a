"""Answers and vectors survive the way to disk and back; tokens are counted as stated."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.errors import CorruptStoreError
from engine.scheduler import decode_answer, decode_embedding, encode_answer, encode_embedding
from engine.tokens import EstimatedTokenCounter, estimate_tokens, most_tokens
from engine.types import Answer, Embedding, FinishReason, Usage

counts = st.integers(0, 10**9)
usages = st.builds(Usage, counts, counts, counts, st.none() | counts, st.booleans())
logprobs = st.none() | st.dictionaries(
    st.text(st.characters(codec="utf-8")), st.floats(-100, 0), min_size=1, max_size=5
)


@given(
    st.builds(Answer, st.text(st.characters(codec="utf-8")), usages, st.sampled_from(FinishReason), logprobs)
)
def test_answers_come_back_equal(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_half_a_surrogate_pair_costs_one_character() -> None:
    assert decode_answer(encode_answer(Answer("label: \ud800spam"))).text == "label: ?spam"


@given(arrays.arrays(np.float32, st.integers(1, 100)), usages)
def test_vectors_come_back_bit_for_bit(vector: np.ndarray, usage: Usage) -> None:
    back = decode_embedding(encode_embedding(Embedding(vector, usage)))
    assert back.vector.dtype == np.float32
    assert back.vector.tobytes() == vector.tobytes()
    assert back.usage == usage


@pytest.mark.parametrize("payload", [b"", b"\x02{}", b"\x01{", b"\x01{}", b"\x01[]", b'\x01{"t":1}'])
def test_a_damaged_payload_is_said_to_be_damaged(payload: bytes) -> None:
    with pytest.raises(CorruptStoreError, match="damaged answer"):
        decode_answer(payload)
    with pytest.raises(CorruptStoreError, match="damaged vector"):
        decode_embedding(payload)


@given(st.text())
def test_the_bound_on_tokens_is_above_the_estimate(text: str) -> None:
    assert 0 <= estimate_tokens(text) <= most_tokens(text) == len(text.encode("utf-8", "surrogatepass"))


def test_the_estimate() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("Is this comment hateful? Answer yes or no.") == 12
    assert estimate_tokens("word " * 1000) == 1000
    counter = EstimatedTokenCounter()
    assert counter.estimated
    assert asyncio.run(counter.count(["one", "two words"])) == [1, 2]
