"""A prompt under repair: its clauses by instruction, and the edits that came of changing them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from adapters.local.language import Clause, Reader
from engine.fences import Fenced

_PIECE = re.compile(r"\w{1,6}|[^\w\s]")


class Draft:
    def __init__(self, instructions: Sequence[Fenced], reader: Reader, gold: str, predicted: str, max_edits: int):
        self._reader = reader
        self._texts = {one.attributes["id"]: one.text for one in instructions}
        self._titles = {one.attributes["id"]: one.attributes.get("title", "") for one in instructions}
        self._clauses: dict[str, list[Clause]] = {}
        for name, text in self._texts.items():
            clauses = reader.clauses(text)
            if clauses and "\n".join(c.text() for c in clauses) == text:
                self._clauses[name] = clauses
        self._gold, self._predicted, self._max_edits = gold, predicted, max_edits
        self._new: dict[str, int] = {}
        self._touched: set[str] = set()
        self._home = next(
            (n for n, t in self._titles.items() if t == self._further(gold) and n in self._clauses), "")

    @staticmethod
    def _further(label: str) -> str:
        return f"Further signs of {label}"

    def text(self) -> str:
        return "\n".join(self._texts.values())

    def tokens(self) -> int:
        return sum(len(_PIECE.findall("\n".join(c.text() for c in cs))) + 8 for cs in self._clauses.values()) + 6 * len(self._new)

    def grades(self, label: str) -> dict[str, int]:
        best: dict[str, int] = dict(self._new) if label == self._gold else {}
        for clauses in self._clauses.values():
            for c in clauses:
                if c.label == label:
                    for cue, g in c.signs.items():
                        best[cue] = max(g, best.get(cue, 0))
        return best

    def _holders(self, kind: str, cue: str) -> list[str]:
        label = self._gold if kind == "raise" else self._predicted
        return [n for n, cs in self._clauses.items() if any(c.label == label and cue in c.signs for c in cs)]

    def _targets(self, kind: str, cue: str) -> list[str]:
        holders = self._holders(kind, cue)
        if kind == "lower":
            return holders
        if cue in self._new:
            return [self._home]
        return holders[:1] or [self._home]

    def can(self, kind: str, cue: str) -> bool:
        return len(self._touched | set(self._targets(kind, cue))) <= self._max_edits

    def take(self, kind: str, cue: str, amount: int) -> str:
        targets = self._targets(kind, cue)
        self._touched |= set(targets)
        label = self._gold if kind == "raise" else self._predicted
        old = self.grades(label).get(cue, 0)
        new = old + amount if kind == "raise" else old - amount
        holders = [t for t in targets if t in self._clauses and any(cue in c.signs for c in self._clauses[t] if c.label == label)]
        if not holders:
            if self._home:
                cs = self._clauses[self._home]
                i = next(i for i, c in enumerate(cs) if c.label == label)
                cs[i] = replace(cs[i], signs={**cs[i].signs, cue: new})
            else:
                self._new[cue] = new
        for name in holders:
            cs = []
            for c in self._clauses[name]:
                if c.label == label and cue in c.signs:
                    signs = dict(c.signs)
                    if kind == "raise":
                        signs[cue] = new
                    elif new == 0:
                        del signs[cue]
                    else:
                        signs[cue] = min(signs[cue], new)
                    if not signs:
                        continue
                    c = replace(c, signs=signs)
                cs.append(c)
            self._clauses[name] = cs
        return f'"{cue}" {old}->{new} for {label}'

    def edits(self, reason: str) -> list[dict[str, str]]:
        out = []
        for name in sorted(self._touched - {""}):
            cs = self._clauses[name]
            text = "\n".join(c.text() for c in cs)
            out.append(dict(action="replace" if cs else "drop", instruction=name, title="", text=text, reason=reason))
        if self._new:
            out.append(dict(action="add", instruction="", title=self._further(self._gold), text=Clause(self._gold, self._new).text(), reason=reason))
        return out
