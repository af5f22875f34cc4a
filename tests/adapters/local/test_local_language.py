"""The controlled English: what is written is read back, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.local.language import Clause, General, Reader
from adapters.local.text import tokenize

LABELS = ("spam", "not spam", "spam, maybe", "if the text says", "then (weak sign)")

tokens = st.text(max_size=40).map(tokenize).filter(bool)
cues = tokens.map(lambda words: " ".join(words[:3]))
clauses = st.builds(
    Clause,
    st.sampled_from(LABELS),
    st.dictionaries(cues, st.integers(1, 3), max_size=6),
    st.lists(cues, max_size=3, unique=True).map(tuple),
).map(lambda clause: clause if clause.signs else Clause(clause.label))


@given(st.lists(clauses, max_size=4))
def test_clauses_are_read_back(written: list[Clause]) -> None:
    text = "\n".join(clause.text() for clause in written)
    assert Reader(LABELS).clauses(text) == written
    assert Reader(LABELS).clauses(f'# Task\nIf the "text says\n\n{text}\nChoose "x", choose spam.') == written


@given(st.permutations(LABELS), st.sampled_from(LABELS))
def test_general_rules_are_read_back(order: list[str], default: str) -> None:
    general = General(default, tuple(order))
    assert Reader(LABELS).general(f"Some prose.\n{general.text()}\nMore.") == general


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    reader = Reader(LABELS)
    for clause in reader.clauses(text + '\nIf the text says "x" (weak sign), choose spam.')[-1:]:
        assert clause.label == "spam"
    reader.general(text)


def test_prose_is_ignored() -> None:
    reader = Reader(LABELS)
    assert reader.clauses('Mind "x". If it says "y" (strong sign), choose spam.') == []
    assert reader.clauses('If the text says "x" (strong sign), choose ham.') == []
    assert reader.clauses('If the text says "x" (strong sign)\n, choose spam.') == []
    assert reader.clauses("If the text is long, choose spam.") == []
    assert reader.general("Where no sign applies, choose ham.") == General()


def test_an_unfinished_clause_does_not_swallow_the_next() -> None:
    text = 'If the text says "x" (weak sign), then If the text says "y" (weak sign), choose spam.'
    assert Reader(LABELS).clauses(text) == [Clause("spam", {"y": 1})]


def test_somebody_elses_hand() -> None:
    text = 'If the text says "Free  Money" or "win", but not "thanks" or "thanks", choose spam.'
    assert Reader(LABELS).clauses(text) == [Clause("spam", {"free money": 2, "win": 2}, ("thanks",))]


def test_the_sentence_reads_well() -> None:
    clause = Clause("spam", {"a": 3, "c d": 1, "b": 3}, ("e",))
    assert clause.text() == (
        'If the text says "a" or "b" (strong signs) or "c d" (weak sign), but not "e", choose spam.'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t DO it", ["don't", "do", "it"]),
        ("see https://a.b/c?d=1, now", ["see", "[link]", "now"]),
        ("@Jane <url> paid 300 for x2", ["@user", "[link]", "paid", "[number]", "for", "x2"]),
        ("\U0001f600\U0001f600 ok", ["\U0001f600", "\U0001f600", "ok"]),
        ("\"quoted\" 'too'", ["quoted", "too"]),
        ("", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokenize(text) == expected


@given(st.text(st.characters(codec="ascii")) | st.text("aB1_'@<>[] numberlk.:/w\n"))
def test_plain_text_has_the_tokens_of_any_text(text: str) -> None:
    assert [*tokenize(text), "\u00e9"] == tokenize(f"{text} \u00e9")


@given(st.text())
def test_tokens_can_be_quoted(text: str) -> None:
    for token in tokenize(text):
        assert '"' not in token
        assert token.split() == [token]
        token.encode()
