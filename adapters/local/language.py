"""The controlled English that the local models write and read.

    If the text says "a", "b" (strong signs) or "c d" (weak sign), but not "e", choose LABEL.
    If the text has no marked wording, choose LABEL.
    Where no sign applies, choose LABEL.
    Where signs are equally strong, prefer LABEL, then LABEL.

Any person can read it, and the student needs nothing else. Everything that is not one of these sentences is
ignored: a prompt may hold prose for other students.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GRADES: Mapping[str, int] = {"strong": 3, "clear": 2, "weak": 1}
"""What a matched sign adds to the score of its label."""

_GRADE_NAMES = {grade: name for name, grade in GRADES.items()}
_OPENING = "If the text "


@dataclass(frozen=True)
class Clause:
    """One sentence: signs of a label, with their grades 1 to 3, and the cues that silence it.

    Without signs it stands for texts in which nothing was found.
    """

    label: str
    signs: Mapping[str, int] = field(default_factory=dict)
    exceptions: tuple[str, ...] = ()

    def text(self) -> str:
        """The sentence. Reading it back gives an equal clause (signs by grade, then as they stand)."""
        if not self.signs:
            return f"{_OPENING}has no marked wording, choose {self.label}."
        groups = []
        for grade, name in sorted(_GRADE_NAMES.items(), reverse=True):
            cues = [cue for cue, given in self.signs.items() if given == grade]
            if cues:
                groups.append(f"{_quoted(cues)} ({name} sign{'s' if len(cues) > 1 else ''})")
        exception = f", but not {_quoted(self.exceptions)}" if self.exceptions else ""
        return f"{_OPENING}says {_listed(groups)}{exception}, choose {self.label}."


@dataclass(frozen=True)
class General:
    """What holds ahead of all clauses: the label of texts without signs, and who wins a draw."""

    default: str | None = None
    preference: tuple[str, ...] = ()

    def text(self) -> str:
        """The sentences, one a line."""
        parts = [
            "A strong sign counts three, a clear sign two, a weak sign one. Count each sign once for its"
            " label; the label with the highest sum wins."
        ]
        if len(self.preference) > 1:
            parts.append(f"Where signs are equally strong, prefer {', then '.join(self.preference)}.")
        if self.default is not None:
            parts.append(f"Where no sign applies, choose {self.default}.")
        return "\n".join(parts)


def _quoted(cues: Sequence[str]) -> str:
    return _listed([f'"{cue}"' for cue in cues])


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


class Reader:
    """Reads sentences about a fixed set of labels. Linear in the length of the text."""

    def __init__(self, labels: Sequence[str]) -> None:
        # longest first: a label may begin with another one
        names = "|".join(re.escape(label) for label in sorted(labels, key=lambda one: (-len(one), one)))
        self._mark = re.compile(
            rf'"(?P<cue>[^"\n]*)"|\((?P<grade>strong|clear|weak) signs?\)|(?P<but>, but not )'
            rf"|, choose (?P<label>{names})\.|(?P<end>\n|{_OPENING})"
        )
        self._default = re.compile(rf"Where no sign applies, choose ({names})\.")
        self._preference = re.compile(
            rf"Where signs are equally strong, prefer ((?:{names})(?:, then (?:{names}))*)\."
        )
        self._labels = re.compile(names)

    def clauses(self, text: str) -> list[Clause]:
        """The clauses in `text`, in order."""
        found = []
        at = text.find(_OPENING)
        while at >= 0:
            at += len(_OPENING)
            clause, end = self._clause(text, at)
            if clause is not None:
                found.append(clause)
            at = text.find(_OPENING, end)
        return found

    def _clause(self, text: str, start: int) -> tuple[Clause | None, int]:
        """The clause whose opening ends at `start`, and where to read on."""
        if not text.startswith(("says ", "has no marked wording,"), start):
            return None, start
        signs: dict[str, int] = {}
        pending: list[str] = []
        exceptions: list[str] | None = None
        for mark in self._mark.finditer(text, start):
            if mark["cue"] is not None:
                cue = " ".join(mark["cue"].lower().split())
                if cue:
                    (pending if exceptions is None else exceptions).append(cue)
            elif mark["grade"]:
                for cue in pending:
                    signs[cue] = max(GRADES[mark["grade"]], signs.get(cue, 0))
                pending = []
            elif mark["but"]:
                exceptions = []
            elif mark["label"]:
                for cue in pending:  # a sign without a grade: somebody else's hand
                    signs.setdefault(cue, GRADES["clear"])
                return Clause(mark["label"], signs, tuple(dict.fromkeys(exceptions or ()))), mark.end()
            else:
                return None, mark.start()
        return None, len(text)

    def general(self, text: str) -> General:
        """The last default and the last order of preference in `text`."""
        default = self._default.findall(text)
        preference = self._preference.findall(text)
        order = tuple(dict.fromkeys(self._labels.findall(preference[-1]))) if preference else ()
        return General(default[-1] if default else None, order)
