"""Conflict resolution by the local teacher: which signs and exceptions would tell the cases apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from adapters.local.draft import Draft
from adapters.local.fit import LocalFit
from adapters.local.language import Reader
from adapters.local.search import Search
from adapters.local.student import Rulebook
from adapters.local.text import cues_of
from engine.fences import read_all, read_one

MAX_EDITS = 4
"""Edits in one answer where the request does not say how many it takes."""
_KEPT_TEXTS = 65_536


class Resolver:
    """Answers the schema resolution. Remembers the cues of texts, as each round shows the same ones again."""

    def __init__(self, fit: LocalFit) -> None:
        self._fit = fit
        self._reader = Reader(fit.labels)
        self._cue_ids: Callable[[str], npt.NDArray[np.int32]] = lru_cache(maxsize=_KEPT_TEXTS)(
            self._read_cues
        )

    def answer(self, user: str) -> dict[str, object]:
        """The content of a ResolutionAnswer. Raises `ValueError` or `KeyError` where a fence is missing."""
        prompt = read_one(user, "prompt").content
        shown = read_one(user, "cases")
        gold, predicted = shown.attributes["label"], shown.attributes["predicted"]
        if gold not in self._fit.labels or predicted not in self._fit.labels or gold == predicted:
            raise ValueError("not a confusion of two labels that the fit knows")
        cases = list(read_all(shown.content, "case"))
        max_edits = int(shown.attributes.get("max_edits", MAX_EDITS))
        draft = Draft(list(read_all(prompt, "instruction")), self._reader, max_edits)
        search = Search(
            self._fit,
            draft,
            gold,
            predicted,
            is_gold=[case.attributes["label"] == gold for case in cases],
            texts=[case.text for case in cases],
            cue_ids=[self._cue_ids(case.text) for case in cases],
            default=Rulebook(draft.text, self._fit.labels).default,
        )
        changes: Sequence[str] = search.run() if cases else []
        analysis = "; ".join(changes) if changes else "The failures cannot be told from the successes."
        return {"analysis": analysis, "edits": draft.edits(f"{gold} was taken for {predicted}")}

    def _read_cues(self, text: str) -> npt.NDArray[np.int32]:
        index = self._fit.index
        return np.array(sorted(index[cue] for cue in cues_of(text) if cue in index), dtype=np.int32)
