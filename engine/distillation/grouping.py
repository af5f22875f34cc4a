"""From rules and their vectors to clusters, by the method that is configured; what of it is to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.clustering import Clustering, calibrated_clusters, cluster_rules, hdbscan_rules
from engine.config import ClusterConfig, Config
from engine.ports import Within
from engine.types import FloatVector, MicroRule

# Synthesis writes at most 150 words and a title.
_INSTRUCTION_TOKENS = 225
# On rules that models wrote at most half were outside clusters; on settings that failed, nearly all.
_NEARLY_ALL = 0.8
# More than half of all rules in one cluster: its instruction would have to be most of the prompt.
_GIANT = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """The clusters, `figures` for the manifest, `record` for clustering.json, and `alarms`, a line each."""

    clustering: Clustering
    figures: dict[str, Any]
    record: dict[str, Any] = field(repr=False)
    alarms: tuple[str, ...]


def most_clusters(config: Config) -> int:
    """How many instructions of the length that synthesis asks for fit in a prompt; one per label at least."""
    return max(len(config.labels), config.resolve.max_prompt_tokens // _INSTRUCTION_TOKENS)


def group_rules(
    rules: Sequence[MicroRule],
    vectors: FloatVector,
    settings: ClusterConfig,
    *,
    preferred: Within,
    most: int,
    seed: int,
) -> Grouping:
    """Cluster `rules`, whose `vectors` are (n, d) float32 of unit norm, as `settings` say.

    `preferred` is what the embedder says of clustering within labels, `most` bounds the clusters of a
    calibrated clustering, `seed` draws its samples.
    """
    labels = [rule.label for rule in rules]
    within: Within = settings.within or preferred
    record: dict[str, Any] = {}
    eps, min_samples = settings.settings
    chosen: dict[str, Any] = {"min_samples": min_samples}
    if settings.method == "calibrated":
        # an embedder that prefers none says "all": then the rules decide
        fixed = settings.within or ("label" if preferred == "label" else None)
        found, calibration = calibrated_clusters(vectors, labels, within=fixed, most=most, seed=seed)
        within, record = calibration.within, calibration.record
        eps_used = sorted({cluster.eps for cluster in found.clusters})
        chosen = {
            "eps": [eps_used[0], eps_used[-1]] if eps_used else None,
            "min_samples": {group["group"] or "": group["min_samples"] for group in record["groups"]},
        }
    elif settings.method == "hdbscan":
        groups = labels if within == "label" else None
        found = hdbscan_rules(vectors, groups, min_samples=min_samples, seed=seed)
    else:
        groups = labels if within == "label" else None
        found = cluster_rules(vectors, groups, eps=eps, min_samples=min_samples)
        chosen["eps"] = eps
    figures = {
        "method": settings.method,
        "clusters": len(found.clusters),
        "noise": len(found.long_tail.rows),
        "largest": max((cluster.size for cluster in found.clusters), default=0),
        "within": within,
        **chosen,
    }
    return Grouping(found, figures, {**figures, **record}, alarms(found, labels, settings))


def alarms(found: Clustering, labels: Sequence[str], settings: ClusterConfig) -> tuple[str, ...]:
    """What may spoil the prompt: a giant cluster, nearly all noise, labels that vanish; and what to do."""
    lines = []
    n = len(labels)
    # within a label one cluster may well be the label
    largest = max((cluster.size for cluster in found.clusters if cluster.group is None), default=0)
    noise = len(found.long_tail.rows)
    calibrated = settings.method == "calibrated"
    if not found.clusters:
        lines.append(f"no rules are alike enough to form a cluster: {_LOOSER[settings.method]}")
    elif noise > _NEARLY_ALL * n:
        lines.append(f"{noise} of {n} rules are outside every cluster: {_LOOSER[settings.method]}")
    if largest > _GIANT * n and len(set(labels)) > 1:
        lines.append(f"one cluster holds {largest} of {n} rules: {_STRICTER[settings.method]}")
    inside = {labels[row] for cluster in found.clusters for row in cluster.members.tolist()}
    gone = sorted(set(labels) - inside)
    if gone and found.clusters:
        advice = 'set cluster.within = "label"'
        if settings.within == "label" or not calibrated:
            advice = "give it more training rows, or leave it to conflict resolution"
        lines.append(f"no cluster has a rule of {', '.join(map(repr, gone))}: {advice}")
    return tuple(lines)


_LOOSER = {
    "calibrated": "the rules may be too few or too different; more training rows help, or "
    'cluster.method = "dbscan" with a larger eps (clustering.json has the distances)',
    "dbscan": 'raise cluster.eps, or leave it to cluster.method = "calibrated"',
    "hdbscan": 'lower cluster.min_samples, or leave it to cluster.method = "calibrated"',
}
_STRICTER = {
    "calibrated": 'if it holds several topics, cluster.method = "dbscan" with a smaller eps splits it '
    "(clustering.json has the distances)",
    "dbscan": 'lower cluster.eps, or leave it to cluster.method = "calibrated"',
    "hdbscan": 'lower cluster.min_samples, or leave it to cluster.method = "calibrated"',
}
