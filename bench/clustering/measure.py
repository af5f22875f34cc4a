"""DBSCAN beside scikit-learn, along the number of rows, over a grid, by backend, and approximately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from bench.clustering.data import Kind
from bench.clustering.running import Measured, made_up

_EPS, _MIN_SAMPLES = 0.4, 6
_SETTINGS = [(_EPS, _MIN_SAMPLES)]
_GRID = [(round(float(eps), 2), _MIN_SAMPLES) for eps in np.linspace(0.12, _EPS, 8)]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Of `rows`: what the curve goes through, what backends are compared at, and what is large.
_CURVE = (0.25, 0.5, 1.0, 2.5, 5.0)
_SMALL = (0.025, 0.05, 0.1, 0.15, 0.25, 0.5)
_LARGE = 10


def measure_speed(
    rows: int, dim: int, *, repeats: int, threads: int, kinds: Sequence[Kind] = KINDS
) -> list[dict[str, Any]]:
    """`rows` rows, each backend and scikit-learn.

    `labels_equal` and `to_sklearn`, scikit-learn's CPU to that of the row, are to scikit-learn in the same
    run, as is `memory`: what the call added to the process, as a share of what scikit-learn's did.
    """
    found = []
    for kind in kinds:
        with made_up(kind, rows, dim) as data:
            # it is slow and its time is that of a few large matrix products: two runs tell enough
            base = data.measure("sklearn", _SETTINGS, threads=threads, repeats=min(2, repeats))
            found.append(data.row("scikit-learn", "sklearn", base, threads=threads))
            for backend in ("faiss", "blocked"):
                own = data.measure(backend, _SETTINGS, threads=threads, repeats=repeats)
                row = data.row(f"pld, {backend}", backend, own, threads=threads)
                found.append({**row, **_beside(own, base)})
    return found


def measure_curve(
    rows: int, dim: int, *, threads: int, kinds: Sequence[Kind] = KINDS
) -> list[dict[str, Any]]:
    """A quarter to five times `rows`, by the blocked backend."""
    found = []
    for kind in kinds:
        for n in (round(share * rows) for share in _CURVE):
            with made_up(kind, n, dim) as data:
                own = data.measure("blocked", _SETTINGS, threads=threads)
                found.append(data.row("pld, blocked", "blocked", own, threads=threads))
    return found


def measure_grid(
    rows: int, dim: int, *, repeats: int, threads: int, kinds: Sequence[Kind] = KINDS
) -> list[dict[str, Any]]:
    """Eight eps in one pass; `to_largest` is their CPU to that of one run at the largest of them,
    `one_by_one` that of a run for each.
    """
    found = []
    for kind in kinds:
        with made_up(kind, rows, dim) as data:
            single = data.measure("blocked", _GRID[-1:], threads=threads, repeats=repeats)
            found.append(data.row("one eps", "blocked", single, threads=threads))
            others = [data.measure("blocked", [one], threads=threads) for one in _GRID[:-1]]
            one_by_one = single.cpu_s + sum(one.cpu_s for one in others)
            # the largest first: its labels are those that are told
            grid = data.measure("blocked", _GRID[::-1], threads=threads, repeats=repeats)
            row = data.row(f"{len(_GRID)} eps", "blocked", grid, threads=threads)
            found.append(
                {
                    **row,
                    "labels_equal": grid.equals(single),
                    "to_largest": round(grid.cpu_s / single.cpu_s, 3),
                    "one_by_one": round(one_by_one / single.cpu_s, 3),
                }
            )
    return found


def measure_backends(
    rows: int, dim: int, *, repeats: int, threads: int, kinds: Sequence[Kind] = KINDS
) -> list[dict[str, Any]]:
    """Small sets by both backends: `start_cpu_s`, for imports and what is compiled, is paid once a process.

    `to_other` is a backend's CPU, its start included, to that of the other.
    """
    found = []
    for kind in kinds:
        for n in (max(2, round(share * rows)) for share in _SMALL):
            with made_up(kind, n, dim) as data:
                both = {
                    backend: data.measure(backend, _SETTINGS, threads=threads, repeats=repeats)
                    for backend in ("faiss", "blocked")
                }
                for backend, other in (("faiss", "blocked"), ("blocked", "faiss")):
                    own = both[backend]
                    row = data.row(f"pld, {backend}", backend, own, threads=threads)
                    row["start_cpu_s"] = round(_start(own), 2)
                    row["labels_equal"] = own.equals(both[other])
                    row["to_other"] = round(
                        (own.cpu_s + _start(own)) / (both[other].cpu_s + _start(both[other])), 3
                    )
                    found.append(row)
    return found


def measure_approximate(
    rows: int, dim: int, *, threads: int, kinds: Sequence[Kind] = KINDS
) -> list[dict[str, Any]]:
    """Ten times `rows`, memory-mapped, approximately and exactly.

    `recall` is the share of pairs within eps that the approximation compared, on a sample;
    `adjusted_rand` how far its labels are the exact ones; `to_exact` its CPU to that of the exact run.
    """
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415 - a second to import, for this part alone

    found = []
    for kind in kinds:
        with made_up(kind, _LARGE * rows, dim) as data:
            exact = data.measure("blocked", _SETTINGS, threads=threads, mapped=True)
            found.append(data.row("pld, exact", "blocked", exact, threads=threads))
            ivf = data.measure("ivf", _SETTINGS, threads=threads, mapped=True)
            found.append(
                {
                    **data.row("pld, approximate", "ivf", ivf, threads=threads),
                    **ivf.runs[-1].more,
                    "labels_equal": ivf.equals(exact),
                    "adjusted_rand": round(float(adjusted_rand_score(exact.labels, ivf.labels)), 5),
                    "to_exact": round(ivf.cpu_s / exact.cpu_s, 3),
                }
            )
    return found


def _beside(own: Measured, base: Measured) -> dict[str, Any]:
    return {
        "labels_equal": own.equals(base),
        "to_sklearn": round(base.cpu_s / own.cpu_s, 2),
        "memory": round(_added(own) / max(_added(base), 1e-9), 3),
    }


def _added(found: Measured) -> float:
    return max(run.added_mb for run in found.runs)


def _start(found: Measured) -> float:
    return min(run.start_cpu_s for run in found.runs)
