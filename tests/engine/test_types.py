"""Cache keys (C3): what is part of them, what is not, and that no two requests share one."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.types import AnswerSchema, EmbedRequest, Message, Request, rate_limited

anything = st.text(st.characters(), max_size=20)
long_texts = st.builds(lambda head, tail: head + "x" * 2500 + tail, anything, anything)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), anything | long_texts)
schemas = st.builds(
    AnswerSchema, st.sampled_from(["extraction", "b:"]), st.dictionaries(anything, anything, max_size=1)
)
requests = st.builds(
    Request,
    id=anything,
    messages=st.lists(messages, max_size=3).map(tuple),
    max_output_tokens=st.integers(1, 100),
    schema=st.none() | schemas,
    choices=st.lists(anything, max_size=3).map(tuple),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    index=st.integers(0, 3),
)

BASE = Request("r1", (Message("system", "be brief"), Message("user", "hello")), 10)
OTHERS = {
    "role": replace(BASE, messages=(Message("user", "be brief"), Message("user", "hello"))),
    "content": replace(BASE, messages=(Message("system", "be brief"), Message("user", "hello "))),
    "order": replace(BASE, messages=BASE.messages[::-1]),
    "fewer": replace(BASE, messages=BASE.messages[1:]),
    "max_output_tokens": replace(BASE, max_output_tokens=11),
    "schema": replace(BASE, schema=AnswerSchema("extraction", {"type": "object"})),
    "schema name": replace(BASE, schema=AnswerSchema("synthesis", {"type": "object"})),
    "schema body": replace(BASE, schema=AnswerSchema("extraction", {"type": "string"})),
    "choices": replace(BASE, choices=("a", "b")),
    "choices' order": replace(BASE, choices=("b", "a")),
    "choices' bounds": replace(BASE, choices=("a', 'b",)),
    "temperature": replace(BASE, temperature=0.7),
    "draw": replace(BASE, temperature=0.7, index=1),
}


def test_every_field_but_the_id_is_part_of_the_key() -> None:
    keys = {name: one.digest("model") for name, one in OTHERS.items()} | {"base": BASE.digest("model")}
    assert len(set(keys.values())) == len(keys)
    assert {len(key) for key in keys.values()} == {32}
    assert BASE.digest("another model") not in keys.values()


@settings(max_examples=50, deadline=None)
@given(requests, anything, anything)
def test_the_id_is_not_part_of_the_key(request: Request, other_id: str, model: str) -> None:
    assert replace(request, id=other_id).digest(model) == request.digest(model)


@settings(max_examples=50, deadline=None)
@given(requests, st.integers(4, 9))
def test_the_index_counts_only_where_draws_differ(request: Request, index: int) -> None:
    same = replace(request, index=index).digest("m") == request.digest("m")
    assert same == (request.temperature == 0)


@settings(max_examples=50, deadline=None)
@given(requests, requests, st.sets(st.sampled_from([one.name for one in fields(Request)])))
def test_only_equal_requests_share_a_key(one: Request, another: Request, taken: set[str]) -> None:
    other = replace(one, **{name: getattr(another, name) for name in taken})
    index = {} if one.temperature > 0 else {"index": one.index}
    assert (one.digest("m") == other.digest("m")) == (one == replace(other, id=one.id, **index))


@settings(max_examples=50, deadline=None)
@given(messages, messages, st.integers(1, 30))
def test_moving_text_between_messages_changes_the_key(first: Message, second: Message, cut: int) -> None:
    assume(first.content)
    kept, moved = first.content[:-cut], first.content[-cut:]
    shifted = (replace(first, content=kept), replace(second, content=moved + second.content))
    request = Request("r", (first, second), 5)
    assert replace(request, messages=shifted).digest("m") != request.digest("m")


def test_merging_messages_changes_the_key() -> None:
    merged = Request("r", (Message("user", "be briefhello"),), 10)
    split = Request("r", (Message("user", "be brief"), Message("user", "hello")), 10)
    assert merged.digest("m") != split.digest("m")


def test_keys_do_not_change_between_versions() -> None:
    # a change here loses every cache that users have paid for
    assert BASE.digest("model").hex()[:16] == "1f058c4749d26c3e"
    assert EmbedRequest("r1", "hello").digest("model").hex()[:16] == "a74024e82ca74264"


@settings(max_examples=50, deadline=None)
@given(anything, anything, anything, anything)
def test_keys_of_texts_to_embed(one: str, other: str, model: str, other_model: str) -> None:
    key = EmbedRequest("a", one).digest(model)
    assert len(key) == 32
    assert key == EmbedRequest("b", one).digest(model)
    assert (key == EmbedRequest("a", other).digest(model)) == (one == other)
    assert (key == EmbedRequest("a", one).digest(other_model)) == (model == other_model)
    assert key != Request("a", (Message("user", one),), 1).digest(model)


def test_values_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        BASE.id = "r2"  # type: ignore[misc]
    assert hash(OTHERS["schema"]) == hash(replace(OTHERS["schema"]))
    assert rate_limited(3.0).after_s == 3.0
