"""The local embedder: the signs of a rule in a fitted vector space."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from adapters.local.fit import LocalFit, sign_weights
from adapters.local.language import Reader
from adapters.local.text import cues_of
from engine.ports import FREE, Price, Within
from engine.types import Embedding, EmbedOutcome, FloatVector, Usage


class LocalEmbedder:
    """An `Embedder` for rules. Vectors have `fit.dim` dimensions.

    A rule in the local teacher's words is placed by its signs, any other text by the known cues in it. What
    holds no known cue gets the last axis for itself, so that such rules are alike and unlike all others.
    """

    max_batch = 512
    price: Price | None = FREE
    within: Within = "label"

    def __init__(self, fit: LocalFit) -> None:
        self._fit = fit
        self._reader = Reader(fit.labels)
        self.name = f"local-embedder-1:{fit.fit_id}"

    async def embed(self, texts: Sequence[str]) -> Sequence[EmbedOutcome]:
        """One float32 vector (dim,) of unit norm for each text; off the event loop."""
        return await asyncio.to_thread(self._embed, texts)

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _embed(self, texts: Sequence[str]) -> list[EmbedOutcome]:
        return [Embedding(self.vector(text), Usage(len(text) // 4, estimated=True)) for text in texts]

    def vector(self, text: str) -> FloatVector:
        """The vector of one text: float32 (dim,), unit norm."""
        index = self._fit.axis_index
        signs = [cue for clause in self._reader.clauses(text) for cue in clause.signs]
        known = [index[cue] for cue in signs or sorted(cues_of(text)) if cue in index]
        place = np.zeros(self._fit.dim, dtype=np.float64)
        if known:
            weights = sign_weights(len(known)) if signs else np.ones(len(known))
            place[:-1] = weights @ self._fit.axes[known]
        norm = float(np.linalg.norm(place))
        if norm < 1e-6:
            place[:] = 0.0
            place[-1] = norm = 1.0
        return (place / norm).astype(np.float32)
