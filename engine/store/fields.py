"""A row's text: one column as it is, or several columns as the named fields of one text.

Several fields become one text, in the order they are given in, with an empty line between them::

    premise: The contract ends after two years.

    hypothesis: The contract has no end.

An empty field keeps its name, so that all texts are built alike. A line that could be read as the beginning
of a field is escaped as in `engine.fences`: by one backslash behind the first letter of the name
(`h\\ypothesis: …`), and one more where it already looks escaped. So no two rows with different fields have
the same text, blank fields aside, and no field can pass for another (C11).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from engine.config import field_names_problem
from engine.errors import ConfigError
from engine.store.tables import problem_of, text_of, word_of
from engine.store.text_tables import Problem

TextColumns: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""A column, several columns that give their names to the fields, or the column of each field by its name."""

_COLONS = ":\uff1a"


class TextFields:
    """Which columns of a row make up its text, and how. Raises `ConfigError` where they cannot."""

    def __init__(self, text: TextColumns) -> None:
        names = [text] if isinstance(text, str) else list(text)
        columns = list(text.values()) if isinstance(text, Mapping) else names
        if not names:
            raise ConfigError("text: names no column; name at least one")
        problem = field_names_problem(names)
        if not problem and len(set(columns)) < len(columns):
            problem = "a column is named for more than one field"
        if problem:
            raise ConfigError(f"text: {problem}")
        self.columns: tuple[str, ...] = tuple(columns)
        self.names: tuple[str, ...] = tuple(names) if len(names) > 1 else ()
        """The fields' names in the text; none where one column is the text."""
        self._header = _header_of(self.names)

    def read(self, values: Sequence[object]) -> str | Problem:
        """The text of a row from its values in the order of `columns`, or why it has none.

        With several fields a missing one is empty, and a number or truth value is written as a word; one of
        them has to hold something.
        """
        if not self.names:
            return problem_of(self.columns[0], text_of, values[0])
        texts = []
        for column, value in zip(self.columns, values, strict=True):
            text = problem_of(column, _field_of, value)
            if isinstance(text, Problem):
                return text
            texts.append(text)
        if not any(texts):
            return Problem(", ".join(self.columns), "all empty")
        return "\n\n".join(map(self._field, self.names, texts))

    def beginnings(self, text: str) -> tuple[int, ...]:
        """Where the fields of a text that `read` gave end, but for the last: what stands ahead of such a
        place begins every text with the same leading fields. None where one column is the text.
        """
        ends = []
        end = 0
        for name in self.names[1:]:
            # within a field this would be escaped
            end = text.index(f"\n\n{name}:", end) + 2
            ends.append(end)
        return tuple(ends)

    def _field(self, name: str, text: str) -> str:
        if not text:
            return f"{name}:"
        if any(colon in text for colon in _COLONS):
            text = "".join(map(self._escaped, text.splitlines(keepends=True)))
        return f"{name}: {text}"

    def _escaped(self, line: str) -> str:
        found = self._header.match(line)
        return line if found is None else f"{found[0]}\\{line[found.end() :]}"


def _header_of(names: Sequence[str]) -> re.Pattern[str]:
    """What a line begins with that could be read as a field's name, up to the first letter of the name.

    In whatever case, with marks around it (`**Premise:**`, `- premise :`), escaped or not.
    """
    # names begin with a letter or digit, so where the marks ahead of one end is certain
    end = rf"(?:(?![{_COLONS}])[\W_]){{0,4}}[{_COLONS}]"
    known = (rf"{re.escape(name[0])}(?=\\*{re.escape(name[1:])}{end})" for name in names)
    return re.compile(rf"[\W_]*(?:{'|'.join(known)})", re.IGNORECASE)


def _field_of(value: object) -> str:
    """One of several fields; "" where it is missing or blank. Raises `ValueError` for what is no word."""
    if isinstance(value, str):
        return "" if value.isspace() else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return word_of(value)
