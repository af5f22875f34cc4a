"""The pictures: equal input gives equal bytes, no label is parsed, every clustering can be drawn."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.clustering import calibrated_clusters, cluster_rules, mapping
from engine.clustering.distances import KDistances, measured_distances, recorded_distances
from engine.clustering.mapping import map_rules
from engine.clustering.pictures import draw_distances, draw_map
from engine.clustering.sheet import shown
from engine.types import FloatVector
from tests.conftest import ROOT

HOSTILE = ["$\\frac{$", "a_b^c$", "中文", "two\nlines", "", "\\input{x}", "x" * 200, "\x07", "ß é Ж"]


def unit(rows: object) -> FloatVector:
    found = np.asarray(rows, np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def blobs(count: int = 3, size: int = 20, dim: int = 16, seed: int = 0) -> FloatVector:
    """`count` groups of `size` rows around directions of their own."""
    rng = np.random.default_rng(seed)
    middles = np.repeat(np.eye(dim)[:count], size, axis=0)
    return unit(middles + 0.08 * rng.standard_normal((count * size, dim)))


def drawn(vectors: FloatVector, labels: Sequence[str], eps: float = 0.2, min_samples: int = 4) -> bytes:
    clustering = cluster_rules(vectors, None, eps=eps, min_samples=min_samples)
    return draw_map(map_rules(vectors, seed=7), labels, clustering)


def chunks(picture: bytes) -> list[bytes]:
    """The kinds of a PNG's chunks."""
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    found, at = [], 8
    while at < len(picture):
        (size,) = struct.unpack(">I", picture[at : at + 4])
        found.append(picture[at + 4 : at + 8])
        at += 12 + size
    return found


# --- bytes -----------------------------------------------------------------------------------------


def test_c12_equal_input_gives_equal_bytes() -> None:
    vectors, labels = blobs(), ["a", "b", "c"] * 20
    assert drawn(vectors, labels) == drawn(vectors, labels)
    curves = measured_distances(vectors, labels, min_samples=4, eps=0.2, seed=7)
    assert draw_distances(curves) == draw_distances(curves)


def test_a_picture_says_nothing_of_who_made_it_and_when() -> None:
    vectors = blobs()
    curves = measured_distances(vectors, None, min_samples=4, eps=0.2, seed=7)
    for picture in (drawn(vectors, ["a"] * 60), draw_distances(curves)):
        assert set(chunks(picture)) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


_DRAW = """
import sys
from engine.clustering.distances import measured_distances
from engine.clustering.pictures import draw_distances
from tests.engine.clustering.test_pictures import HOSTILE, blobs, drawn
labels = [HOSTILE[row % len(HOSTILE)] for row in range(60)]
sys.stdout.buffer.write(drawn(blobs(), labels))
sys.stdout.buffer.write(draw_distances(measured_distances(blobs(), labels, min_samples=4, eps=None, seed=7)))
"""


@pytest.mark.slow
def test_c11_no_setting_of_matplotlib_lets_labels_be_parsed(tmp_path: Path) -> None:
    settings = tmp_path / "matplotlibrc"
    settings.write_text("text.usetex: True\naxes.formatter.use_mathtext: True\nsavefig.bbox: tight\n")
    found = []
    for given in (settings, tmp_path / "none"):
        environment = {**os.environ, "MATPLOTLIBRC": str(given)}
        done = subprocess.run(
            [sys.executable, "-c", _DRAW], capture_output=True, env=environment, cwd=ROOT, check=True
        )
        found.append(done.stdout)
    assert found[0]
    assert found[0] == found[1]


# --- every shape of a clustering -------------------------------------------------------------------


@pytest.mark.parametrize(
    "vectors",
    [
        unit([[1, 0, 0]]),
        unit([[1, 0], [0, 1]]),
        unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        unit([[1, 0, 0]] * 30),
        unit([[1.0]] * 3 + [[-1.0]] * 2),
        unit(np.eye(12)),
        unit([[1, 0, 0]] * 20 + [[0, 1, 0]] * 20),
        np.concatenate([blobs(), np.zeros((2, 16), np.float32)]),
    ],
    ids=["one", "two", "three", "all equal", "a line", "no cluster", "two points", "zero rows"],
)
def test_odd_sets_can_be_drawn(vectors: FloatVector) -> None:
    labels = ["ab"[row % 2] for row in range(len(vectors))]
    assert chunks(drawn(vectors, labels))
    for groups, eps in ((None, 0.2), (labels, None)):
        assert chunks(draw_distances(measured_distances(vectors, groups, min_samples=4, eps=eps, seed=7)))


def test_labels_are_written_as_they_are() -> None:
    labels = [HOSTILE[row % len(HOSTILE)] for row in range(60)]
    assert chunks(
        drawn(blobs(), labels)
    )  # mathtext would refuse the first of them, and the font warn of others
    assert chunks(draw_distances(measured_distances(blobs(), labels, min_samples=3, eps=0.1, seed=7)))
    assert shown("a_b^c$") == "a_b^c$"
    assert shown("ß é Ж") == "ß é Ж"
    assert shown("中") == "\\u4e2d"
    assert shown("a\nb") == "a\\nb"
    assert shown("x" * 200) == "x" * 25 + "…"


def test_many_labels_and_clusters_can_be_drawn() -> None:
    vectors = blobs(40, 6, 48)
    labels = [f"label {row % 30}" for row in range(len(vectors))]
    assert cluster_rules(vectors, None, eps=0.25, min_samples=4).labels.max() == 39
    assert chunks(drawn(vectors, labels, eps=0.25))
    assert chunks(draw_distances(measured_distances(vectors, labels, min_samples=4, eps=0.2, seed=7)))


# --- the map ---------------------------------------------------------------------------------------


def test_near_rows_are_near_on_the_map() -> None:
    vectors = blobs(6, 15)
    found = map_rules(vectors, seed=7)
    apart = np.linalg.norm(found.points[:, None] - found.points, axis=2)
    np.fill_diagonal(apart, np.inf)
    assert np.mean(apart.argmin(axis=1) // 15 == np.arange(90) // 15) > 0.95


def test_equal_rows_are_one_point() -> None:
    vectors = np.concatenate([blobs(), blobs()])
    found = map_rules(vectors, seed=7)
    assert found.shown == found.distinct == 60
    assert found.place[:60].tolist() == found.place[60:].tolist() == list(range(60))


def test_of_many_rows_a_sample_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "MOST_POINTS", 25)
    vectors = blobs()
    found = map_rules(vectors, seed=7)
    assert (found.shown, found.distinct) == (25, 60)
    assert sorted(found.place[found.place >= 0]) == list(range(25))
    # a cluster may have no rule on it
    assert chunks(drawn(vectors, ["a"] * 60))
    assert found.place.tolist() != map_rules(vectors, seed=8).place.tolist()


# --- the curves ------------------------------------------------------------------------------------


def test_measured_distances_are_those_of_all_pairs() -> None:
    vectors, labels = blobs(), ["a"] * 25 + ["b"] * 35
    found = measured_distances(vectors, labels, min_samples=4, eps=0.2, seed=7)
    assert [(one.group, one.min_samples, one.eps) for one in found] == [("a", 4, (0.2,)), ("b", 4, (0.2,))]
    for one, rows in zip(found, (vectors[:25], vectors[25:]), strict=True):
        pairs = np.sort(1.0 - rows.astype(np.float64) @ rows.T.astype(np.float64), axis=1)
        assert np.allclose(one.distances, np.sort(pairs[:, 3]), atol=1e-6)  # the row itself comes first


def test_share_of_cores_can_be_read_off_a_curve() -> None:
    vectors = blobs()
    clustering = cluster_rules(vectors, None, eps=0.1, min_samples=6)
    (curve,) = measured_distances(vectors, None, min_samples=6, eps=0.1, seed=7)
    assert np.count_nonzero(curve.distances <= 0.1) == np.count_nonzero(clustering.core)


def test_a_row_that_needs_no_neighbour_is_a_core_at_any_eps() -> None:
    (curve,) = measured_distances(blobs(), None, min_samples=1, eps=0.1, seed=7)
    assert not curve.distances.any()


def test_a_calibration_is_drawn_as_it_was_recorded() -> None:
    vectors, labels = blobs(), ["a", "b", "c"] * 20
    clustering, calibration = calibrated_clusters(vectors, labels, within="label", most=26, seed=7)
    found = recorded_distances(calibration.record)
    assert [one.group for one in found] == ["a", "b", "c"]
    assert {eps for one in found for eps in one.eps} == {one.eps for one in clustering.clusters}
    assert all((np.diff(one.distances) >= 0).all() for one in found)
    assert chunks(draw_distances(found))
    assert chunks(draw_map(map_rules(vectors, seed=7), labels, clustering))


def test_a_curve_without_a_chosen_eps_can_be_drawn() -> None:
    assert chunks(draw_distances([KDistances(None, 3, np.linspace(0.0, 1.0, 11), ())]))
