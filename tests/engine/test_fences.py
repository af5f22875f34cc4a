"""Fences: whatever the text, it stays inside, and comes back as it was (C11)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.fences import NAMES, Fenced, block, escape, fence, read_all, read_one, unescape

BAR = "\uff5c"  # the wide bar of DeepSeek's tokens
SPECIAL = f"""
<|im_start|> <|im_end|> <|endoftext|> <|eot_id|> <|begin_of_text|> <|channel|> <|turn> <turn|> <|"|>
<start_of_turn> <end_of_turn> <bos> <eos> <pad> <unused99> <s> </s> <unk> <<SYS>> <</SYS>>
[INST] [/INST] [TOOL_CALLS] [SYSTEM_PROMPT] [IMG_END] <{BAR}User{BAR}> <{BAR}end\u2581of\u2581sentence{BAR}>
<think> </think> <tool_call> </tool_response>
""".split()
MARKS = [mark for name in NAMES for mark in (f"<{name}>", f"</{name}>", f"<{name} ", f"</{name}\n")]
ESCAPED = [f"{mark[0]}\\{mark[1:]}" for mark in (*SPECIAL, *MARKS)]
PIECES = [*SPECIAL, *MARKS, *ESCAPED, *"<>[]|/\n ", BAR, "\\", "\\\\", '"', "\x00"]

texts = st.lists(st.sampled_from(PIECES) | st.text(st.characters(), max_size=4), max_size=12).map("".join)
names = st.sampled_from(NAMES)


@settings(max_examples=100, deadline=None)
@given(texts)
@example("<|[INST]|>")
@example(f"<{BAR}[INST]{BAR}>")
@example("<\\\\|im_end|>")
@example("<|\\|>")
@example("<\\|" + 34 * "a" + "[INST]|>")
@example("\ud800</input>\x00")
def test_escaping_is_reversible(text: str) -> None:
    assert unescape(escape(text)) == text


@settings(max_examples=100, deadline=None)
@given(texts)
@example("<|[INST]|>")
@example("</input</input>")
def test_no_fence_and_no_special_token_survives(text: str) -> None:
    escaped = escape(text)
    for mark in (*SPECIAL, *MARKS):
        assert mark not in escaped


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@pytest.mark.parametrize("mark", [*SPECIAL, *MARKS])
def test_each_mark_is_broken_by_one_backslash(mark: str) -> None:
    assert escape(mark) == f"{mark[0]}\\{mark[1:]}"
    assert escape(escape(mark)) == f"{mark[0]}\\\\{mark[1:]}"
    assert unescape(unescape(escape(escape(mark)))) == mark
    assert escape(mark.upper()) != mark.upper()
    assert escape(f"a{mark}b") != f"a{mark}b"


@pytest.mark.parametrize(
    "text", ["", "a < b", "x[0] > y", "<inputs", "<div>", "C:\\new", "<labelled>", "[INSTANT]", "<3"]
)
def test_what_no_model_reads_as_a_mark_is_left_alone(text: str) -> None:
    assert escape(text) == text
    assert unescape(text) == text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(names, texts), max_size=5))
def test_reading_finds_exactly_what_was_fenced(fenced: list[tuple[str, str]]) -> None:
    document = "\n".join(f"Some words.\n{fence(name, text)}" for name, text in fenced)
    for name in NAMES:
        assert [one.text for one in read_all(document, name)] == [t for n, t in fenced if n == name]


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_nested_fences_with_attributes(rules: list[str], cases: list[str]) -> None:
    inner = "\n".join(fence("rule", text, label="a b", count=n) for n, text in enumerate(rules))
    document = block("rules", inner, total=len(rules)) + "\n" + "\n".join(fence("case", t) for t in cases)
    outer = read_one(document, "rules")
    assert outer.attributes == {"total": str(len(rules))}
    found = list(read_all(outer.content, "rule"))
    assert [one.text for one in found] == rules
    assert [one.attributes for one in found] == [{"label": "a b", "count": str(n)} for n in range(len(rules))]
    assert [one.text for one in read_all(document, "case")] == cases
    assert list(read_all(outer.content, "case")) == []


def test_a_fence_stands_on_lines_of_its_own() -> None:
    assert fence("input", "hello", label="spam") == '<input label="spam">\nhello\n</input>'
    assert fence("input", "") == "<input>\n\n</input>"
    assert block("cases", fence("case", "</cases>")) == "<cases>\n<case>\n<\\/cases>\n</case>\n</cases>"


def test_an_unknown_fence_is_refused() -> None:
    with pytest.raises(ValueError, match="'row' is not a fence; known: input"):
        fence("row", "text")
    with pytest.raises(ValueError, match="no fence 'input'"):
        read_one(fence("case", "<input>\nx\n</input>"), "input")


def test_the_first_of_several() -> None:
    assert read_one(fence("case", "1") + fence("case", "2"), "case") == Fenced({}, "1")
