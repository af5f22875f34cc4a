"""Pictures in a run directory: private, replaced, and missed politely where matplotlib is not installed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.clustering import cluster_rules
from engine.distillation.picturing import DISTANCES, MAP, write_pictures
from engine.events import Event, Notice
from engine.store import RunDirectory
from engine.types import FloatVector

LABELS = ["a", "b"] * 15


def rules() -> FloatVector:
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(8)[:3], 10, axis=0) + 0.1 * rng.standard_normal((30, 8))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def written(folder: Path, record: dict[str, Any]) -> tuple[RunDirectory, list[Event]]:
    run, told = RunDirectory.create(folder / "run"), list[Event]()
    groups = LABELS if record["within"] == "label" else None
    clustering = cluster_rules(rules(), groups, eps=0.2, min_samples=3)
    with run.lock():
        asyncio.run(write_pictures(run, rules(), LABELS, clustering, record, seed=7, emit=told.append))
    return run, told


def test_both_pictures_are_written_and_private(tmp_path: Path) -> None:
    run, told = written(tmp_path, {"within": "all", "min_samples": 3, "eps": 0.2})
    for name in (MAP, DISTANCES):
        assert run.read_bytes(name).startswith(b"\x89PNG")
        assert (run.path / name).stat().st_mode & 0o777 == 0o600
    assert not told


def test_the_record_of_any_method_is_enough(tmp_path: Path) -> None:
    group = {
        "group": "a",
        "min_samples": 3,
        "k_distance": [[0.0, 0.1], [0.5, 0.2], [1.0, 0.4]],
        "chosen": [{"eps": 0.15}, {"eps": 0.3}],
    }
    plain, _ = written(tmp_path / "dbscan", {"within": "label", "min_samples": 3, "eps": 0.2})
    calibrated, _ = written(
        tmp_path / "calibrated",
        {"within": "label", "min_samples": {"a": 3}, "eps": [0.15, 0.3], "groups": [group]},
    )
    hierarchical, _ = written(tmp_path / "hdbscan", {"within": "label", "min_samples": 3})
    assert len({run.read_bytes(DISTANCES) for run in (plain, calibrated, hierarchical)}) == 3


def test_without_matplotlib_a_notice_says_how_to_get_it_and_old_pictures_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = written(tmp_path, {"within": "all", "min_samples": 3, "eps": 0.2})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, told = written(tmp_path, {"within": "all", "min_samples": 3, "eps": 0.2})
    assert len(told) == 1
    assert isinstance(told[0], Notice)
    assert "pip install 'pld-engine[pictures]'" in told[0].text
    assert not told[0].warning
    assert not run.has(MAP)
    assert not run.has(DISTANCES)


def test_another_module_that_is_missing_is_told_of_as_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    _, told = written(tmp_path, {"within": "all", "min_samples": 3, "eps": 0.2})
    assert told == [Notice("the clusters could not be drawn (ModuleNotFoundError)", warning=True)]


def test_a_failure_of_drawing_is_a_warning_and_leaves_no_stale_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"within": "all", "min_samples": 3, "eps": 0.2}
    written(tmp_path, record)

    def broken(*_: object) -> bytes:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("engine.distillation.picturing.draw_map", broken)
    run, told = written(tmp_path, record)
    assert told == [Notice("the clusters could not be drawn (RuntimeError)", warning=True)]
    assert not (run.path / MAP).exists()
    assert not (run.path / DISTANCES).exists()
