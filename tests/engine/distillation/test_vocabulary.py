"""Names, numbers and addresses of a text, and what a task's texts have in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.distillation.vocabulary import (
    MOST_TEXTS,
    Vocabulary,
    addresses,
    name_words,
    number_parts,
    numbers,
    words,
)

anything = st.text(st.characters(), max_size=80)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("We met Jupiter Holdings in Oslo.", {"jupiter", "holdings", "oslo"}),
        ("Jupiter is big. Saturn is too!", set()),  # each begins a sentence
        ("Signed by Mr. Smith and J. R. Doe, of the U.S. Navy", {"mr", "smith", "doe", "navy"}),
        ('She said "Never" and (Later) left', set()),
        ("he is 'Always' late", set()),
        ("the 3M plant, its B2B arm and 2nd floor", {"3m", "b2b"}),
        ("RETURN OF ALL CONFIDENTIAL MATERIALS", set()),  # a heading
        ("all in small letters, not one name", set()),
        ("アルファ社はベータ社と契約した。", set()),  # a script without case
        ("وقعت الشركة العقد في عام", set()),
        ("", set()),
    ],
)
def test_names_are_capitalised_within_a_sentence(text: str, found: set[str]) -> None:
    assert name_words(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pay $5 or 7%, not 8", {"5", "7"}),
        ("on 12/05/2024 at 10:30, under 4.1.2", {"12/05/2024", "10:30", "4.1.2"}),
        ("1,000,000 and 1000,5", {"1000000", "1000,5"}),
        ("b4, gr8, COVID-19, 2nd, 30th, 90's, x_12 and F-16", set()),
        ("vom 3. bis 14.", {"14"}),
        ("2024年5月", {"2024"}),
        ("", set()),
    ],
)
def test_numbers_that_stand_for_themselves(text: str, found: set[str]) -> None:
    assert numbers(text) == found


def test_parts_of_numbers_are_what_a_rule_may_repeat() -> None:
    assert {"12", "05", "2024", "10", "30"} <= number_parts("on 12/05/2024 at 10:30, the 30th")
    assert "1000" in number_parts("1,000 ways")


def test_addresses() -> None:
    text = "see https://A.example/x?y=1), www.b.example. Mail Me.Too@c.example, @Someone #Rise4 #1 a@b"
    assert addresses(text) == {
        "https://a.example/x?y=1",
        "www.b.example",
        "me.too@c.example",
        "@someone",
        "#rise4",
    }


@given(anything)
def test_any_text_is_read(text: str) -> None:
    assert all(word.text in text for word in words(text))
    assert numbers(text) <= number_parts(text)
    assert name_words(text) <= {word.text.casefold() for word in words(text)}
    addresses(text)
    Vocabulary([text, text], text)


def test_a_long_run_without_an_end_takes_no_longer() -> None:
    # quadratic time would be hours here
    assert addresses("@" + "a." * 400_000) == {"@a"}
    assert numbers("1." * 200_000) == {".".join("1" * 200_000)}


def texts(n: int, **rows: int) -> list[str]:
    """`n` texts; the first `rows[word]` of them hold that word."""
    return [
        " ".join(["it says", *(word for word, most in rows.items() if number < most)]) for number in range(n)
    ]


def test_what_many_texts_have_is_no_detail() -> None:
    known = Vocabulary(texts(1000, Agreement=500, Jupiter=10, Saturn=11))
    assert known.details({"agreement", "jupiter", "saturn", "unheard"}) == {"jupiter", "unheard"}
    # few texts cannot tell a topic from a detail: three of them may share one
    assert Vocabulary(texts(30, Jupiter=3)).is_detail("jupiter")
    assert not Vocabulary(texts(30, Jupiter=4)).is_detail("jupiter")


def test_common_numbers_are_details_until_a_fifth_of_the_texts_have_them() -> None:
    found = [
        f"{text} {10 if number < 200 else ''} {2024 if number < 201 else ''}"
        for number, text in enumerate(texts(1000))
    ]
    known = Vocabulary(found)
    assert known.is_detail("10")
    assert not known.is_detail("2024")


def test_what_the_task_says_is_no_detail() -> None:
    known = Vocabulary(texts(10, Jupiter=1), "Is Jupiter named? See https://j.example, part 4.2")
    assert known.details({"jupiter", "4.2", "https://j.example", "saturn"}) == {"saturn"}


def test_where_nouns_have_capitals_these_tell_nothing() -> None:
    german = ["Der Vertrag wurde am Montag von der Firma und dem Kunden in Berlin mit Siegel versehen"] * 5
    assert not Vocabulary(german).capitals_tell_names
    assert Vocabulary(
        ["The contract was signed on Monday by both parties and their lawyers"]
    ).capitals_tell_names
    assert Vocabulary([]).capitals_tell_names


def test_no_more_texts_are_counted_than_a_bound() -> None:
    many = ["Jupiter"] * (2 * MOST_TEXTS)
    known = Vocabulary(many)
    assert not known.is_detail("jupiter")
    many[1::2] = ["Saturn"] * MOST_TEXTS  # between those that are counted
    assert Vocabulary(many).is_detail("saturn")
