"""What the local teacher and embedder know of the training corpus, in one small file."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from adapters.local.text import contains, cues_of
from engine.errors import CorruptStoreError, ModelError
from engine.types import FloatVector, Sample

FORMAT = 1
FIT_FILE = "local.json"
MAX_DIMENSIONS = 48
"""The longest vector. More axes tell every single sign apart: dozens of clusters, each of a few rules."""
CUES_PER_RULE = 3
MARKED_Z = 2.6
"""A cue marks a label when its log-odds lie this many standard errors above zero."""
KEPT_Z = 1.0
"""Cues below this for every label are not kept: nothing will ever ask for them."""
_MIN_ROWS = 3  # a cue of fewer rows is a detail of them
_MAX_CUES = 20_000
_RANK_DECAY = 0.6  # a rule is about its first sign: equal weights would chain topics together
_STRONG, _CLEAR = 2.2, 1.2  # log-odds


@dataclass(frozen=True, eq=False)
class LocalFit:
    """Counts of a training corpus.

    `rows[j]` training rows have label `labels[j]`, and `counts[i, j]` of them hold `cues[i]`; `counts` has
    shape (n_cues, n_labels), int64. `axes`, shape (n_axis_cues, n_axes) float32, maps the signs `axis_cues`
    of a rule to the vector space. `default` is the commonest label of rows in which nothing is marked.
    """

    labels: tuple[str, ...]
    rows: tuple[int, ...]
    cues: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    default: str
    axis_cues: tuple[str, ...]
    axes: FloatVector

    @cached_property
    def log_odds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Log-odds of each cue's presence in a label's rows against all others, and their standard errors.

        Both of shape (n_cues, n_labels). Smoothed by half a row each way (Monroe, Colaresi and Quinn 2008,
        "Fightin' Words", with document presence for counts).
        """
        return _log_odds(self.counts, self.rows)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Where each cue stands in `cues`."""
        return {cue: position for position, cue in enumerate(self.cues)}

    @cached_property
    def axis_index(self) -> Mapping[str, int]:
        """Where each cue stands in `axis_cues`."""
        return {cue: position for position, cue in enumerate(self.axis_cues)}

    @property
    def dim(self) -> int:
        """Length of an embedding: the axes, and one more for rules without a known sign."""
        return int(self.axes.shape[1]) + 1

    def signs(self, text: str, label: str) -> dict[str, int]:
        """The signs of `label` in `text` that a rule names: cue to grade, the surest first."""
        if label not in self.labels:
            return {}
        present = sorted(self.index[cue] for cue in cues_of(text) if cue in self.index)
        return self._signs(np.array(present, dtype=np.int64), self.labels.index(label))

    def _signs(self, present: npt.NDArray[np.int64], label: int) -> dict[str, int]:
        odds, errors = self.log_odds
        value, error = odds[present, label], errors[present, label]
        marked = value >= MARKED_Z * error
        # rank by the lower end of the estimate, so that a rare cue does not beat a sure one by luck
        surest = sorted(
            (-(low), self.cues[i], float(v))
            for i, v, low in zip(present[marked], value[marked], (value - error)[marked], strict=True)
        )
        chosen: dict[str, int] = {}
        for _, cue, v in surest:
            if not any(contains(cue, other) or contains(other, cue) for other in chosen):
                chosen[cue] = grade_of(v)
            if len(chosen) == CUES_PER_RULE:
                break
        return chosen

    @cached_property
    def document(self) -> bytes:
        """The content of local.json: the same bytes for the same fit."""
        return orjson.dumps(
            {
                "format": FORMAT,
                "labels": self.labels,
                "rows": self.rows,
                "default": self.default,
                "cues": self.cues,
                "counts": self.counts.tolist(),
                "axis_cues": self.axis_cues,
                "dim": self.axes.shape[1],
                "axes": base64.b64encode(self.axes.astype("<f2").tobytes()).decode("ascii"),
            }
        )

    @cached_property
    def fit_id(self) -> str:
        """Hex SHA-256 of the content: part of the name of every model made from it."""
        return hashlib.sha256(self.document).hexdigest()

    def save(self, path: Path) -> None:
        """Write local.json."""
        path.write_bytes(self.document)


def load_local(path: Path) -> LocalFit:
    """Read local.json back. Raises `CorruptStoreError` where it is not one."""
    try:
        raw: dict[str, Any] = orjson.loads(path.read_bytes())
        if raw["format"] != FORMAT:
            raise CorruptStoreError(f"{path}: format {raw['format']!r} is not known to this version")
        labels = tuple(raw["labels"])
        axes = np.frombuffer(base64.b64decode(raw["axes"]), dtype="<f2").astype(np.float32)
        return LocalFit(
            labels=labels,
            rows=tuple(raw["rows"]),
            cues=tuple(raw["cues"]),
            counts=np.array(raw["counts"], dtype=np.int64).reshape(-1, len(labels)),
            default=raw["default"],
            axis_cues=tuple(raw["axis_cues"]),
            axes=axes.reshape(len(raw["axis_cues"]), raw["dim"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise CorruptStoreError(
            f"{path}: is not a fit of the local models ({type(exc).__name__}); delete it and compile again"
        ) from exc


def grade_of(log_odds: float) -> int:
    """3 for a strong sign, 2 for a clear one, 1 for a weak one."""
    return 3 if log_odds >= _STRONG else 2 if log_odds >= _CLEAR else 1


def sign_weights(count: int) -> npt.NDArray[np.float64]:
    """Weights of a rule's signs in its vector, the first sign first."""
    return np.power(_RANK_DECAY, np.arange(count))


def fit_local(train: Sequence[Sample], labels: Sequence[str], seed: int, dimensions: int) -> LocalFit:
    """Count cues in training rows and fit the vector space of the rules that will be drawn from them.

    `dimensions` bounds the length of the vectors, as `MAX_DIMENSIONS` and the rank do. Rows are taken in the
    order of their ids, so theirs does not matter. Memory and time are linear in the total number of cues.
    Raises `ModelError` where there are no rows, or a row has a label that is not in `labels`.
    """
    if not train:
        raise ModelError("the local models need training rows to be fitted on")
    rows = sorted(train, key=lambda sample: sample.id)
    names = tuple(labels)
    position = {label: j for j, label in enumerate(names)}
    if unknown := sorted({sample.label for sample in rows} - set(names)):
        raise ModelError(f"training rows have labels that are not in the label set: {', '.join(unknown)}")
    gold = np.array([position[sample.label] for sample in rows], dtype=np.int64)
    cues, held = _vocabulary([sample.text for sample in rows])
    sizes = np.bincount(gold, minlength=len(names))
    one_hot = csr_matrix((np.ones(len(gold)), (np.arange(len(gold)), gold)), shape=(len(gold), len(names)))
    counts = np.asarray((held.T @ one_hot).todense()).round().astype(np.int64)
    odds, errors = _log_odds(counts, tuple(sizes.tolist()))
    z = (odds / errors).max(axis=1)
    kept = np.flatnonzero(z >= KEPT_Z)
    if len(kept) > _MAX_CUES:
        kept = np.sort(np.lexsort((kept, -z[kept]))[:_MAX_CUES])
    held = held[:, kept].tocsr()
    held.sort_indices()
    draft = LocalFit(
        labels=names,
        rows=tuple(sizes.tolist()),
        cues=tuple(cues[i] for i in kept),
        counts=counts[kept],
        default=names[int(np.argmax(sizes))],
        axis_cues=(),
        axes=np.zeros((0, 0), dtype=np.float32),
    )
    rules = [
        draft._signs(held.indices[held.indptr[i] : held.indptr[i + 1]].astype(np.int64), int(j))
        for i, j in enumerate(gold)
    ]
    bare = Counter(sample.label for sample, signs in zip(rows, rules, strict=True) if not signs)
    default = min(names, key=lambda name: (-bare[name], names.index(name))) if bare else draft.default
    axis_cues, axes = _axes([list(signs) for signs in rules if signs], seed, min(dimensions, MAX_DIMENSIONS))
    return LocalFit(names, draft.rows, draft.cues, draft.counts, default, axis_cues, axes)


def _vocabulary(texts: Sequence[str]) -> tuple[list[str], csr_matrix]:
    """Cues in at least `_MIN_ROWS` texts, in alphabetical order, and which text holds which."""
    documents = [cues_of(text) for text in texts]
    frequency = Counter(cue for cues in documents for cue in cues)
    cues = sorted(cue for cue, rows in frequency.items() if rows >= _MIN_ROWS)
    index = {cue: i for i, cue in enumerate(cues)}
    columns = [sorted(index[cue] for cue in document if cue in index) for document in documents]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.fromiter((i for column in columns for i in column), dtype=np.int32, count=int(ends[-1]))
    return cues, csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(texts), len(cues)))


def _log_odds(
    counts: npt.NDArray[np.int64], rows: tuple[int, ...]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    inside = counts + 0.5
    sizes = np.array(rows) + 1.0
    outside = counts.sum(axis=1, keepdims=True) - counts + 0.5
    others = sum(rows) - np.array(rows) + 1.0
    odds = np.log(inside / (sizes - inside)) - np.log(outside / (others - outside))
    errors = np.sqrt(1 / inside + 1 / (sizes - inside) + 1 / outside + 1 / (others - outside))
    return odds, errors


def _axes(rules: Sequence[Sequence[str]], seed: int, dimensions: int) -> tuple[tuple[str, ...], FloatVector]:
    """Truncated SVD of the rules' signs; the sign of each axis is fixed by its largest entry."""
    cues = sorted({cue for rule in rules for cue in rule})
    index = {cue: i for i, cue in enumerate(cues)}
    rank = min(dimensions - 1, len(cues), len(rules))
    if rank < 1:
        return (), np.zeros((0, 0), dtype=np.float32)
    flat = np.array([index[cue] for rule in rules for cue in rule], dtype=np.int32)
    values = np.concatenate([sign_weights(len(rule)) for rule in rules])
    ends = np.cumsum([0, *map(len, rules)])
    table = csr_matrix((values, flat, ends), shape=(len(rules), len(cues)))
    from sklearn.utils.extmath import randomized_svd  # noqa: PLC0415 - a second to load, and only fitting needs it

    with threadpool_limits(1):  # the same order of additions on every run
        _, _, axes = randomized_svd(table, rank, random_state=seed, flip_sign=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    turned = (axes * np.where(signs == 0, 1.0, signs)[:, None]).T
    # half precision is what the file keeps: round now, so that a fit and its file give the same vectors
    return tuple(cues), np.ascontiguousarray(turned.astype(np.float16).astype(np.float32))
