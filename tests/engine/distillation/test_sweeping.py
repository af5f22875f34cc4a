"""`sweep`: figures as DBSCAN gives them, prompts as a compilation drafts them, nothing asked twice."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.clustering import cluster_rules
from engine.clustering.grid import cluster_grid
from engine.config_file import load_config
from engine.distillation.pipeline import compile_prompt
from engine.distillation.sweeping import sweep
from engine.distillation.swept import SweepResult
from engine.errors import (
    BudgetError,
    ConfigError,
    CorruptStoreError,
    DataError,
    InterruptedRunError,
    PldError,
    RunError,
)
from engine.events import Event, Notice
from engine.ports import Price
from engine.stopping import StopSignal
from engine.store import load_dataset
from engine.tokens import estimate_tokens
from engine.types import FloatVector
from tests.support import corpus
from tests.support.recording import Cast, cast

EPS = [0.2, 0.45, 0.8]


@dataclass
class Compiled:
    """A compiled run of the small corpus, the models that made it, and what they were asked for it."""

    folder: Path
    cast: Cast

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tickets"

    def sweep(self, eps: list[float] | None = None, **options: Any) -> SweepResult:
        return asyncio.run(sweep(self.run, EPS if eps is None else eps, **options))

    def drafted(self, eps: list[float] | None = None, **options: Any) -> SweepResult:
        return self.sweep(eps, models=self.cast.models(), **options)

    @property
    def vectors(self) -> FloatVector:
        loaded: FloatVector = np.load(self.run / "vectors.npy")
        return loaded


def compiled(folder: Path, **options: Any) -> Compiled:
    path = corpus.write(folder)
    clustered = '[cluster]\nmethod = "dbscan"\neps = 0.45\nmin_samples = 3\n'
    path.write_text(re.sub(r"\[cluster\][^\[]*", clustered, path.read_text()))
    config = load_config(path)
    made = cast(config, load_dataset(config).train)
    asyncio.run(compile_prompt(config, made.models(), **options))
    return Compiled(folder, made)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compiled(tmp_path_factory.mktemp("sweep"), ablation=True)


@pytest.fixture
def made(template: Compiled, tmp_path: Path) -> Compiled:
    """A copy of its own; models with the same names, that have been asked nothing."""
    shutil.copytree(template.folder, tmp_path / "copy")
    config = load_config(tmp_path / "copy" / "pld.toml")
    manifest = tmp_path / "copy" / "runs" / "tickets" / "manifest.json"
    document = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**document, "base": str(tmp_path / "copy")}))
    return Compiled(tmp_path / "copy", cast(config, load_dataset(config).train))


def change_manifest(run: Path, **changed: Any) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changed}))


# --- figures ---------------------------------------------------------------------------------------


def test_the_figures_are_those_of_each_setting_alone(made: Compiled) -> None:
    labels = pl.read_parquet(made.run / "clusters.parquet")["label"].to_list()
    found = made.sweep(min_samples=[3, 8])
    assert [(one.eps, one.min_samples) for one in found.settings] == [(e, m) for m in (3, 8) for e in EPS]
    assert (found.rules, found.within, found.centred) == (len(labels), "label", False)
    for one in found.settings:
        alone = cluster_rules(made.vectors, labels, eps=one.eps, min_samples=one.min_samples)
        assert one.clusters == len(alone.clusters)
        assert one.noise == np.count_nonzero(alone.labels == -1)
        assert one.largest == max((cluster.size for cluster in alone.clusters), default=0)
        if alone.clusters:
            assert one.majority_share == 1.0  # each label's rules were clustered apart
        inside = {labels[row] for row in np.flatnonzero(alone.labels >= 0)}
        assert set(one.missing_labels) == set(labels) - inside
        assert one.drafted is None
    assert len({one.clusters for one in found.settings}) > 2


def test_clustered_together_a_cluster_has_several_labels(made: Compiled) -> None:
    labels = pl.read_parquet(made.run / "clusters.parquet")["label"].to_list()
    (one,) = made.sweep([1.5], within="all").settings
    assert (one.clusters, one.noise, one.largest) == (1, 0, len(labels))
    most = max(labels.count(label) for label in set(labels))
    assert one.majority_share == pytest.approx(most / len(labels))


def test_the_run_itself_stands_beside_them(made: Compiled) -> None:
    found = made.sweep([0.45])
    used = found.compiled["clustering"]
    (one,) = found.settings
    assert one.min_samples == 3  # the run's
    assert (one.clusters, one.noise, one.largest) == (used["clusters"], used["noise"], used["largest"])
    assert found.compiled["macro_f1"] > 0.8
    assert found.validation_rows == 60


def test_figures_alone_ask_and_write_nothing(made: Compiled) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.run.rglob("*")}
    (made.folder / "data.parquet").unlink()  # not needed either
    found = made.sweep()
    assert (found.requests, found.cost_usd) == ({"sent": 0, "cached": 0, "failed": 0}, 0.0)
    assert {path: path.stat().st_mtime_ns for path in made.run.rglob("*")} == before


def test_a_direction_that_all_rules_share_is_taken_off_where_the_run_did_so(made: Compiled) -> None:
    rng = np.random.default_rng(0)
    n = len(made.vectors)
    topics = np.eye(32)[rng.integers(0, 4, n)] + 0.1 * rng.standard_normal((n, 32))
    shifted = topics + 3.0  # a cone: everything is near everything
    shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
    np.save(made.run / "vectors.npy", shifted.astype(np.float32))
    raw = made.sweep([0.3], within="all")
    centred = made.sweep([0.3], within="all", centred=True)
    assert (raw.centred, raw.settings[0].clusters) == (False, 1)
    assert (centred.centred, centred.settings[0].clusters) == (True, 4)
    stages = json.loads((made.run / "manifest.json").read_bytes())["stages"]
    stages["clustering"]["method"] = "calibrated"
    change_manifest(made.run, stages=stages)
    assert made.sweep([0.3], within="all") == centred.__class__(
        **{**vars(centred), "compiled": made.sweep([0.3]).compiled}
    )
    assert not made.sweep([0.3], within="all", centred=False).centred


def test_a_grid_is_each_setting_alone() -> None:
    rng = np.random.default_rng(1)
    rows = np.repeat(rng.standard_normal((5, 12)), 20, axis=0) + 0.3 * rng.standard_normal((100, 12))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    settings = [(0.05, 3), (0.2, 3), (0.2, 10)]
    for groups in (None, ["ab"[row % 2] for row in range(100)]):
        grid = cluster_grid(vectors, groups, settings, centre=False, seed=7)
        for (eps, min_samples), found in zip(settings, grid.clusterings, strict=True):
            alone = cluster_rules(vectors, groups, eps=eps, min_samples=min_samples)
            assert found.labels.tolist() == alone.labels.tolist()
            assert found.core.tolist() == alone.core.tolist()
            assert [(one.group, one.eps) for one in found.clusters] == [
                (one.group, one.eps) for one in alone.clusters
            ]


def test_a_centred_grid_knows_what_was_taken_off() -> None:
    rng = np.random.default_rng(2)
    rows = np.repeat(np.eye(12)[:4], 15, axis=0) + 0.1 * rng.standard_normal((60, 12)) + 2.0
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    grid = cluster_grid(vectors, None, [(0.3, 3)], centre=True, seed=7)
    assert grid.centred
    (found,) = grid.clusterings
    assert len(found.clusters) == 4
    mean = vectors.mean(axis=0)
    for cluster in found.clusters:
        assert cluster.mean == pytest.approx(mean, abs=1e-6)
        middle = (vectors[cluster.members] - mean).mean(axis=0)
        assert cluster.centroid @ middle / np.linalg.norm(middle) > 0.999
    assert not cluster_grid(np.eye(30, dtype=np.float32), None, [(0.3, 3)], centre=True, seed=7).centred


# --- prompts ---------------------------------------------------------------------------------------


def test_the_runs_own_setting_becomes_the_prompt_that_the_run_began_with(made: Compiled) -> None:
    found = made.drafted([0.45])
    (one,) = found.settings
    assert one.drafted is not None
    began = json.loads((made.run / "ablation" / "clustered.json").read_bytes())
    assert one.drafted.prompt.to_json() == began
    # all of it was answered before
    assert made.cast.sent() == 0
    assert found.requests["sent"] == 0
    assert found.requests["cached"] > 60


def test_each_setting_is_scored_on_validation_alone(made: Compiled) -> None:
    found = made.drafted()
    document = found.to_json()
    for one, figures in zip(found.settings, document["settings"], strict=True):
        assert one.drafted is not None
        assert one.drafted.scores.n == 60
        assert len(one.drafted.prompt.instructions) == one.clusters
        assert figures["prompt_tokens"] == estimate_tokens(one.drafted.prompt.text)
        assert 0.3 < figures["validation"]["macro_f1"] <= 1.0
    splits = {row["id"]: row["split"] for row in corpus.rows()}
    assert {splits[request.id] for request in made.cast.student.asked} == {"validation"}
    shown = made.cast.synthesizer.seen()
    texts = [row["text"] for row in corpus.rows() if row["split"] != "train"]
    assert not [text for text in texts if text in shown]  # C7
    assert not made.cast.teacher.asked + made.cast.resolver.asked + made.cast.embedder.asked  # type: ignore[operator]


def test_rules_near_a_cluster_are_evidence_for_it(made: Compiled) -> None:
    labels = pl.read_parquet(made.run / "clusters.parquet")["label"].to_list()
    ids = pl.read_parquet(made.run / "clusters.parquet")["sample_id"].to_list()
    (one,) = made.drafted([0.45], min_samples=[6]).settings
    alone = cluster_rules(made.vectors, labels, eps=0.45, min_samples=6)
    assert one.drafted is not None
    outside = 0
    for instruction in one.drafted.prompt.instructions:
        (cluster,) = [each for each in alone.clusters if each.number == instruction.cluster]
        own = {ids[row] for row in cluster.members.tolist()}
        near = alone.long_tail.near(cluster.number, 1.0 - 1.5 * 0.45)[: cluster.size]
        assert set(instruction.rule_ids) == own | {ids[row] for row in near.tolist()}
        outside += len(near)
    assert outside


def test_c3_the_same_sweep_again_sends_nothing(made: Compiled) -> None:
    first = made.drafted()
    sent = made.cast.sent()
    assert first.requests["sent"] == sent > 0
    second = made.drafted()
    assert made.cast.sent() == sent
    assert second.requests["sent"] == 0
    assert second.settings == first.settings


def test_a_setting_without_clusters_is_the_zero_shot_prompt(made: Compiled) -> None:
    (one,) = made.drafted([0.001], min_samples=[100]).settings
    assert (one.clusters, one.majority_share) == (0, None)
    assert one.drafted is not None
    assert one.drafted.prompt.instructions == ()
    assert set(one.missing_labels) == set(corpus.WORDS)
    assert not made.cast.synthesizer.asked


def test_c4_the_cap_on_cost_holds_and_a_larger_one_goes_on(made: Compiled) -> None:
    made.cast.synthesizer.price = made.cast.student.price = Price(1.0, 1.0)
    whole = made.cast.sent()
    with pytest.raises(BudgetError):
        made.drafted(max_cost_usd=0.05)
    some = made.cast.sent()
    made.drafted(max_cost_usd=100.0)
    asked = [request.digest("") for request in made.cast.synthesizer.asked + made.cast.student.asked]
    assert whole < some < made.cast.sent()
    assert len(asked) == len(set(asked))


def test_a_stop_ends_it_before_anything_is_asked(made: Compiled) -> None:
    stop = StopSignal()
    stop.request()
    with pytest.raises(InterruptedRunError):
        made.drafted(stop=stop)
    assert made.cast.sent() == 0


def test_it_says_what_it_is_at(made: Compiled) -> None:
    told: list[Event] = []
    made.drafted([0.2, 0.45], emit=told.append)
    lines = [event.text for event in told if isinstance(event, Notice)]
    assert [line.partition(":")[0] for line in lines] == ["eps 0.2, min_samples 3", "eps 0.45, min_samples 3"]


def test_a_faithful_run_is_swept_by_the_papers_recipe(tmp_path: Path) -> None:
    made = compiled(tmp_path, faithful=True)
    (one,) = made.drafted([0.4]).settings
    assert one.min_samples == 6
    assert one.drafted is not None
    assert one.drafted.prompt.general is None


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": []}, "at least one eps"),
        ({"eps": [0.0]}, "between 0 and 2"),
        ({"eps": [0.3, 2.0]}, "between 0 and 2"),
        ({"eps": [float("nan")]}, "between 0 and 2"),
        ({"eps": [0.3], "min_samples": [0]}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(made: Compiled, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made.sweep(**options)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run directory"):
        asyncio.run(sweep(tmp_path / "none", EPS))


def test_a_run_without_a_manifest_is_refused(made: Compiled) -> None:
    (made.run / "manifest.json").unlink()
    with pytest.raises(RunError, match="holds no rules yet; run `pld compile`"):
        made.sweep()


def test_a_run_that_was_stopped_is_refused(made: Compiled) -> None:
    change_manifest(made.run, state="running")
    with pytest.raises(RunError, match="not compiled to its end"):
        made.sweep()


@pytest.mark.parametrize("name", ["rules.parquet", "vectors.npy", "clusters.parquet"])
def test_a_missing_file_is_named(made: Compiled, name: str) -> None:
    (made.run / name).unlink()
    with pytest.raises(RunError, match=name):
        made.sweep()


def test_files_of_different_compilations_are_refused(made: Compiled) -> None:
    np.save(made.run / "vectors.npy", made.vectors[1:])
    with pytest.raises(CorruptStoreError, match="compile again"):
        made.sweep()


def test_no_prompt_is_made_for_data_that_changed(made: Compiled) -> None:
    rows = corpus.rows()
    rows[0]["text"] += " more"
    pl.DataFrame(rows).write_parquet(made.folder / "data.parquet")
    with pytest.raises(DataError, match="its data changed"):
        made.drafted()
    assert made.cast.sent() == 0
    assert made.sweep().settings  # the figures need no data


def test_no_error_holds_the_text_of_a_row(made: Compiled) -> None:
    texts = [row["text"] for row in corpus.rows()]
    np.save(made.run / "vectors.npy", made.vectors[1:])
    with pytest.raises(PldError) as caught:
        made.sweep()
    assert not [text for text in texts if text in str(caught.value)]


def test_the_markdown_of_a_result_has_a_line_for_each_setting(made: Compiled) -> None:
    shown = made.drafted([0.2, 0.45])._repr_markdown_()
    assert [line.split("|")[1].strip() for line in shown.splitlines()[-2:]] == ["0.2", "0.45"]
