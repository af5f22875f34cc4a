"""The pictures of a clustering in the run directory, where matplotlib is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from engine.clustering import Clustering
from engine.clustering.distances import KDistances, measured_distances, recorded_distances
from engine.clustering.mapping import map_rules
from engine.clustering.pictures import draw_distances, draw_map
from engine.events import EventSink, Notice
from engine.store import RunDirectory
from engine.types import FloatVector

MAP, DISTANCES = "clusters.png", "k-distance.png"


async def write_pictures(
    run: RunDirectory,
    vectors: FloatVector,
    labels: Sequence[str],
    clustering: Clustering,
    record: Mapping[str, Any],
    *,
    seed: int,
    emit: EventSink,
) -> None:
    """Draw `clusters.png` and `k-distance.png` into the locked directory `run`.

    `vectors` (n, d) float32 of unit norm, n ≥ 1, and `labels` belong to the rules that were clustered;
    `record` is what clustering.json says. Without matplotlib, or where drawing fails, the pictures of an
    earlier clustering go, and a notice says why.
    """
    missing = Notice("no pictures of the clusters: pip install 'pld-engine[pictures]' brings what draws them")
    try:
        drawn = await asyncio.to_thread(_draw, vectors, labels, clustering, record, seed)
    except Exception as exc:  # noqa: BLE001 - what a compilation has paid for must not end with a picture
        for name in (MAP, DISTANCES):
            run.remove(name)
        if isinstance(exc, ModuleNotFoundError) and (exc.name or "").partition(".")[0] == "matplotlib":
            emit(missing)
        else:
            emit(Notice(f"the clusters could not be drawn ({type(exc).__name__})", warning=True))
        return
    for name, picture in drawn.items():
        run.write_bytes(name, picture)


def _draw(
    vectors: FloatVector, labels: Sequence[str], clustering: Clustering, record: Mapping[str, Any], seed: int
) -> dict[str, bytes]:
    import matplotlib  # noqa: F401, PLC0415 - an extra: missed before any work is done

    return {
        MAP: draw_map(map_rules(vectors, seed=seed), labels, clustering),
        DISTANCES: draw_distances(_curves(vectors, labels, record, seed)),
    }


def _curves(
    vectors: FloatVector, labels: Sequence[str], record: Mapping[str, Any], seed: int
) -> list[KDistances]:
    if "groups" in record:
        return recorded_distances(record)
    return measured_distances(
        vectors,
        labels if record["within"] == "label" else None,
        min_samples=record["min_samples"],
        eps=record.get("eps"),
        seed=seed,
    )
