"""Pictures of a clustering, as PNG: the map of its rules, and the k-distance curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.clustering.clusters import Clustering
from engine.clustering.distances import KDistances
from engine.clustering.mapping import RuleMap
from engine.clustering.sheet import FAINT, INK, heading, legend, png, sheet, shown
from engine.clustering.spaces import DoubleVector, IntVector

# Paul Tol's "muted" scheme: nine colours that people with any colour vision tell apart.
_COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#DDCC77", "#44AA99", "#AA4499", "#999933")
_NOISE = "#B8B8B8"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")
_MOST_LINES = 34  # of the two legends of the map
# A number stands above its cluster where it would hide it: few points, or all within this share of the map.
_FEW, _CLOSE = 8, 0.02


def draw_map(where: RuleMap, labels: Sequence[str], clustering: Clustering) -> bytes:
    """The rules on the map: coloured by cluster, shaped by label, noise small and grey.

    `labels` names the label of each row of the clustering. Equal rules are one mark, larger for many. Colours
    come again where there are more clusters than colours, far apart; each cluster's number stands in it.
    """
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - an extra

    figure, canvas = sheet(11.0, 7.6)
    axes = figure.add_axes((0.015, 0.02, 0.68, 0.86))
    axes.set(xticks=[], yticks=[], facecolor="white")
    shapes = _shapes(labels)
    rows, counts = _marks(where, labels)
    points, cluster = where.points[where.place[rows]], clustering.labels[rows]
    centres = _centres(points, cluster)
    colours = _colouring(centres)
    area = np.minimum(26.0 * np.sqrt(counts), 400.0)
    markers = np.array([shapes[labels[row]] for row in rows])
    for marker in dict.fromkeys(shapes.values()):
        for inside in (False, True):  # noise lies below
            of = np.flatnonzero((markers == marker) & ((cluster >= 0) == inside))
            axes.scatter(
                points[of, 0],
                points[of, 1],
                s=area[of] * (1.0 if inside else 0.35),
                c=[colours[int(number)] for number in cluster[of]] if inside else _NOISE,
                marker=marker,
                linewidths=0.4,
                edgecolors="white",
                zorder=2 if inside else 1,
            )
    for number, centre in centres.items():
        axes.annotate(
            str(number),
            centre,
            xytext=(0, 8.0 if _would_hide(points, points[cluster == number]) else 0.0),
            textcoords="offset points",
            ha="center",
            va="center",
            size=9,
            weight="bold",
            color=INK,
            zorder=3,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    axes.margins(0.03)
    n = len(labels)
    noise = len(clustering.long_tail.rows)
    found = _counted(len(clustering.clusters), "cluster")
    part = "" if where.shown == where.distinct else f"{where.shown:,} of {where.distinct:,} distinct rules; "
    heading(
        figure,
        0.015,
        f"{_counted(n, 'rule')}: {found}, {noise / n:.0%} outside them",
        f"{part}t-SNE: near rules are alike, distances between groups mean little",
    )
    _legend_of_shapes(axes, labels, shapes)
    _legend_of_clusters(axes, labels, clustering, colours)
    return png(figure, canvas)


def draw_distances(curves: Sequence[KDistances]) -> bytes:
    """The k-distance curves of all groups, each with a dot where an eps that was taken cuts it.

    An eps that all groups share is a line across. Beyond nine groups curves are grey.
    """
    figure, canvas = sheet(9.6, 5.4)
    alone = len(curves) == 1
    axes = figure.add_axes((0.08, 0.12, 0.89 if alone else 0.57, 0.74), facecolor="white")
    taken = sorted({eps for curve in curves for eps in curve.eps})
    entries = []
    for place, curve in enumerate(curves):
        colour = _COLOURS[place] if place < len(_COLOURS) else _NOISE
        share = np.linspace(0.0, 1.0, len(curve.distances))
        axes.plot(share, curve.distances, color=colour, linewidth=1.8, zorder=2 if colour != _NOISE else 1)
        cut = np.searchsorted(curve.distances, curve.eps, side="right") / len(curve.distances)
        if len(taken) > 1:
            axes.plot(
                cut,
                curve.eps,
                "o",
                color=colour,
                markersize=5,
                markeredgecolor="white",
                clip_on=False,
                zorder=3,
            )
        if alone and len(taken) > 1:
            for x, eps in _apart(cut, curve.eps):
                axes.annotate(
                    f"{eps:g}", (x, eps), xytext=(-5, 4), textcoords="offset points", size=8, ha="right"
                )
        name = "all rules" if curve.group is None else shown(curve.group)
        entries.append(("o", 7.0, colour, f"{name} (k = {curve.min_samples - 1})"))
    if len(taken) == 1:
        axes.axhline(taken[0], color=INK, linewidth=1.0, linestyle="--", zorder=3)
        axes.annotate(
            f"eps {taken[0]:g}", (0.01, taken[0]), xytext=(0, 4), textcoords="offset points", size=9
        )
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(bottom=0.0)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("share of rules, nearest first", size=10, color=INK)
    axes.set_ylabel("cosine distance to the k-th neighbour", size=10, color=INK)
    axes.tick_params(labelsize=9, colors=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.3g}")
    about = {0: "no eps was taken", 1: "rules below the line are cores"}.get(
        len(taken), "dots: eps that clusters were taken at; rules left of one are cores at it"
    )
    heading(figure, 0.08, "k-distance", about)
    if not alone:
        more = len(entries) - len(_COLOURS)
        if more > 0:
            entries[len(_COLOURS) :] = [
                ("_", 9.0, _NOISE, f"{more} other {'label' if more == 1 else 'labels'}")
            ]
        legend(axes, entries, "rules of the label", top=1.0)
    return png(figure, canvas)


# --- the map ---------------------------------------------------------------------------------------


def _marks(where: RuleMap, labels: Sequence[str]) -> tuple[IntVector, DoubleVector]:
    """One row for each point and label on the map, and how many rows it stands for."""
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    on_map = np.flatnonzero(where.place >= 0)
    pairs = where.place[on_map] * (int(codes.max()) + 1) + codes[on_map]
    _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    return on_map[first], counts.astype(np.float64)


def _shapes(labels: Sequence[str]) -> dict[str, str]:
    """The marker of each label; those beyond the commonest share the last."""
    order = sorted(Counter(labels).items(), key=lambda one: (-one[1], one[0]))
    return {label: _MARKERS[min(place, len(_MARKERS) - 1)] for place, (label, _) in enumerate(order)}


def _centres(points: DoubleVector, cluster: IntVector) -> dict[int, tuple[float, float]]:
    """The point of each cluster nearest to the median of them all: a cluster may lie in two places."""
    found = {}
    for number in np.unique(cluster[cluster >= 0]).tolist():
        own = points[cluster == number]
        nearest = own[np.argmin(np.square(own - np.median(own, axis=0)).sum(axis=1))]
        found[number] = (float(nearest[0]), float(nearest[1]))
    return found


def _would_hide(points: DoubleVector, own: DoubleVector) -> bool:
    spread = np.median(np.abs(own - np.median(own, axis=0)), axis=0).max()
    return len(own) <= _FEW or bool(spread < _CLOSE * np.ptp(points, axis=0).max())


def _colouring(centres: dict[int, tuple[float, float]]) -> dict[int, str]:
    """A colour for each cluster: the one whose nearest cluster so far is farthest away."""
    colours: dict[int, str] = {}
    for number, centre in centres.items():

        def room(colour: str, centre: tuple[float, float] = centre) -> float:
            same = [centres[other] for other, taken in colours.items() if taken == colour]
            return min((float(np.hypot(x - centre[0], y - centre[1])) for x, y in same), default=np.inf)

        colours[number] = max(_COLOURS, key=room)
    return colours


def _legend_of_shapes(axes: Any, labels: Sequence[str], shapes: dict[str, str]) -> None:
    counts = Counter(labels)
    own = list(shapes)[: len(_MARKERS)]
    entries = [(shapes[label], 6.5, FAINT, f"{shown(label)}:  {counts[label]:,}") for label in own]
    shared = list(shapes)[len(own) - 1 :]
    if len(shared) > 1:
        rest = sum(counts[label] for label in shared)
        entries[-1] = (_MARKERS[-1], 6.5, FAINT, f"{len(shared)} other labels:  {rest:,}")
    legend(axes, entries, "labels: rules", top=1.0)


def _legend_of_clusters(
    axes: Any, labels: Sequence[str], clustering: Clustering, colours: dict[int, str]
) -> None:
    shapes = min(len(set(labels)), len(_MARKERS))
    largest = sorted(clustering.clusters, key=lambda one: (-one.size, one.number))[: _MOST_LINES - shapes]
    entries = []
    for cluster in sorted(largest, key=lambda one: one.number):
        label, count = _commonest([labels[row] for row in cluster.members.tolist()])
        # a small cluster may have no rule on a map of a sample
        colour = colours.get(cluster.number, "white")
        share = count / cluster.size
        entries.append(
            ("o", 7.0, colour, f"{cluster.number}:  {cluster.size:,}  ({share:.0%} {shown(label)})")
        )
    left = len(clustering.clusters) - len(largest)
    if left:
        entries.append(("o", 7.0, "white", f"and {left:,} more"))
    entries.append(("o", 4.0, _NOISE, f"outside:  {len(clustering.long_tail.rows):,}"))
    legend(axes, entries, "clusters: rules (commonest label)", top=0.945 - 0.0255 * shapes)


def _commonest(labels: Sequence[str]) -> tuple[str, int]:
    return min(Counter(labels).items(), key=lambda one: (-one[1], one[0]))


def _apart(cuts: DoubleVector, eps: Sequence[float]) -> list[tuple[float, float]]:
    """Those of the points, from the last back, whose numbers do not lie upon one another."""
    kept: list[tuple[float, float]] = []
    for x, value in sorted(zip(cuts.tolist(), eps, strict=True), reverse=True):
        if not kept or kept[-1][0] - x > 0.07:
            kept.append((x, value))
    return kept


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
