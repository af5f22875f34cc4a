"""Compiled inner loops of the blocked backend: scanning tiles, distances in float64, union-find.

They release the GIL. Only `feed` and `flatten` change a `State`, one thread at a time; `scan` and `refine`
read it while it changes. That is harmless: rows that were core, or in one component, stay so, and what is
read too early only lets a pair through that need not have been looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

_F = TypeVar("_F", bound=Callable[..., Any])

# Marks in a word of `scan`.
WORD = 8
# sums may be regrouped, which the error bounds of `Space` allow for; no row holds NaN or infinity
_FLAGS = {"reassoc", "nsz", "contract", "nnan", "ninf"}


class State(NamedTuple):
    """A one-pass DBSCAN of n rows in m settings (eps, min_samples).

    Settings of one `min_samples` stand together by ascending eps; `ends[k]` is where those of setting k end.
    `targets`, `radii` and `enough` (m,) are each setting's least inner product, eps and `min_samples`.
    `weights` (n,) says how many rows a row stands for, `mass` (m, n) what its neighbours so far weigh,
    `core` and `parent` (m, n) whether it is core and what it is joined to. `noted` holds the neighbours of
    rows that are not core: those of row i in setting k from `begins[k] + i * lengths[k]` on, `counts[k, i]`
    of them.
    """

    targets: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    enough: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]
    mass: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int32]
    noted: npt.NDArray[np.int32]
    core: npt.NDArray[np.bool_]
    parent: npt.NDArray[np.int32]


class Rows(NamedTuple):
    """The rows behind a `State`; see `Space`."""

    original: npt.NDArray[Any]
    norms: npt.NDArray[np.float64]
    euclidean: bool
    searched: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]
    slack: npt.NDArray[np.float32]


class Tails(NamedTuple):
    """What tightens the bounds of pairs; see `Bounds`. `rest` (n,) belongs to the first bound, whose width is
    given with it, `last_rest` (n,) to all `coordinates` (n, m).
    """

    coordinates: npt.NDArray[np.float32]
    width: int
    rest: npt.NDArray[np.float32]
    last_rest: npt.NDArray[np.float32]


class Pairs(NamedTuple):
    """Room for pairs: their rows (c, 2) and values (c,), an inner product plus both offsets or a bound."""

    rows: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]


def _compiled(function: _F, inline: str = "never") -> _F:
    options: dict[str, Any] = {"nogil": True, "fastmath": _FLAGS, "inline": inline}
    try:
        return cast(_F, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # A package that root installed, run by a user without a home: numba finds no folder for its cache
        # and refuses. Then each process compiles anew, unless NUMBA_CACHE_DIR names a folder to write to.
        return cast(_F, numba.njit(**options)(function))


def _inlined(function: _F) -> _F:
    return _compiled(function, inline="always")


@_inlined
def _root(parent: Any, i: Any) -> Any:
    while parent[i] != i:
        i = parent[i]
    return i


@_compiled
def _join(parent: Any, i: Any, j: Any) -> None:
    """Join two rows; the root of a component is its smallest row."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    while parent[j] != j:
        parent[j] = parent[parent[j]]
        j = parent[j]
    if i < j:
        parent[j] = i
    elif j < i:
        parent[i] = j


@_inlined
def _is_open(state: Any, i: Any, j: Any, value: Any) -> Any:
    """Whether the pair could change anything, in any setting whose target it reaches."""
    k = 0
    while k < len(state.targets):
        if value < state.targets[k]:
            k += 1
        elif state.core[k, i] and state.core[k, j] and _root(state.parent[k], i) == _root(state.parent[k], j):
            k = state.ends[k]  # one component within a smaller eps is one within every larger one
        else:
            return True
    return False


@_compiled
def scan(
    products: Any,
    rows: Any,
    columns: Any,
    row_offset: Any,
    column_offset: Any,
    row_rest: Any,
    column_rest: Any,
    ahead: int,
    least: float,
    state: State,
    found: Pairs,
    words: npt.NDArray[np.uint64],
) -> tuple[int, int]:
    """Collect the open pairs of a tile whose value is at least `least`, row by row.

    A value is the product plus both offsets plus the product of the rests (zero where products are whole).

    `products` (r, c) are inner products of the rows numbered `rows` with those numbered `columns`. Row 0
    meets the columns from `ahead` on (all of them where that is negative), and each next row one column
    less: that is the triangle above the diagonal. Stops before `found` could overflow, which needs room for
    more than c pairs. Returns how many pairs were found and how many rows are done.

    `words` is scratch of at least c bytes, for marks.
    """
    count = 0
    width = len(columns)
    marks = words.view(np.uint8)
    marks[width:] = 0
    for r in range(len(rows)):
        if count + width >= len(found.values):
            return count, r
        needed, rest = np.float32(least - row_offset[r]), row_rest[r]
        first = max(0, r + ahead)
        # First marked, then gone through: marking takes many columns at once.
        part = products[r]
        for c in range(width):
            value = part[c] + rest * column_rest[c] + column_offset[c]
            marks[c] = np.uint8(1) if value >= needed else np.uint8(0)
        marks[:first] = 0
        marked = count
        for word in range(first // WORD, (width + WORD - 1) // WORD):
            if words[word] == 0:
                continue
            for c in range(word * WORD, (word + 1) * WORD):
                found.rows[marked, 1] = c
                marked += marks[c]
        for at in range(count, marked):
            c = found.rows[at, 1]
            value = products[r, c] + rest * column_rest[c] + column_offset[c] + row_offset[r]
            if _is_open(state, rows[r], columns[c], value):
                found.rows[count, 0] = rows[r]
                found.rows[count, 1] = columns[c]
                found.values[count] = value
                count += 1
    return count, len(rows)


@_compiled
def refine(rows: Rows, tails: Tails, state: State, found: Pairs, count: int) -> int:
    """Replace the first bounds of `count` pairs by their values; keep those still open. Returns how many.

    Most fall already by the second bound, which takes part of the work.
    """
    kept = 0
    for at in range(count):
        i, j = found.rows[at, 0], found.rows[at, 1]
        a, b = tails.coordinates[i, tails.width :], tails.coordinates[j, tails.width :]
        tighter = tails.last_rest[i] * tails.last_rest[j] - tails.rest[i] * tails.rest[j]
        for d in range(len(a)):
            tighter += a[d] * b[d]
        if not _is_open(state, i, j, found.values[at] + tighter):
            continue
        a, b = rows.searched[i], rows.searched[j]
        product = np.float32(0.0)
        for d in range(len(a)):
            product += a[d] * b[d]
        value = product + rows.offset[i] + rows.offset[j]
        if _is_open(state, i, j, value):
            found.rows[kept, 0] = i
            found.rows[kept, 1] = j
            found.values[kept] = value
            kept += 1
    return kept


@_compiled
def _distance(rows: Any, i: Any, j: Any) -> Any:
    a, b = rows.original[i], rows.original[j]
    total = 0.0
    if rows.euclidean:
        for d in range(len(a)):
            apart = np.float64(a[d]) - np.float64(b[d])
            total += apart * apart
        return np.sqrt(total)
    for d in range(len(a)):
        total += np.float64(a[d]) * np.float64(b[d])
    return max(0.0, 1.0 - total / (rows.norms[i] * rows.norms[j]))


@_compiled
def _note(state: Any, k: Any, i: Any, j: Any) -> None:
    """Row i, not core so far, has one more neighbour; where that makes it core, join it to its core ones."""
    state.mass[k, i] += state.weights[j]
    mine = state.begins[k] + i * state.lengths[k]
    if state.mass[k, i] < state.enough[k]:
        state.noted[mine + state.counts[k, i]] = j
        state.counts[k, i] += 1
        return
    state.core[k, i] = True
    for at in range(mine, mine + state.counts[k, i]):
        if state.core[k, state.noted[at]]:
            _join(state.parent[k], i, state.noted[at])


@_compiled
def feed(rows: Rows, state: State, found: Pairs, count: int) -> None:
    """Take `count` pairs into every setting that they are within.

    A value below a target is out, one that reaches it even without both slacks is in; between them the
    distance in float64 decides.
    """
    for at in range(count):
        i, j, value = found.rows[at, 0], found.rows[at, 1], found.values[at]
        certain = value - rows.slack[i] - rows.slack[j]
        apart = -1.0
        for k in range(len(state.targets)):
            if value < state.targets[k]:
                continue
            if certain < state.targets[k]:
                if apart < 0.0:
                    apart = _distance(rows, i, j)
                if apart > state.radii[k]:
                    continue
            first, second = state.core[k, i], state.core[k, j]
            if not first:
                _note(state, k, i, j)
            if not second:
                _note(state, k, j, i)
            if state.core[k, i] and state.core[k, j]:
                _join(state.parent[k], i, j)


@_compiled
def flatten(parent: Any) -> None:
    """Let every row of every setting point at its root."""
    for k in range(parent.shape[0]):
        for i in range(parent.shape[1]):
            # no parent is larger than its row, so its own parent is a root already
            parent[k, i] = parent[k, parent[k, i]]


@_compiled
def settled_from(state: State, start: int, end: int, rows: Any, columns: Any) -> int:
    """The first of the settings `start` to `end`, of one `min_samples`, in which all rows and columns are
    core and of one component; `end` where there is none.
    """
    for k in range(end - 1, start - 1, -1):
        root = _root(state.parent[k], rows[0])
        for i in rows:
            if not state.core[k, i] or _root(state.parent[k], i) != root:
                return k + 1
        for i in columns:
            if not state.core[k, i] or _root(state.parent[k], i) != root:
                return k + 1
    return start


@_compiled
def label_border(state: State, k: int, labels: Any) -> None:
    """Give rows that are not core the lowest of their core neighbours' `labels` (n,), which are there."""
    for i in range(len(labels)):
        if state.core[k, i]:
            continue
        lowest = -1
        mine = state.begins[k] + i * state.lengths[k]
        for at in range(mine, mine + state.counts[k, i]):
            other = state.noted[at]
            if state.core[k, other] and (lowest < 0 or labels[other] < lowest):
                lowest = labels[other]
        labels[i] = lowest
