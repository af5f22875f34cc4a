"""Label probabilities out of token probabilities: held against a model whose distribution is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.openai_logprobs import NO_CHANCE, read_label_logprobs

END = b"<|im_end|>"


def shown(text: bytes, logprob: float, *, exact: bool = True) -> dict[str, Any]:
    """A token as servers show it: with its bytes, or (not exact) with those of what it looks like."""
    seen = text.decode("utf-8", "replace")
    return {"token": seen, "logprob": logprob, "bytes": list(text if exact else seen.encode())}


def entry(chosen: bytes, listed: dict[bytes, float], *, exact: bool = True) -> dict[str, Any]:
    """One token of an answer; `listed` are probabilities."""
    top = sorted(listed.items(), key=lambda one: -one[1])
    first = shown(chosen, math.log(listed[chosen]), exact=exact)
    return {
        **first,
        "top_logprobs": [shown(text, math.log(p) if p else -9999.0, exact=exact) for text, p in top],
    }


def words(*steps: tuple[str, dict[str, float]]) -> list[dict[str, Any]]:
    return [entry(text.encode(), {k.encode(): v for k, v in listed.items()}) for text, listed in steps]


def shares(logprobs: dict[str, float] | None) -> dict[str, float] | None:
    return None if logprobs is None else {name: math.exp(value) for name, value in logprobs.items()}


# --- an exact model --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """Draws a label and writes it in the longest pieces of its vocabulary, as tokenizers do."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    pieces: frozenset[bytes]
    in_json: bool

    def written(self, label: str) -> bytes:
        return b'{"label":' + orjson.dumps(label) + b"}" if self.in_json else label.encode()

    def tokens(self, label: str) -> tuple[bytes, ...]:
        text, tokens = self.written(label), []
        while text:
            size = max(n for n in range(1, len(text) + 1) if n == 1 or text[:n] in self.pieces)
            tokens.append(text[:size])
            text = text[size:]
        return (*tokens, END)

    def told(self, label: str) -> dict[str, float]:
        """What this answer tells: labels that leave its path by one token share what they have together."""
        path = self.tokens(label)
        branches: dict[tuple[bytes, ...], dict[str, float]] = {}
        for one, probability in zip(self.labels, self.probabilities, strict=True):
            tokens = self.tokens(one)
            same = next((n for n, (a, b) in enumerate(zip(path, tokens, strict=False)) if a != b), len(path))
            branches.setdefault(tokens[: same + 1], {})[one] = probability
        return {one: sum(branch.values()) / len(branch) for branch in branches.values() for one in branch}

    def answer(self, label: str) -> list[dict[str, Any]]:
        """What a server tells of the tokens of this answer: the 20 likeliest at each place."""
        cut = {one: self.tokens(one) for one in self.labels}
        entries = []
        for place, chosen in enumerate(cut[label]):
            mass: dict[bytes, float] = {}
            for one, probability in zip(self.labels, self.probabilities, strict=True):
                if cut[one][:place] == cut[label][:place]:
                    mass[cut[one][place]] = mass.get(cut[one][place], 0.0) + probability
            total = sum(mass.values())
            listed = {token: part / total for token, part in mass.items()}
            for other in range(3):  # tokens that may not come here are listed as impossible
                listed.setdefault(b"~%d" % other, 0.0)
            entries.append(entry(chosen, listed))
        return entries


@st.composite
def models(draw: st.DrawFn) -> Model:
    text = st.text(st.sampled_from("abc-é字 "), min_size=1, max_size=7).map(str.strip).filter(bool)
    labels = draw(st.lists(text, min_size=2, max_size=12, unique=True))
    weights = draw(st.lists(st.floats(0.01, 1.0), min_size=len(labels), max_size=len(labels)))
    in_json = draw(st.booleans())
    model = Model(tuple(labels), tuple(w / sum(weights) for w in weights), frozenset(), in_json)
    pieces = set()
    for label in labels:
        whole = model.written(label)
        for _ in range(draw(st.integers(0, 6))):
            begin = draw(st.integers(0, len(whole) - 1))
            pieces.add(whole[begin : begin + draw(st.integers(1, 8))])
    return Model(model.labels, model.probabilities, frozenset(pieces), in_json)


@given(models(), st.integers(0, 11))
@settings(max_examples=100)
def test_what_comes_back_is_the_true_distribution(model: Model, drawn: int) -> None:
    """As far as the tokens along one answer can tell it."""
    label = model.labels[drawn % len(model.labels)]
    field = "label" if model.in_json else None
    text = model.written(label).decode()
    got = shares(read_label_logprobs(model.answer(label), text, label, model.labels, field=field))
    assert got == pytest.approx(model.told(label))


@given(models(), st.integers(0, 11), st.text(st.sampled_from(" \n<think>ab"), max_size=12))
@settings(max_examples=50)
def test_what_stands_ahead_of_the_answer_does_not_matter(model: Model, drawn: int, ahead: str) -> None:
    label = model.labels[drawn % len(model.labels)]
    field = "label" if model.in_json else None
    thoughts = [entry(char.encode(), {char.encode(): 0.5, b"?": 0.5}) for char in ahead]
    tokens = thoughts + model.answer(label)
    got = shares(read_label_logprobs(tokens, model.written(label).decode(), label, model.labels, field=field))
    assert got == pytest.approx(model.told(label))


def test_labels_that_part_at_once_have_their_very_probabilities() -> None:
    labels, probabilities = ("hate", "offensive", "neither"), (0.5, 0.2, 0.3)
    model = Model(labels, probabilities, frozenset([b"ha", b"off", b"neither", b'{"', b'":"']), in_json=True)
    for label in labels:
        text = model.written(label).decode()
        got = shares(read_label_logprobs(model.answer(label), text, label, labels, field="label"))
        assert got == pytest.approx(dict(zip(labels, probabilities, strict=True)))


def test_labels_that_are_not_listed_count_as_nothing() -> None:
    labels = tuple(f"{chr(97 + n)}-label" for n in range(26))
    listed = {label: 2.0 ** -(n + 1) for n, label in enumerate(labels[:20])}
    got = read_label_logprobs(words(("a-label", listed)), "a-label", "a-label", labels)
    assert got is not None
    assert [got[label] for label in labels[20:]] == [NO_CHANCE] * 6
    assert math.exp(got["a-label"]) == pytest.approx(0.5 / sum(listed.values()))


# --- what cannot be told ----------------------------------------------------------------------------


def test_labels_that_no_token_tells_apart_share_evenly() -> None:
    tokens = words(("yes", {"yes": 0.7, "no": 0.3}))
    got = shares(read_label_logprobs(tokens, "yes", "yes", ("yes", "nobody", "north")))
    assert got == pytest.approx({"yes": 0.7, "nobody": 0.15, "north": 0.15})


def test_a_shorter_token_is_for_the_labels_that_no_longer_one_begins() -> None:
    tokens = words(("yes", {"yes": 0.7, "no": 0.2, "north": 0.1}))
    got = shares(read_label_logprobs(tokens, "yes", "yes", ("yes", "nobody", "north")))
    assert got == pytest.approx({"yes": 0.7, "nobody": 0.2, "north": 0.1})


def test_a_token_that_tells_no_labels_apart_counts_as_the_chosen_one() -> None:
    half = "\ufffd".encode()  # the first byte of one of them
    tokens = [
        entry(b"n", {b"n": 0.6, b"ja": 0.4}),
        entry("é".encode(), {"é".encode(): 0.5, half: 0.3, "ö".encode(): 0.2}, exact=False),
    ]
    got = shares(read_label_logprobs(tokens, "né", "né", ("ja", "né", "nö")))
    assert got == pytest.approx({"ja": 0.4, "né": 0.48, "nö": 0.12})


@pytest.mark.parametrize("end", ["<|im_end|>", "", "\n", ".", "</s>"])
def test_a_label_that_ends_where_another_goes_on(end: str) -> None:
    tokens = words(("no", {"no": 0.9, "yes": 0.1}), (end, {end: 0.8, "ne": 0.2}))
    got = shares(read_label_logprobs(tokens, "no", "no", ("no", "none", "yes")))
    assert got == pytest.approx({"no": 0.72, "none": 0.18, "yes": 0.1})


def test_a_server_that_lists_no_end_leaves_it_open() -> None:
    tokens = words(("no", {"no": 0.9, "yes": 0.1}))
    got = shares(read_label_logprobs(tokens, "no", "no", ("no", "none", "yes")))
    assert got == pytest.approx({"no": 0.45, "none": 0.45, "yes": 0.1})
    assert read_label_logprobs(tokens, "no", "no", ("no", "none")) is None


def test_the_same_label_in_several_tokens_counts_together() -> None:
    listed = {"spam": 0.5, " spam": 0.2, "sp": 0.1, "\nspam": 0.05, "ham": 0.1, "other": 0.05}
    got = shares(read_label_logprobs(words(("spam", listed)), "spam", "spam", ("spam", "ham")))
    assert got == pytest.approx({"spam": 0.85 / 0.95, "ham": 0.1 / 0.95})


def test_letters_that_go_on_are_no_end() -> None:
    tokens = words(("no", {"no": 1.0}), ("\n", {"\n": 0.5, "body": 0.3, "ne": 0.2}))
    got = shares(read_label_logprobs(tokens, "no", "no", ("no", "none")))
    assert got == pytest.approx({"no": 0.5 / 0.7, "none": 0.2 / 0.7})


def test_tokens_that_end_within_a_character() -> None:
    """As vLLM shows them: looks and bytes are those of U+FFFD, or empty."""
    labels = ("да", "ю", "yes")
    for half in ("\ufffd", ""):
        tokens = [
            entry(half.encode(), {half.encode(): 0.6, b"yes": 0.4}, exact=False),
            entry("да".encode(), {"да".encode(): 0.9, "ю".encode(): 0.1}),
        ]
        got = shares(read_label_logprobs(tokens, "да", "да", labels))
        assert got == pytest.approx({"да": 0.54, "ю": 0.06, "yes": 0.4})
    exact = [
        entry(b"\xd0", {b"\xd0": 0.6, b"\xd1": 0.1, b"yes": 0.3}),
        entry(b"\xb4", {b"\xb4": 1.0}),
        entry(b"\xd0\xb0", {b"\xd0\xb0": 1.0}),
    ]
    got = shares(read_label_logprobs(exact, "да", "да", labels))
    assert got == pytest.approx({"да": 0.6, "ю": 0.1, "yes": 0.3})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "a"),
        ([], "a"),
        ("tokens", "a"),
        ([{}], "a"),
        ([shown(b"a", -0.1)], "a"),  # no alternatives
        (words(("a", {"a": 1.0})), "a"),  # nor here, but itself
        (words(("x", {"x": 0.5, "y": 0.5})), "a"),
        (words(("", {"": 0.5, "a": 0.0})), "a"),
        (words(("b", {"b": 0.9, "x": 0.1})), "a"),  # of another answer
        ([{**shown(b"a", float("nan")), "top_logprobs": [shown(b"b", -1.0)]}], "a"),
        ([{**shown(b"a", 3.0), "top_logprobs": [shown(b"b", -1.0)]}], "a"),
    ],
)
def test_nothing_is_told(content: object, text: str) -> None:
    assert read_label_logprobs(content, text, text, ("a", "b")) is None


def test_a_json_answer_without_the_field_tells_nothing() -> None:
    tokens = words(("a", {"a": 0.5, "b": 0.5}))
    assert read_label_logprobs(tokens, "a", "a", ("a", "b"), field="label") is None


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.fixed_dictionaries(
            {"token": st.text(max_size=3), "logprob": st.floats(-10000, 0) | st.floats()},
            optional={"bytes": inner, "top_logprobs": inner},
        )
    ),
    max_leaves=12,
)


@example([{"token": "a", "logprob": 0.0, "bytes": 1 << 45}], "a", ("a", "ab"), None)
@given(JUNK | st.lists(JUNK), st.text(max_size=4), st.sampled_from([("a", "ab"), ("no", "none", "é")]),
       st.sampled_from([None, "label"]))  # fmt: skip
@settings(max_examples=200)
def test_no_tokens_break_it(content: object, text: str, labels: Sequence[str], field: str | None) -> None:
    got = read_label_logprobs(content, text, labels[0], labels, field=field)
    if got is not None:
        assert set(got) == set(labels)
        assert sum(math.exp(value) for value in got.values()) == pytest.approx(1)
        assert all(value <= 0 and math.isfinite(value) for value in got.values())
