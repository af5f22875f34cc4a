"""What the log-probabilities of an answer's tokens say of every label that it could have been.

The tokens of an answer are a path: at each of them a server lists the likeliest others. A label's probability
is that of the path up to where the label leaves it, times that of the token it leaves by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import orjson

NO_CHANCE = -9999.0
"""The logarithm that stands for a probability of 0, as vLLM puts it: JSON has no infinity."""

_UNKNOWN = "\ufffd".encode()  # what servers show of a token that ends within a character
_HOPELESS = -100.0  # less than rounding leaves of a probability
_MOST_REMEMBERED = 4096


def read_label_logprobs(
    content: object, text: str, label: str, choices: tuple[str, ...], *, field: str | None = None
) -> dict[str, float] | None:
    """The natural-log probability of each of `choices`, renormalised over them; None where nothing is told.

    `content` are the tokens in OpenAI's form, each with its `top_logprobs`; `text` is the answer as the
    server gave it, `label` the choice that it means. With `field` it is a JSON object, and the label is the
    text in that field; without, it is the label itself, perhaps after white space or a chain of thought.
    Tokens go by their bytes, so they may end anywhere.

    Of the labels that a listed token could begin, those are meant that no longer listed token begins, for
    that is how tokenizers cut a text. Where that leaves several, they share its probability evenly; where it
    leaves all that are still possible, it counts as the token that was chosen. A label that ends where
    another goes on ("no", "none") is told by what follows it: the other's next letters, or anything else,
    such as the end of the answer. What is not listed counts as 0, as does what a server lists with -9999.
    """
    entries = content if isinstance(content, list) else []
    path = [said.partition(_UNKNOWN)[0] for said, _ in _tokens(entries)]
    if len(path) < len(entries) or not path:
        return None
    whole = b"".join(path)
    start = _start(whole, path[-1], text.encode("utf-8", "replace"))
    head = _head(whole[start:], field)
    if head is None:
        return None
    shares = _shares(_from(start, path, entries), _beginning(choices, head, in_json=field is not None))
    if shares is None or not shares[choices.index(label)]:  # the tokens are not those of the answer
        return None
    total = math.fsum(shares)
    return {
        name: math.log(share / total) if share else NO_CHANCE
        for name, share in zip(choices, shares, strict=True)
    }


def _start(path: bytes, last: bytes, answer: bytes) -> int:
    """Where on the path the answer begins; the last token may be what ends it."""
    ends = (len(path), len(path) - len(last))
    return next((end - len(answer) for end in ends if path[:end].endswith(answer)), 0)


def _head(answer: bytes, field: str | None) -> bytes | None:
    """What stands ahead of the label in an answer; None where a JSON answer has no such field."""
    if field is None:
        return b""
    found = re.match(rb'\s*(\{\s*"%b"\s*:\s*")' % re.escape(field.encode()), answer)
    return None if found is None else found[1]


def _from(start: int, path: Sequence[bytes], entries: Sequence[Any]) -> Iterator[Any]:
    """The entries of the tokens from that place on."""
    place = 0
    for said, entry in zip(path, entries, strict=True):
        if place >= start:
            yield entry
        place += len(said)


# --- the walk -------------------------------------------------------------------------------------


class _Place:
    """A place on the way through an answer: what is said so far, and which of the labels it may become.

    `labels` are whole answers. What follows on which token is remembered, as most answers are much alike.
    """

    __slots__ = ("_after", "_labels", "possible", "said")

    def __init__(self, labels: tuple[bytes, ...], said: bytes, possible: tuple[int, ...]) -> None:
        self._labels = labels
        self.said = said
        self.possible = possible
        self._after: dict[bytes, _Place | None] = {}

    def after(self, token: bytes) -> _Place | None:
        """The place that a token leads to; None where no answer goes on so."""
        try:
            return self._after[token]
        except KeyError:
            if len(self._after) >= _MOST_REMEMBERED:
                self._after.clear()
            said, possible = self._go_on(token)
            found = _Place(self._labels, said, possible) if possible else None
            self._after[token] = found
            return found

    def _go_on(self, token: bytes) -> tuple[bytes, tuple[int, ...]]:
        labels = self._labels
        known, unknown, _ = token.partition(_UNKNOWN)
        said = self.said + known if self.said else known.lstrip()
        longer = tuple(
            n
            for n in self.possible
            if labels[n].startswith(said) and not (unknown and len(labels[n]) == len(said))
        )
        if longer:
            return said, longer
        ended = tuple(n for n in self.possible if said.startswith(labels[n]) and _ends(said, labels[n]))
        return said, (max(ended, key=lambda n: len(labels[n])),) if ended else ()


def _ends(said: bytes, label: bytes) -> bool:
    """Whether the label is over where the text goes on: no letter or digit follows."""
    return not said[len(label) :].decode("utf-8", "replace")[:1].isalnum()


@lru_cache(maxsize=64)
def _beginning(choices: tuple[str, ...], head: bytes, *, in_json: bool) -> _Place:
    """Where all answers begin; in JSON the closing quote is one of them."""
    written = [orjson.dumps(one)[1:] if in_json else one.encode("utf-8", "replace") for one in choices]
    return _Place(tuple(head + one for one in written), b"", tuple(range(len(choices))))


def _shares(entries: Iterator[Any], place: _Place) -> list[float] | None:
    """What of the probability each label has, not yet renormalised; None where no label is told apart."""
    shares = [0.0] * len(place.possible)
    told = alternatives = False
    here = 1.0
    usual = set(place.possible)
    for entry in entries:
        if len(place.possible) == 1:
            break
        chosen, others, any_listed = _step(entry)
        after = place.after(chosen[0])
        if after is None:
            break
        alternatives = alternatives or any_listed
        branches = [(branch, p) for said, p in others if (branch := place.after(said)) is not None]
        longest = dict.fromkeys(after.possible, after.said)
        for branch, _ in branches:
            for label in branch.possible:
                longest[label] = max(branch.said, longest.get(label, b""), key=len)
        onward = chosen[1]
        for branch, p in branches:
            meant = [label for label in branch.possible if longest[label] == branch.said]
            heirs = [label for label in meant if label in usual] or meant or branch.possible
            if len(heirs) == len(place.possible):
                onward += p
                continue
            told = True
            for label in heirs:
                shares[label] += here * p / len(heirs)
        usual = {label for label in usual if longest.get(label) == after.said}
        here *= onward
        place = after
    heirs = [label for label in place.possible if label in usual] or place.possible
    for label in heirs:
        shares[label] += here / len(heirs)
    return shares if alternatives and (told or len(heirs) < len(shares)) else None


# --- tokens ---------------------------------------------------------------------------------------

_Token = tuple[bytes, float]
"""The bytes that a token is, and its probability."""


def _step(entry: Any) -> tuple[_Token, list[_Token], bool]:
    """A token, the others that are listed for its place (hopeless ones left out), and whether any are."""
    ((chosen, p),) = _tokens([entry])
    given = entry.get("top_logprobs")
    listed = given if isinstance(given, list) else []
    others = list(_tokens(listed, above=_HOPELESS))
    # the token itself is listed too; tokens that end within a character may look like it
    likes = [other for other in others if other[0] == chosen]
    if likes:
        others.remove(min(likes, key=lambda other: abs(other[1] - p)))
    return (chosen, p), others, len(listed) > bool(likes)


def _tokens(given: Sequence[Any], *, above: float = -math.inf) -> Iterator[_Token]:
    """The tokens of a list whose log-probability is above that, without what is none."""
    for one in given:
        try:
            logprob = one["logprob"]
            if above < logprob <= 1e-3:
                said, shown = one.get("bytes"), one["token"]
                # a number would be taken for a size
                known = bytes(said) if said and isinstance(said, list) else None
                yield known or shown.encode("utf-8", "replace"), min(math.exp(logprob), 1.0)
        except (AttributeError, LookupError, TypeError, ValueError):
            continue
