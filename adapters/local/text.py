"""Words and cues: how the local models read a text.

A *cue* is one to `MAX_WORDS` consecutive tokens joined by single spaces. Tokens hold neither quotes nor white
space, so a cue can be quoted in a rule and read back whatever the data are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_WORDS = 2
"""The longest cue that is fitted. Rules written by others may quote longer ones."""

NUMBER, LINK, USER = "[number]", "[link]", "@user"

_TOKEN = re.compile(
    r"\w+(?:'\w+)*"  # words with their apostrophes: first, as most tokens are words
    r"|@\w+"
    r"|<(?:url|email|phone|user|number)>|\[(?:number|link)\]"  # masks that data sets and rules come with
    r"|[\u2600-\u27bf\U0001f300-\U0001faff]"  # pictographs
)
_GAPS = {code: " " for code in range(128) if not re.match(r"[\w'@<>\[\]]", chr(code))}
"""ASCII characters that are part of no token."""
_LINK = re.compile(r"(?:https?://|www\.)[^\s\"]+")
_MASKS = {"<url>": LINK, "<email>": LINK, "<phone>": NUMBER, "<user>": USER, "<number>": NUMBER}
_LONGEST_TOKEN = 40


def tokenize(text: str) -> list[str]:
    """The tokens of `text`, lower-cased; links, user names and numbers are masked."""
    text = text.lower().replace("\u2019", "'")
    if "://" in text or "www." in text:
        text = _LINK.sub(LINK, text)
    if not text.isascii():
        return [word if word.isalpha() else _masked(word) for word in _TOKEN.findall(text)]
    # the same tokens, in half the time: most pieces of plain text are words already
    tokens: list[str] = []
    for piece in text.translate(_GAPS).split():
        if piece.isalpha():
            tokens.append(piece)
        else:
            tokens += map(_masked, _TOKEN.findall(piece))
    return tokens


def _masked(word: str) -> str:
    if word[0] == "@":
        return USER
    if word.isdecimal():
        return NUMBER
    return _MASKS.get(word, word)


def cues_of(text: str) -> set[str]:
    """Every cue in `text`. Tokens too long to be quoted usefully take no part."""
    tokens = tokenize(text)
    return set(_cues(tokens))


def _cues(tokens: list[str]) -> Iterator[str]:
    usable = [len(token) <= _LONGEST_TOKEN for token in tokens]
    for size in range(1, MAX_WORDS + 1):
        for start in range(len(tokens) - size + 1):
            if all(usable[start : start + size]):
                yield " ".join(tokens[start : start + size])


def contains(longer: str, shorter: str) -> bool:
    """True where the tokens of `shorter` stand in a row in `longer`."""
    return f" {shorter} " in f" {longer} "
