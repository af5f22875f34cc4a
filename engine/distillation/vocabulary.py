"""Which words of a text are details of it: names, numbers and addresses, and what a task's texts share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

MOST_TEXTS = 20_000
"""So many texts at most are counted, evenly spread over all: a bound on memory and time."""
RARE_TEXTS, RARE_SHARE = 3, 0.01
"""A word is a detail where at most so many texts, or that share of them, have it. (Rows that quote the same
document share its details, so one text alone is too strict a bound.)"""
RARE_NUMBER_SHARE = 0.2
"""The same for numbers. The commonest, such as 10 and 30, recur by chance: that makes them no topic."""
MOST_CAPITALS = 0.2
"""Share of words inside sentences from which on capitals tell no names: German writes every noun with one
(over .25); English contracts, full of defined terms, have .15."""

_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+(?:[.,:/\u2013-]\d+)*")
_PART = re.compile(r"[:/\u2013-]")
_CURRENCIES = ("$", "\u20ac", "\u00a3", "\u00a5", "\u20b9")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s<>\"]+"
    r"|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+"  # looked for where a run begins: a long one takes no longer
    r"|(?<!\w)[@#](?=\w*[^\W\d])\w+"  # mentions and hashtags, not "#1"
)
_STOPS = frozenset('.!?:;\u2026\n\r"\u201c\u201d\u201e\u00ab\u00bb()[]{}|\u2022*/<>=\u2013\u2014')
_QUOTE = re.compile(r"\s['\u2018\u2019`]")
_SHORT = 3  # "Mr. Smith", "J. Smith", "U.S. Army": no new sentence after the mark
_HEADING_WORDS = 4


class Word(NamedTuple):
    """A word as it is written; `inside`: within a sentence, where a capital is no matter of grammar."""

    text: str
    inside: bool


def bare_words(text: str) -> list[str]:
    """Letters and digits in a row, in order."""
    return _WORD.findall(text)


def words(text: str) -> Iterator[Word]:
    """`bare_words` with their places. Linear in the length of `text`."""
    end, before = 0, ""
    for match in _WORD.finditer(text):
        gap = text[end : match.start()]
        inside = bool(before) and (
            not _ends_sentence(gap) or (gap in (". ", ".") and len(before) <= _SHORT and before[0].isupper())
        )
        yield Word(match[0], inside)
        end, before = match.end(), match[0]


@lru_cache(maxsize=1024)
def _ends_sentence(gap: str) -> bool:
    return bool(_STOPS.intersection(gap) or _QUOTE.search(gap))


def is_capital(word: str) -> bool:
    """Whether a word is written as a name is: a capital first, or capitals and digits as in "3M"."""
    return len(word) > 1 and (word[0].isupper() or (word[0].isdigit() and word != word.lower()))


def name_words(text: str) -> set[str]:
    """Case-folded words of `text` that are capitalised within a sentence; headings and shouting aside."""
    found: set[str] = set()
    sentence: list[str] = []
    for word, inside in (*words(text), Word("", inside=False)):
        if not inside:
            capitals = [one for one in sentence if is_capital(one)]
            if len(sentence) < _HEADING_WORDS or 4 * len(capitals) <= 3 * len(sentence):
                found.update(one.casefold() for one in capitals)
            sentence = []
        elif word[0].isalpha() or is_capital(word):
            sentence.append(word)
    return found


def numbers(text: str) -> set[str]:
    """Numbers of two or more digits, and amounts and shares of one ("$5", "5%"), without unit and the commas
    between thousands. Dates, times and section numbers are one number each; digits in a word ("b4",
    "COVID-19", "90's") are none."""
    found: set[str] = set()
    for match in _NUMBER.finditer(text):
        before, after = text[max(0, match.start() - 2) : match.start()], text[match.end() : match.end() + 2]
        if _joined(before[::-1], "-") or _joined(after, "'\u2019"):
            continue
        amount = before.strip()[-1:] in _CURRENCIES or after.strip()[:1] == "%"
        if amount or sum(char.isdigit() for char in match[0]) > 1:
            found.add(_THOUSANDS.sub("", match[0]))
    return found


def _joined(beside: str, marks: str) -> bool:
    """Whether a number is part of a word, by the two characters beside it, the nearer one first."""
    return _cased(beside[:1]) or beside[:1] == "_" or (beside[:1] in tuple(marks) and _cased(beside[1:]))


def number_parts(text: str) -> set[str]:
    """`numbers`, those in words, and the parts of dates, times and ranges: all that a rule may repeat."""
    wholes = {_THOUSANDS.sub("", number) for number in _NUMBER.findall(text)}
    return wholes.union(*(_PART.split(number) for number in wholes))


def addresses(text: str) -> set[str]:
    """Links, mail addresses, mentions and hashtags, case-folded."""
    if not any(mark in text for mark in ("@", "#", "://", "www.")):
        return set()
    return {match[0].rstrip(".,;:!?)'").casefold() for match in _ADDRESS.finditer(text)}


def _cased(char: str) -> bool:
    return char.lower() != char.upper()


def _spread(texts: Sequence[str], most: int) -> Sequence[str]:
    """At most `most` of the texts, evenly spread."""
    return texts[:: -(-len(texts) // most) or 1]


class Vocabulary:
    """What the texts of a task share: a word that many of them have is about the topic and no detail of one.

    `task` is text whose words are never details: the description, labels and their meanings, the policy.
    """

    def __init__(self, texts: Sequence[str], task: str = "") -> None:
        counted = _spread(texts, MOST_TEXTS)
        self._texts: Counter[str] = Counter()
        self._small: set[str] = set()
        for text in counted:
            found = set(_WORD.findall(text))
            self._small.update(filter(str.islower, found))
            self._texts.update({word.casefold() for word in found} | numbers(text) | addresses(text))
        self._most = max(RARE_TEXTS, int(RARE_SHARE * len(counted)))
        self._most_number = max(RARE_TEXTS, int(RARE_NUMBER_SHARE * len(counted)))
        self._task = {word.casefold() for word in _WORD.findall(task)} | numbers(task) | addresses(task)
        inside = [word.text for text in _spread(texts, 500) for word in words(text) if word.inside]
        cased = [word for word in inside if len(word) > 1 and _cased(word[0])]
        self.capitals_tell_names = sum(map(is_capital, cased)) <= MOST_CAPITALS * len(cased)

    def is_detail(self, word: str) -> bool:
        """Whether a (case-folded) word, number or address is of few texts, and none of the task's own."""
        if word in self._task:
            return False
        number = word[:1].isdecimal() and not any(map(str.isalpha, word))
        return self._texts[word] <= (self._most_number if number else self._most)

    def details(self, found: Iterable[str]) -> set[str]:
        """Those of `found` that are details."""
        return set(filter(self.is_detail, found))

    def never_small(self, word: str) -> bool:
        """Whether no text writes a (case-folded) word in small letters."""
        return word not in self._small
