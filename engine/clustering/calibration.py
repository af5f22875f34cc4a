"""DBSCAN whose settings come from the vectors: nobody has to know an eps that suits the embedder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from engine.clustering.centring import CommonDirection, centred
from engine.clustering.clusters import Clustering, Part, assemble, rows_by_group
from engine.clustering.collapse import distinct_rows
from engine.clustering.density_tree import DensityTree
from engine.clustering.exact import label
from engine.clustering.labelling import Labelling, Setting
from engine.clustering.near_equal import NEAR_EQUAL, near_equal_rows
from engine.clustering.neighbours import Neighbours, label_mixing, nearest_rows, sampled_rows
from engine.clustering.spaces import IntVector
from engine.types import FloatVector

Scope: TypeAlias = Literal["all", "label"]

# The grid's eps are quantiles of the k-distances. At its ends a few rows decide.
_LEVELS = np.linspace(0.02, 0.98, 16)
_CURVE = np.linspace(0.0, 1.0, 201)
# Fewer neighbours than this are no density.
_LEAST_SAMPLES = 3
# Near-copies are collapsed where at least so many rows have one; fewer do not move a k-distance.
_COPIES = 0.05
# Clustered by label where neighbours share it more than half as often as they could beyond chance.
_MIXING = 0.5
_RESOLUTIONS = np.geomspace(2.0**-8, 2.0**4, 49)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What was chosen, and the figures behind it: `record` for clustering.json."""

    within: Scope
    record: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The rows that are clustered together, as far as that goes without deciding how many clusters.

    `rows` are row numbers; `stands` says for each of them which of the representatives stands for it, and
    `weights` how much each of those counts.
    """

    name: str | None
    rows: IntVector
    direction: CommonDirection
    stands: IntVector
    multiples: IntVector
    weights: IntVector
    min_samples: int
    neighbours: Neighbours
    tree: DensityTree


def calibrated_clusters(
    vectors: FloatVector, labels: Sequence[str], *, within: Scope | None, most: int, seed: int
) -> tuple[Clustering, Calibration]:
    """Cluster the rows of `vectors`, (n, d) float32 of unit norm, with settings that they give themselves.

    `labels` name the label of each row; `within` "label" clusters each label's rows apart, "all" all
    together, and None decides that by the rows. At most `most` clusters are made. `seed` draws the rows that
    large sets are judged by.

    1. Where all rows share a direction, it is taken off (`CommonDirection`).
    2. Equal and nearly equal rows become one, so that copies are no density; it counts by what is usual.
    3. min_samples is ln n (Ester et al. 1996 and Birant and Kut 2007 for data that nobody has looked at).
    4. DBSCAN at 16 eps, quantiles of the distances to the min_samples-th row, gives a tree of clusters.
    5. Of it those clusters are taken, each at its own eps, that are the most significant together.
    6. Where that makes more than `most` (shared equally by labels that are clustered apart), modularity
       chooses, at the resolution that keeps the most significance within that number.

    Raises `ValueError` where `labels` has not one entry per row.
    """
    if len(labels) != len(vectors):
        raise ValueError(f"{len(vectors)} vectors need as many labels, not {len(labels)}")
    mixing = _mixing(vectors, labels, seed) if within is None else None
    scope: Scope = within or ("label" if mixing is not None and mixing > _MIXING else "all")
    groups = [
        _prepared(vectors, name, rows, most, seed)
        for name, rows in rows_by_group(labels if scope == "label" else None, len(vectors))
        if len(rows)
    ]
    if not groups:
        return assemble(vectors, []), Calibration(scope, {"within": scope, "groups": []})
    # labels have equal shares of the clusters: a small one is not crowded out
    chosen, how = zip(*(_chosen(group.tree, max(1, most // len(groups))) for group in groups), strict=True)
    parts = []
    for group, nodes in zip(groups, chosen, strict=True):
        found, core, eps = group.tree.labels_of(nodes)
        parts.append(
            Part(group.name, group.rows, found[group.stands], core[group.stands], eps, group.direction.mean)
        )
    record = {
        "within": scope,
        "decided": "by the configuration or the embedder" if within else "by the rules",
        "label_mixing": mixing,
        "label_mixing_limit": _MIXING,
        "most_clusters": most,
        "groups": [
            {**_record(group, nodes, labels), **why}
            for group, nodes, why in zip(groups, chosen, how, strict=True)
        ],
    }
    return assemble(vectors, parts), Calibration(scope, record)


def _mixing(vectors: FloatVector, labels: Sequence[str], seed: int) -> float:
    """How far rows of one topic share their label: among the √n nearest of each, about a topic's size."""
    distinct = distinct_rows(vectors, np.zeros(len(vectors), np.bool_))[0]
    n = len(distinct)
    if n < 2:
        return 1.0
    rows = vectors[distinct]
    sample = sampled_rows(n, seed)
    rows = centred(rows, CommonDirection.of(rows, sample).mean)
    near = nearest_rows(rows, sample, min(n - 1, math.isqrt(n)))
    return label_mixing(near, [labels[row] for row in distinct])


def _prepared(vectors: FloatVector, name: str | None, rows: IntVector, most: int, seed: int) -> _Group:
    part = vectors if len(rows) == len(vectors) else vectors[rows]
    distinct, stands = distinct_rows(part, np.zeros(len(part), np.bool_))
    kept = part[distinct]
    direction = CommonDirection.of(kept, sampled_rows(len(kept), seed))
    kept = centred(kept, direction.mean)
    n = len(kept)
    sample = sampled_rows(n, seed)
    nearest = nearest_rows(kept, sample, min(1, n - 1)).distances
    if nearest.size and float(np.mean(nearest <= NEAR_EQUAL)) >= _COPIES:
        representatives, place = near_equal_rows(kept)
        kept, stands, n = kept[representatives], place[stands], len(representatives)
        sample = sampled_rows(n, seed)
    multiples = np.bincount(stands, minlength=n)
    min_samples = max(_LEAST_SAMPLES, round(math.log(n)))
    weights = _weights(multiples, min_samples, most)
    neighbours = nearest_rows(kept, sample, min(n - 1, 2 * (min_samples - 1)))
    # where the neighbours of each are all others there is no density, only rules that are often repeated
    eps = [NEAR_EQUAL] if neighbours.k >= n - 1 else _grid(_k_distances(neighbours, min_samples))
    found = label(kept, [Setting(one, min_samples) for one in eps], metric="cosine", weights=weights)
    tree = DensityTree.of(found, neighbours)
    return _Group(name, rows, direction, stands, multiples, weights, min_samples, neighbours, tree)


def _weights(multiples: IntVector, min_samples: int, most: int) -> IntVector:
    """How often each distinct row counts as a neighbour.

    Its copies are counted by what is usual: rules that all came twice are no denser for it. But a rule
    that alone is as much as an average cluster may be is a topic by itself.
    """
    weights = np.maximum(1, np.rint(multiples / np.median(multiples))).astype(np.int64)
    topic = (multiples >= min_samples) & (multiples * most >= multiples.sum())
    return np.where(topic, np.maximum(weights, min_samples), weights)


def _k_distances(neighbours: Neighbours, min_samples: int) -> FloatVector:
    """Of each sampled row the distance to the neighbour that makes it a core."""
    if neighbours.k == 0:
        return np.zeros(1, np.float32)
    return neighbours.distances[:, min(neighbours.k, min_samples - 1) - 1]


def _grid(k_distances: FloatVector) -> list[float]:
    # rounded, so that the last bit of a product cannot change a setting
    quantiles = np.round(np.quantile(k_distances.astype(np.float64), _LEVELS), 4)
    return [float(one) for one in np.unique(np.clip(quantiles, 1e-4, 1.9999))]


def _chosen(tree: DensityTree, most: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The clusters to take from a tree, and how they were chosen."""
    chosen = tree.best(tree.significance)
    how: dict[str, Any] = {"chosen_by": "significance", "significant_clusters": len(chosen)}
    if len(chosen) <= most:
        return chosen, how
    # where even the broadest clusters are too many (islands far apart), the most significant of them
    broadest = sorted(tree.roots, key=lambda i: (-tree.significance[i], i))
    chosen, resolution = tuple(sorted(broadest[:most])), 0.0
    for finer in _RESOLUTIONS:
        tried = tree.best(tree.modularity(finer))
        if len(tried) > most:
            break  # beyond, clusters fall apart into noise, which makes them few again
        if tree.significance[list(tried)].sum() >= tree.significance[list(chosen)].sum():
            chosen, resolution = tried, float(finer)
    return chosen, {**how, "chosen_by": "modularity", "resolution": resolution}


def _record(group: _Group, chosen: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    distances = _k_distances(group.neighbours, group.min_samples).astype(np.float64)
    names = [labels[row] for row in group.rows]
    return {
        "group": group.name,
        "rules": len(group.rows),
        "distinct": len(group.multiples),
        "median_copies": float(np.median(group.multiples)),
        "common_direction": group.direction.to_json(),
        "min_samples": group.min_samples,
        "neighbours": group.neighbours.k,
        "sampled": len(group.neighbours.sources),
        "k_distance": [
            [round(float(share), 4), round(float(value), 5)]
            for share, value in zip(_CURVE, np.quantile(distances, _CURVE), strict=True)
        ],
        "grid": [_grid_row(found, group.stands, names) for found in group.tree.labellings],
        "chosen": [
            {
                "eps": group.tree.labellings[group.tree.nodes[i].level].setting.eps,
                "share": float(group.tree.size[i]),
                "significance": float(group.tree.significance[i]),
            }
            for i in chosen
        ],
    }


def _grid_row(found: Labelling, stands: IntVector, labels: Sequence[str]) -> dict[str, Any]:
    """What one setting alone would make of a group's rules; per label the share that is in a cluster."""
    of_rules = found.labels[stands]
    total = Counter(labels)
    inside = Counter(name for name, number in zip(labels, of_rules.tolist(), strict=True) if number >= 0)
    sizes = np.bincount(of_rules[of_rules >= 0])
    return {
        "eps": found.setting.eps,
        "min_samples": found.setting.min_samples,
        "clusters": len(sizes),
        "noise": int((of_rules < 0).sum()),
        "largest": int(sizes.max(initial=0)),
        "clustered_share": {name: inside[name] / total[name] for name in sorted(total)},
    }
