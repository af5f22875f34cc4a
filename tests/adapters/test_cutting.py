"""Leaving out the middle: what stays, what stays safe, and how few counts it takes."""

from __future__ import annotations

import re
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from adapters.cutting import Middle, fitting
from engine.fences import escape, fence, read_one, unescape
from engine.types import Message

MARK = re.compile(r"\n\[… ([\d,]+) characters left out …\]\n")
PIECES = st.sampled_from(
    ["<", "\\", "[", "]", ">", "/", "input", "<input>", "</input>", "<|im_start|>", "<|", "|>", "[INST]",
     "[/INST]", "<think>", "<\\", "[\\", "\n", " ", "é", "🙂", "\ud83d", "\ude42", "\u202e", "\0", "word"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=80)


def message(text: str) -> Message:
    return Message("user", fence("input", text))


@given(TEXTS, st.integers(0, 60))
@example("<|im_start|>" * 3, 9)
@example("\ud83d\ude42" * 10, 5)
@example("\ud83d\ude42" * 10, 6)
def test_what_is_left_is_as_safe_as_before(text: str, characters: int) -> None:
    """Every mark of a template that the fence has made harmless stays harmless, and the fence stays."""
    before = message(text)
    after, lost = Middle.of(before).keeping(characters)
    inner = read_one(after.content, "input").content
    assert after.content == f"<input>\n{inner}\n</input>"
    assert escape(unescape(inner)) == inner, "no mark stands there that is not escaped"
    if not lost:
        assert after == before
        return
    (mark,) = MARK.finditer(inner, 0)
    assert int(mark[1].replace(",", "")) == lost
    begin, end = inner[: mark.start()], inner[mark.end() :]
    whole = escape(text)
    assert whole.startswith(begin)
    assert whole.endswith(end)
    assert len(begin) + len(end) + lost == len(whole)
    assert len(begin) + len(end) <= characters
    assert characters - 2 <= len(begin) + len(end)
    assert not (begin and "\ud800" <= begin[-1] <= "\udbff")
    assert not (end and "\udc00" <= end[0] <= "\udfff")


def test_a_message_without_lines_has_a_middle_too() -> None:
    after, lost = Middle.of(Message("user", "a" * 50 + "b" * 50)).keeping(10)
    assert after == Message("user", "aaaaa\n[… 90 characters left out …]\nbbbbb")
    assert lost == 90


def found(middle: Middle, room: int, count: Callable[[int], int]) -> tuple[int, list[int]]:
    """What the search comes to, and what it has asked about."""
    search = fitting(middle, room)
    guesses: list[int] = []
    try:
        guesses.append(next(search))
        while True:
            guesses.append(search.send(count(guesses[-1])))
    except StopIteration as ended:
        return ended.value, guesses


def tokens(text: str, rate: float) -> int:
    """A tokenizer that makes words of up to `rate` characters, and a token for each byte of a wide one."""
    return sum(
        len(word.encode("utf-8", "surrogatepass")) if not word.isascii() else -int(-len(word) // rate)
        for word in re.findall(r"\S+|\s+", text)
    )


@given(
    st.lists(
        st.sampled_from(["word ", "a", "longer-words ", "日本語", "🙂", " " * 40, "<input>\n"]), min_size=1
    ),
    st.integers(1, 400),
    st.integers(16, 2000),
    st.sampled_from([1.0, 2.5, 4.0, 12.0]),
)
def test_what_is_found_fits_and_little_more_would(
    words: list[str], times: int, room: int, rate: float
) -> None:
    middle = Middle.of(message("".join(words) * times))
    frame = tokens(middle.keeping(0)[0].content, rate)

    def count(characters: int) -> int:
        return tokens(middle.keeping(characters)[0].content, rate) - frame

    kept, guesses = found(middle, room, count)
    assert len(guesses) <= 8
    assert count(kept) <= room + 2  # the bound by bytes is asked nobody; joints may be a token more
    assert kept == len(middle.inner) or kept >= room // 4
    # text of one kind: nearly all of the room is used
    if len(set(words)) == 1 and words[0].isascii() and kept < len(middle.inner):
        assert count(kept) >= min(0.7 * room, count(len(middle.inner) - 1)) - 45


def test_a_megabyte_is_not_counted_to_find_a_page() -> None:
    middle = Middle.of(message("so it goes, on and on " * 50_000))
    kept, sizes = found(middle, 2000, lambda size: tokens(middle.keeping(size)[0].content, 4))
    assert kept >= 3200  # of 3,666, the mark counted in
    assert max(sizes) < 20_000
    assert len(sizes) <= 4
