"""Made-up embeddings with the spectrum of real ones."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["sparse", "dense"]

_BLOCK = 8192
# Sentence embeddings of rules have variances that fall as about the 1.1th power of their rank, and a
# direction that all of them share.
_DECAY = 0.45
_COMMON = {"sparse": 0.0, "dense": 0.5}
# Rows of a topic have a cosine of about this squared, less what their own words take away.
_TOPIC = {"sparse": 0.85, "dense": 0.86}
_OUTSIDE = {"sparse": 0.3, "dense": 0.1}


def embeddings(kind: Kind, n: int, dim: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Rows (n, dim) of unit norm.

    Of "sparse" rows three in ten have a topic of their own, of the others about 40 share one. Nine in ten
    "dense" ones share ten topics, so that about one pair in twenty is within a cosine distance of 0.4.
    """
    random = np.random.default_rng(seed)
    spread = np.arange(1, dim + 1) ** -_DECAY
    turn, _ = np.linalg.qr(random.standard_normal((dim, dim)))
    common = _unit(random.standard_normal((1, dim)) * spread)
    topics = max(1, n // 40) if kind == "sparse" else 10
    centres = _unit(_COMMON[kind] * common + _unit(random.standard_normal((topics, dim)) * spread))
    found = np.empty((n, dim), np.float32)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        own = _unit(_COMMON[kind] * common + _unit(random.standard_normal((size, dim)) * spread))
        share = np.where(random.random((size, 1)) < _OUTSIDE[kind], 0.0, _TOPIC[kind])
        rows = share * centres[random.integers(topics, size=size)] + np.sqrt(1.0 - share**2) * own
        found[start : start + size] = _unit(rows @ turn)
    return found


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    unit: npt.NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
