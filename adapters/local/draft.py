"""A prompt under repair: its clauses by instruction, and the edits that changing them comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapters.local.language import Clause, Reader
from engine.fences import Fenced
from engine.tokens import estimate_tokens

NEW = ""
"""The id of instructions that do not exist yet: those that an edit adds."""


@dataclass(frozen=True)
class Placed:
    """A clause and where it stands; `instruction` is None in an instruction that cannot be edited."""

    instruction: str | None
    number: int
    clause: Clause


class Draft:
    """The instructions of one resolution request.

    Only instructions that consist of clauses alone are edited: rewriting any other would lose its prose. At
    most `max_edits` instructions are touched. New signs of a label go into the instruction titled "Further
    signs of LABEL", which is added when needed.
    """

    def __init__(self, instructions: Sequence[Fenced], reader: Reader, max_edits: int) -> None:
        self._texts = {one.attributes["id"]: one.text for one in instructions}
        self._titles = {one.attributes["id"]: one.attributes.get("title", "") for one in instructions}
        self._fixed: list[Clause] = []
        # a clause that lost its last sign is None: places keep their numbers, and a clause without signs
        # would come to mean texts that have none
        self._clauses: dict[str, list[Clause | None]] = {}
        for name, text in self._texts.items():
            clauses = reader.clauses(text)
            if clauses and _written(clauses) == text:
                self._clauses[name] = list(clauses)
            else:
                self._fixed += clauses
        self._general = reader.general(self.text)
        self._new_default: str | None = None
        self._max_edits = max_edits
        self._touched: set[str] = set()

    @property
    def text(self) -> str:
        """The instructions as the student sees them, before any edit."""
        return "\n".join(self._texts.values())

    def tokens(self) -> int:
        """About how long the instructions are now."""
        present = self._texts | {name: _written(clauses) for name, clauses in self._clauses.items()}
        return sum(estimate_tokens(text) + 8 for text in present.values() if text)

    def placed(self) -> list[Placed]:
        """All clauses, in the order of the prompt; those that cannot be edited first."""
        fixed = [Placed(None, number, clause) for number, clause in enumerate(self._fixed)]
        return fixed + [
            Placed(name, number, clause)
            for name, clauses in self._clauses.items()
            for number, clause in enumerate(clauses)
            if clause is not None
        ]

    def set_grade(self, label: str, cue: str, grade: int) -> bool:
        """Give a sign of `label` another grade (0 removes it), or add it.

        Returns False, and changes nothing, where that would be one edit too many.
        """
        holders = [
            name
            for name, clauses in self._clauses.items()
            if any(one is not None and one.label == label and cue in one.signs for one in clauses)
        ]
        home = self._home(label)
        if not self._touch(holders or [home]):
            return False
        for name in holders:
            self._clauses[name] = [_regraded(one, label, cue, grade) for one in self._clauses[name]]
        if not holders:
            clauses = self._clauses.setdefault(home, [Clause(label)])
            for at, one in enumerate(clauses):
                if one is not None and one.label == label:
                    clauses[at] = replace(one, signs={**one.signs, cue: grade})
                    break
        return True

    def add_exception(self, place: Placed, cue: str) -> bool:
        """Let `cue` silence a clause; False where it cannot be edited or that is one edit too many."""
        if place.instruction is None:
            return False
        clauses = self._clauses[place.instruction]
        old = clauses[place.number]
        if old is None or not self._touch([place.instruction]):
            return False
        clauses[place.number] = replace(old, exceptions=(*old.exceptions, cue))
        return True

    def set_default(self, label: str) -> bool:
        """Make `label` that of texts without signs; False where that is one edit too many."""
        if len(self._touched) >= self._max_edits:
            return False
        self._new_default = label
        return True

    def edits(self, reason: str) -> list[dict[str, str]]:
        """The edits, as the schema resolution has them: those of present instructions first."""
        edits = []
        for name in sorted(self._touched - {NEW}):
            text = _written(self._clauses[name])
            edits.append(_edit("replace" if text else "drop", name, "", text, reason))
        edits += [
            _edit("add", NEW, _home_title(new.label), new.text(), reason)
            for new in self._clauses.get(NEW, [])
            if new is not None
        ]
        if self._new_default is not None:
            wanted = replace(self._general, default=self._new_default).text()
            present = next((name for name, text in self._texts.items() if text == self._general.text()), None)
            if present is None:
                edits.append(_edit("add", NEW, "General rules", wanted, reason))
            else:
                edits.append(_edit("replace", present, "", wanted, reason))
        return edits

    def _home(self, label: str) -> str:
        for name, clauses in self._clauses.items():
            if self._titles.get(name) == _home_title(label) and any(
                one is not None and one.label == label for one in clauses
            ):
                return name
        return NEW

    def _touch(self, names: Sequence[str]) -> bool:
        touched = self._touched.union(names)
        if len(touched) > self._max_edits:
            return False
        self._touched = touched
        return True


def _home_title(label: str) -> str:
    return f"Further signs of {label}"


def _written(clauses: Sequence[Clause | None]) -> str:
    return "\n".join(clause.text() for clause in clauses if clause is not None)


def _regraded(clause: Clause | None, label: str, cue: str, grade: int) -> Clause | None:
    if clause is None or clause.label != label or cue not in clause.signs:
        return clause
    signs = {one: grade if one == cue else given for one, given in clause.signs.items()}
    signs = {one: given for one, given in signs.items() if given}
    return replace(clause, signs=signs) if signs else None


def _edit(action: str, instruction: str, title: str, text: str, reason: str) -> dict[str, str]:
    return {"action": action, "instruction": instruction, "title": title, "text": text, "reason": reason}
