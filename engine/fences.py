"""Fences around untrusted text (C11).

A template puts each piece of data between `<name>` and `</name>` on lines of their own. Whatever in the text
could be read as a fence or as a special token of a chat template is escaped by one backslash after its first
character; text that already looks escaped gets one more, so `unescape(escape(text)) == text` for every text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# The names of all fences, in templates and in the student's request.
NAMES = (
    "input", "text", "rule", "rules", "case", "cases", "prompt", "instruction", "instructions", "policy",
    "finding", "answer", "label", "nearby",
)  # fmt: skip

_FENCE = rf"<(\\*)(/?(?:{'|'.join(NAMES)})\b)"
# <|im_start|> and kin (Gemma closes or opens some with one bar), DeepSeek's wide bars, turns, sentence and
# padding marks, reasoning and tool calls, Llama's <<SYS>>
_SPECIAL = (
    r"<(\\*)(\|[^|<>\s]{1,40}\|?>|[^|<>\s]{1,40}\|>|\uff5c[^<>\s]{1,40}\uff5c>|</?SYS>>"
    r"|(?:(?:start|end)_of_(?:turn|image)|bos|eos|pad|unk|mask|unused\d+|/?s"
    r"|/?think|/?tool_call|/?tool_response)>)"
)
_ANGLES = re.compile(f"{_FENCE}|{_SPECIAL}", re.IGNORECASE)
# Llama's and Mistral's
_BRACKETS = re.compile(
    r"\[(\\*)(/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID|ARGS"
    r"|IMG|IMG_BREAK|IMG_END|THINK)\])",
    re.IGNORECASE,
)


def escape(text: str) -> str:
    """Make `text` safe to stand in a fence. `unescape` gives it back, whatever it was."""
    # one kind after the other: a bracket may stand inside a mark, as in <|[INST]|>
    if "[" in text:
        text = _BRACKETS.sub(_mark, text)
    return _ANGLES.sub(_mark, text) if "<" in text else text


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    if "\\" not in text:
        return text
    return _BRACKETS.sub(_unmark, _ANGLES.sub(_unmark, text))


def _mark(match: re.Match[str]) -> str:
    return f"{match[0][0]}\\{match[0][1:]}"


def _unmark(match: re.Match[str]) -> str:
    return match[0][0] + match[0][2:] if match[0][1] == "\\" else match[0]


def fence(name: str, text: str, /, **attributes: str | int) -> str:
    """Untrusted `text` in a fence. Attributes are the caller's own words (labels, counts), never data."""
    return block(name, escape(text), **attributes)


def block(name: str, content: str, /, **attributes: str | int) -> str:
    """A fence around content that is already safe: other fences, or the project's own words."""
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a fence; known: {', '.join(NAMES)}")
    marks = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{name}{marks}>\n{content}\n</{name}>"


@dataclass(frozen=True, slots=True)
class Fenced:
    """What stands in one fence: its attributes, its raw content and, for a leaf, the original text."""

    attributes: Mapping[str, str]
    content: str

    @property
    def text(self) -> str:
        return unescape(self.content)


_ATTRIBUTE = re.compile(r'([a-z_]+)="([^"]*)"')


def read_all(document: str, name: str) -> Iterator[Fenced]:
    """Every fence called `name` in a rendered document, outermost first, in order."""
    for match in re.finditer(rf"<{name}((?: [a-z_]+=\"[^\"]*\")*)>\n(.*?)\n</{name}>", document, re.DOTALL):
        yield Fenced(dict(_ATTRIBUTE.findall(match[1])), match[2])


def read_one(document: str, name: str) -> Fenced:
    """The first fence called `name`. Raises `ValueError` where there is none."""
    for fenced in read_all(document, name):
        return fenced
    raise ValueError(f"no fence {name!r} in this text")
