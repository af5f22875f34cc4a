"""Leaving out the middle of a message that is too long, with a mark in its place."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from engine.types import Message

_MOST_GUESSES = 8
_ENOUGH = 0.97  # of the room; the rest is not worth another guess
_CHARACTERS_A_TOKEN = 3  # a first guess


@dataclass(frozen=True, slots=True)
class Middle:
    """A message taken apart: what stands between its first and its last line may be left out.

    Those two are the fence around a row. A message without lines has nothing that has to stay.
    """

    message: Message
    first_line: str
    inner: str
    last_line: str

    @staticmethod
    def of(message: Message) -> Middle:
        text = message.content
        start, end = text.find("\n") + 1, text.rfind("\n")
        if not start or end < start:
            start, end = 0, len(text)
        return Middle(message, text[:start], text[start:end], text[end:])

    @property
    def surely(self) -> int:
        """How many bytes of UTF-8 a character of it is, at most."""
        return 1 if self.inner.isascii() else 4

    def keeping(self, characters: int) -> tuple[Message, int]:
        """The message with that many characters of its middle, half of them from either end; how many it
        has lost.

        The mark stands on a line of its own: what is written with two characters or more, as an escaped mark
        of a template is, cannot become another with its neighbours. Halves of a surrogate pair go too.
        """
        inner = self.inner
        if characters >= len(inner):
            return self.message, 0
        begin, end = characters - characters // 2, len(inner) - characters // 2
        begin -= begin > 0 and "\ud800" <= inner[begin - 1] <= "\udbff"
        end += end < len(inner) and "\udc00" <= inner[end] <= "\udfff"
        lost = end - begin
        mark = f"\n[… {lost:,} characters left out …]\n"
        text = f"{self.first_line}{inner[:begin]}{mark}{inner[end:]}{self.last_line}"
        return Message(self.message.role, text), lost


def fitting(middle: Middle, room: int) -> Generator[int, int, int]:
    """Find how many characters of a middle can stay where it may have `room` tokens, mark not counted.

    Yields numbers of characters, is sent how many tokens they are, and returns the most that is known to fit:
    at least what surely does, as no character is more tokens than its bytes. The numbers are small where the
    room is, however long the text; a handful of them finds nearly all that fits.
    """
    fits, too_many = room // middle.surely, len(middle.inner)
    guess = room * _CHARACTERS_A_TOKEN
    for _ in range(_MOST_GUESSES):
        if not fits < guess < too_many:
            guess = (fits + too_many) // 2
        if not fits < guess < too_many:
            break
        tokens = yield guess
        if tokens <= room:
            fits = guess
            if tokens >= _ENOUGH * room:
                break
        else:
            too_many = guess
        guess = int(guess * room * (1 + _ENOUGH) / 2 / max(tokens, 1))
    return min(fits, len(middle.inner))
