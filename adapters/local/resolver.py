"""Conflict resolution by the local teacher: a few signs, grades and exceptions changed where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from adapters.local.draft import Draft
from adapters.local.fit import LocalFit
from adapters.local.language import Reader
from adapters.local.student import Rulebook
from adapters.local.text import cues_of
from engine.fences import read_all, read_one

MAX_EDITS = 4
MAX_CHANGES = 40
MAX_TOKENS = 1800
MIN_Z = 1.5
MIN_ROWS = 0.3
_SOFTNESS = 1.0
_KEPT_TEXTS = 100_000


@dataclass(frozen=True)
class Step:
    """One change to the draft: raise or add a sign of the gold label, lower one of the predicted, or add an
    exception to one of its clauses."""

    kind: str
    cue: str
    amount: int
    clause: tuple[int, int] = (0, 0)


class Resolver:
    """Answers the schema resolution, by coordinate ascent on the cases that it is shown.

    The cases are all of one confusion, gold g called p. With m = score(g) - score(p), each case has value
    v·sigmoid(m): v > 0 where g is right and v < 0 where p is. A step that raises m where a cue is present gains the sum of v·(sigmoid(m + amount) - sigmoid(m)) over those
    cases. Steps are taken while they gain clearly: `MIN_Z` standard deviations of the same sum under random signs, and
    at least as much as `MIN_ROWS` rows of g put right.

    v weighs rows by what they move macro-F1: with F1 near one half, putting a row of g right adds .75/n_g + .25/n_p and
    taking one from p costs .75/n_p + .25/n_g.
    """

    def __init__(self, fit: LocalFit) -> None:
        self._fit = fit
        self._reader = Reader(fit.labels)
        self._cue_ids = lru_cache(maxsize=_KEPT_TEXTS)(self._read_cues)

    def _read_cues(self, text: str) -> npt.NDArray[np.int32]:
        index = self._fit.index
        return np.array(sorted(index[cue] for cue in cues_of(text) if cue in index), dtype=np.int32)

    def answer(self, user: str) -> dict[str, object]:
        """The content of a ResolutionAnswer. Raises `ValueError` or `KeyError` where a fence is missing."""
        prompt = read_one(user, "prompt").content
        shown = read_one(user, "cases")
        gold, predicted = shown.attributes["label"], shown.attributes["predicted"]
        cases = [(case.attributes["label"], case.text) for case in read_all(shown.content, "case")]
        labels = self._fit.labels
        if gold not in labels or predicted not in labels:
            raise ValueError("the confusion is of labels that the fit does not know")
        draft = Draft(list(read_all(prompt, "instruction")), self._reader, gold, predicted, MAX_EDITS)
        search = _Search(self._fit, draft, gold, predicted, cases, [self._cue_ids(text) for _, text in cases])
        changes = search.run()
        edits = draft.edits(f"{gold} was taken for {predicted}")
        what = "; ".join(changes) if changes else "the failures cannot be told from the successes"
        return {"analysis": what, "edits": edits}


class _Search:
    def __init__(self, fit, draft, gold, predicted, cases, cue_ids) -> None:
        self._fit, self._draft = fit, draft
        self._gold, self._predicted = gold, predicted
        g, p = fit.labels.index(gold), fit.labels.index(predicted)
        n = np.maximum(np.array(fit.rows, dtype=np.float64), 1.0)
        self._right = 0.75 / n[g] + 0.25 / n[p]
        self._wrong = 0.75 / n[p] + 0.25 / n[g]
        is_gold = np.array([label == gold for label, _ in cases])
        self._values = np.where(is_gold, self._right, -self._wrong)
        flat = np.concatenate(cue_ids) if cue_ids else np.zeros(0, dtype=np.int32)
        ends = np.cumsum([0, *map(len, cue_ids)])
        held = csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(cases), len(fit.cues)))
        self._held = held.T.tocsr()  # cue by case
        hidden_p = np.maximum(fit.counts[:, p] - self._held @ (~is_gold).astype(float), 0)
        others = [r for r in range(len(n)) if r not in (g, p)]
        hidden_r = (fit.counts[:, others] * (0.75 / n[others])).sum(axis=1)
        self._hidden = {w: HID_P * hidden_p * self._wrong * (_sig(HID_PM + w) - _sig(HID_PM)) for w in (1, 2, 3)}
        self._third_up = {w: HID_R * hidden_r * (_sig(HID_RM + w) - _sig(HID_RM)) for w in (1, 2, 3)}
        self._odds_ok = fit.counts[:, g] / n[g] > fit.counts[:, p] / n[p]
        rulebook = Rulebook(draft.text(), fit.labels)
        grades = np.array([[draft.grades(label).get(cue, 0) for label in (gold, predicted)] for cue in ()]) if 0 else None
        has, against = draft.grades(gold), draft.grades(predicted)
        self._has = np.array([has.get(c, 0) for c in fit.cues])
        self._against = np.array([against.get(c, 0) for c in fit.cues])
        self._margin = self._held.T @ (self._has - self._against).astype(float)
        every = rulebook.all_signs()
        any_ = self._held.T @ np.array([c in every for c in fit.cues], dtype=float)
        self._silent = any_ == 0
        self._margin[self._silent & (rulebook.default == gold)] += 0.5
        self._margin[self._silent & (rulebook.default == predicted)] -= 0.5
        self._look = np.flatnonzero(self._odds_ok | (self._against > 0))
        self._sub = self._held[self._look]
        v = np.full(len(self._look), -np.inf)
        for w in (1, 3):
            d = self._values * (_sig(self._margin + w) - _sig(self._margin))
            v = np.maximum(v, self._sub @ d - self._hidden[w][self._look])
        keep = np.sort(np.argsort(-v, kind="stable")[:SCREEN])
        self._look = self._look[keep]
        self._sub = self._sub[keep]

    def run(self) -> list[str]:
        changes = []
        for _ in range(MAX_CHANGES):
            step = self._best()
            if step is None:
                break
            changes.append(self._take(step))
        return changes

    def _best(self) -> Step | None:
        look = self._look
        least = MIN_ROWS * self._right
        room = self._draft.tokens() < MAX_TOKENS
        has_of, against_of = self._has[look], self._against[look]
        new = has_of == 0
        now = _sig(self._margin)
        options = []
        for amount in (1, 2, 3):
            d = self._values * (_sig(self._margin + amount) - now)
            noise = np.sqrt(self._sub @ (d * d))
            gain = self._sub @ d - self._hidden[amount][look]
            up_gain = gain - self._third_up[amount][look] - NEW_COST * least * new
            up = (up_gain >= least) & (up_gain >= MIN_Z * noise) & self._odds_ok[look] & (has_of + amount <= 3) & (room | ~new)
            down = (gain >= least*LOW) & (gain >= MIN_Z * noise) & (against_of >= amount)
            for kind, allowed, value in (("raise", up, up_gain), ("lower", down, gain)):
                for i in np.flatnonzero(allowed):
                    options.append((-float(value[i]), kind, int(look[i]), amount))
        for _, kind, i, amount in sorted(options):
            if self._draft.can(kind, self._fit.cues[i]):
                if kind == "raise":
                    self._has[i] += amount
                else:
                    self._against[i] -= amount
                return Step(kind, self._fit.cues[i], amount)
        return None

    def _take(self, step: Step) -> str:
        present = self._held[self._fit.index[step.cue]].indices
        self._margin[present] += step.amount
        return self._draft.take(step.kind, step.cue, step.amount)


SCREEN = 800
HID_P, HID_PM, HID_R, HID_RM, NEW_COST, LOW = 1.0, 1.0, 1.0, -2.0, 0.5, 0.5


def _sig(x):
    return 1.0 / (1.0 + np.exp(-_SOFTNESS * x))


