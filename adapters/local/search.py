"""Coordinate ascent on the cases of one confusion: the resolver's search for changes that pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from adapters.local.draft import Draft, Placed
from adapters.local.fit import LocalFit
from adapters.local.text import MAX_WORDS, contains, tokenize

Floats = npt.NDArray[np.float64]

MAX_CHANGES = 40
MAX_TOKENS = 1700
"""How long instructions may get, about. One request uses half of the room left: others ask beside it."""
MIN_ROWS = 0.3
"""A change has to gain as much as so many rows put right."""
MIN_Z = 1.0
"""... and so many standard deviations of its gain if each row's share had a random sign."""
NEW_SIGN_ROWS = 0.15
"""What a new sign has to gain beyond that: it makes the prompt longer."""
EXCEPTION_ROWS = 2.0
EXCEPTION_Z = 2.5
SCREENED = 800
"""Cues looked at in every step: those that promise most before the first one."""
# where rows that are not shown are taken to stand
_HIDDEN_MARGIN = 1.0
_THIRD_MARGIN = -2.0


class Step(NamedTuple):
    """One change of the draft. Sorted by gain first, then by what it is: ties never depend on chance."""

    loss: float
    kind: str
    cue: int
    amount: int
    place: int


class Search:
    """Looks for changes that turn rows of `gold` that were called `predicted` without turning the others.

    With m = score(gold) - score(predicted), a shown row is worth v * sigmoid(m): v > 0 where gold is right,
    v < 0 where predicted is. Raising m by `amount` on the rows that hold a cue (by a sign raised, added or
    lowered, or by an exception) gains the sum of v * (sigmoid(m + amount) - sigmoid(m)) over them.

    v weighs a row by what it moves macro-F1: with F1 near one half, a row put right is worth .75/n_gold +
    .25/n_predicted and one spoilt costs .75/n_predicted + .25/n_gold, n being training rows of a label.

    Rows that the request does not show are counted from the fit: those of `predicted` as if they were called
    gold already, those of third labels as if gold stood two below their own score.
    """

    def __init__(
        self,
        fit: LocalFit,
        draft: Draft,
        gold: str,
        predicted: str,
        *,
        is_gold: Sequence[bool],
        texts: Sequence[str],
        cue_ids: Sequence[npt.NDArray[np.int32]],
        default: str,
    ) -> None:
        self._fit, self._draft, self._gold, self._predicted = fit, draft, gold, predicted
        g, p = fit.labels.index(gold), fit.labels.index(predicted)
        rows = np.maximum(np.array(fit.rows, dtype=np.float64), 1.0)
        self._right = 0.75 / rows[g] + 0.25 / rows[p]
        wrong = 0.75 / rows[p] + 0.25 / rows[g]
        self._predicted_rows = rows[p]
        right_rows = np.array(is_gold, dtype=bool)
        self._values = np.where(right_rows, self._right, -wrong)
        ends = np.cumsum([0, *map(len, cue_ids)])
        flat = np.concatenate(cue_ids)
        by_row = csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(cue_ids), len(fit.cues)))
        self._held = by_row.T.tocsr()  # shape (n_cues, n_rows)
        self._texts = texts
        self._read_draft()
        present = draft.tokens()
        self._max_tokens = present + (MAX_TOKENS - present) / 2
        self._margin += 0.5 * self._silent * (float(default == gold) - float(default == predicted))
        self._default_moves = default == predicted

        unseen = np.maximum(fit.counts[:, p] - self._held @ (~right_rows).astype(np.float64), 0.0)
        third = [j for j in range(len(rows)) if j not in (g, p)]
        third_worth = (fit.counts[:, third] * (0.75 / rows[third])).sum(axis=1)
        self._unseen_cost = {w: wrong * unseen * _rise(_HIDDEN_MARGIN, w) for w in (1, 2, 3)}
        self._third_cost = {w: third_worth * _rise(_THIRD_MARGIN, w) for w in (1, 2, 3)}
        self._marks_gold = fit.counts[:, g] / rows[g] > fit.counts[:, p] / rows[p]
        self._screen()

    def _read_draft(self) -> None:
        """Grades of every cue for the two labels and the margin of every row, from the draft's clauses."""
        n_cues, n_rows = self._held.shape
        index = self._fit.index
        self._has, self._against = np.zeros(n_cues, dtype=np.int64), np.zeros(n_cues, dtype=np.int64)
        self._fixed = np.zeros(n_cues, dtype=bool)
        self._margin = np.zeros(n_rows)
        self._silent = np.ones(n_rows, dtype=bool)
        self._places: list[Placed] = []
        self._shares: list[Floats] = []
        best: dict[tuple[str, str], int] = {}
        for place in self._draft.placed():
            label = place.clause.label
            share = np.zeros(n_rows)
            for cue, grade in place.clause.signs.items():
                rows = self._rows_with(cue)
                self._silent[rows] = False
                # a sign named twice counts once, at its best grade
                share[rows] += max(grade - best.get((label, cue), 0), 0)
                best[label, cue] = max(grade, best.get((label, cue), 0))
                if cue in index and label == self._predicted and place.instruction is None:
                    self._fixed[index[cue]] = True
            for cue in place.clause.exceptions:
                share[self._rows_with(cue)] = 0.0
            if label == self._gold:
                self._margin += share
            elif label == self._predicted:
                self._margin -= share
                self._places.append(place)
                self._shares.append(share)
        for (label, cue), grade in best.items():
            if cue in index and label in (self._gold, self._predicted):
                (self._has if label == self._gold else self._against)[index[cue]] = grade

    def _rows_with(self, cue: str) -> npt.NDArray[np.intp]:
        """The shown rows that hold a cue. One that the fit does not know is looked for in their texts."""
        i = self._fit.index.get(cue)
        if i is not None:
            return np.asarray(self._held[i].indices, dtype=np.intp)
        held = [contains(" ".join(tokenize(text)), cue) for text in self._texts]
        return np.flatnonzero(np.array(held, dtype=bool))

    def _screen(self) -> None:
        promising = np.flatnonzero(self._marks_gold | (self._against > 0))
        held = self._held[promising]
        best = np.full(len(promising), -np.inf)
        for amount in (1, 3):
            best = np.maximum(best, held @ self._turned(float(amount)) - self._unseen_cost[amount][promising])
        kept = np.sort(np.argsort(-best, kind="stable")[:SCREENED])
        self._looked_at = promising[kept]
        self._held_there = held[kept]
        index, cues = self._fit.index, self._fit.cues
        words = [cues[i].split() if " " in cues[i] else [] for i in self._looked_at]
        # for each cue of several words where these stand alone; -1 is the entry beyond the end
        padded = [[index.get(word, -1) for word in (*some, *[""] * MAX_WORDS)[:MAX_WORDS]] for some in words]
        self._words_of = np.array(padded, dtype=np.int64).reshape(-1, MAX_WORDS)

    def run(self) -> list[str]:
        """Change the draft step by step; returns what was done, one short line a step."""
        done: list[str] = []
        while len(done) < MAX_CHANGES:
            # exceptions make a rule harder to read: only what no sign can do is left to them
            step = self._first(self._steps()) or self._first(self._exceptions())
            if step is None:
                break
            done.append(self._line(step))
        if self._default_gain() > 0 and self._draft.set_default(self._gold):
            done.append(f"texts without signs are {self._gold}")
        return done

    def _default_gain(self) -> float:
        """What it is worth to call rows without signs gold. Rows not shown count like those shown."""
        if not self._default_moves:
            return 0.0
        silent = self._values[self._silent]
        right, wrong = silent[silent > 0].sum(), silent[silent < 0].sum()
        return float(right + wrong * self._predicted_rows / max(int((self._values < 0).sum()), 1))

    def _first(self, steps: list[Step]) -> Step | None:
        """Take the best of `steps` that can be taken."""
        return next((step for step in sorted(steps) if self._take(step)), None)

    def _turned(self, amount: float | Floats) -> Floats:
        """What each row gains when its margin rises by `amount`."""
        gained: Floats = self._values * _rise(self._margin, amount)
        return gained

    def _steps(self) -> list[Step]:
        """Every change of a sign that pays now."""
        at, held = self._looked_at, self._held_there
        least = MIN_ROWS * self._right
        has, against = self._has[at], self._against[at]
        new = has == 0
        # "the refund" beside "refund" would only make the list longer
        said = (np.append(self._has, 0)[self._words_of] == 3).any(axis=1)
        may_raise = self._marks_gold[at] & ~(new & said) & (~new | (self._draft.tokens() < self._max_tokens))
        steps = []
        for amount in (1, 2, 3):
            share = self._turned(float(amount))
            gain = held @ share - self._unseen_cost[amount][at]
            noise = MIN_Z * np.sqrt(held @ (share * share))
            raised = gain - self._third_cost[amount][at] - NEW_SIGN_ROWS * self._right * new
            pays = may_raise & (raised >= least) & (raised >= noise) & (has + amount <= 3)
            steps += [Step(-float(raised[i]), "raise", int(at[i]), amount, -1) for i in np.flatnonzero(pays)]
            pays = (gain >= 0.5 * least) & (gain >= noise) & (against >= amount) & ~self._fixed[at]
            steps += [Step(-float(gain[i]), "lower", int(at[i]), amount, -1) for i in np.flatnonzero(pays)]
        return steps

    def _exceptions(self) -> list[Step]:
        """Every exception that pays now."""
        at, held = self._looked_at, self._held_there
        steps = []
        for place, share in enumerate(self._shares):
            gained = self._turned(share)
            if np.maximum(gained, 0.0).sum() < EXCEPTION_ROWS * self._right:
                continue  # not even all of its rows together are worth an exception
            gain = held @ gained - self._unseen_cost[1][at]
            noise = EXCEPTION_Z * np.sqrt(held @ (gained * gained))
            pays = (gain >= EXCEPTION_ROWS * self._right) & (gain >= noise) & (self._against[at] == 0)
            steps += [Step(-float(gain[i]), "silence", int(at[i]), 0, place) for i in np.flatnonzero(pays)]
        return steps

    def _take(self, step: Step) -> bool:
        """Make the change; False where it would touch too many instructions."""
        i, cue = step.cue, self._fit.cues[step.cue]
        present = self._held[i].indices
        if step.kind == "silence":
            if not self._draft.add_exception(self._places[step.place], cue):
                return False
            self._margin[present] += self._shares[step.place][present]
            self._shares[step.place][present] = 0.0
            return True
        label, grades, change = (
            (self._gold, self._has, step.amount)
            if step.kind == "raise"
            else (self._predicted, self._against, -step.amount)
        )
        if not self._draft.set_grade(label, cue, int(grades[i]) + change):
            return False
        grades[i] += change
        self._margin[present] += step.amount
        if step.kind == "raise":
            self._silent[present] = False
        return True

    def _line(self, step: Step) -> str:
        cue = self._fit.cues[step.cue]
        if step.kind == "silence":
            return f'"{cue}" is an exception from {self._places[step.place].instruction}'
        if step.kind == "raise":
            return f'"{cue}" counts {self._has[step.cue]} for {self._gold}'
        return f'"{cue}" counts {self._against[step.cue]} for {self._predicted}'


def _rise(margin: float | Floats, amount: float | Floats) -> Floats:
    """How much the logistic function rises from `margin` to `margin + amount`."""
    now, then = np.asarray(margin), np.asarray(margin + amount)
    rise: Floats = 1.0 / (1.0 + np.exp(-then)) - 1.0 / (1.0 + np.exp(-now))
    return rise
