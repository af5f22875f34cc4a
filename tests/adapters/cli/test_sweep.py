"""`pld sweep` as a user types it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.cli import sweep as command
from adapters.cli.main import app
from adapters.local import fit_local
from engine.config_file import load_config
from engine.store import load_dataset
from tests.support import corpus
from tests.support.answerer import Answerer

runner = CliRunner()
CLUSTER = '[cluster]\nmethod = "dbscan"\neps = 0.45\nmin_samples = 3\n'


def pld(*arguments: str | Path) -> Result:
    return runner.invoke(app, [str(one) for one in arguments])


def write(folder: Path, more: str = "") -> Path:
    path = corpus.write(folder, more=more)
    text = re.sub(r"\[cluster\][^\[]*", CLUSTER, path.read_text())
    path.write_text(text.replace("max_rounds = 3", "max_rounds = 1\nprune = false"))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled run of the small corpus, made by the command."""
    made = tmp_path_factory.mktemp("sweep")
    assert pld("compile", write(made), "-q").exit_code == 0
    return made


@pytest.fixture
def run(folder: Path) -> Path:
    return folder / "runs" / "tickets"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("no model is to be opened")


def table(output: str) -> list[list[str]]:
    rows = [line for line in output.splitlines() if line[:1] in "┃│"]
    return [[cell.strip() for cell in re.split("[┃│]", row)[1:-1]] for row in rows]


def changed(run: Path, tmp_path: Path, **tables: Any) -> Path:
    """A copy of the run whose configuration has other tables."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    document = json.loads((copy / "manifest.json").read_bytes())
    document["config"] |= tables
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


def test_the_table_fits_eighty_columns(run: Path) -> None:
    found = pld("sweep", run, "--eps", "0.2,0.45,0.8", "--min-samples", "3,6")
    assert found.exit_code == 0, found.output
    head, *rows = table(found.stdout)
    assert head == ["eps", "min", "clusters", "noise", "largest", "label", "tokens", "F1", "95%"]
    assert [row[:2] for row in rows] == [[e, m] for m in ("3", "6") for e in ("0.2", "0.45", "0.8")]
    assert all(len(line) <= 80 for line in found.stdout.splitlines() if line[:1] in "┏┃┡│└")
    assert "…" not in found.stdout
    assert all(float(row[7]) > 0.5 for row in rows)
    for words in ("60 validation rows", "this run (dbscan)", "from the cache", "keyword-rule baseline"):
        assert words in found.stdout
    for stage in ("clustering", "data", "synthesis", "evaluation"):
        assert f"{stage}: " in found.stderr


def test_one_min_samples_needs_no_column(run: Path) -> None:
    found = pld("sweep", run, "--eps", "0.45", "--no-synthesize")
    head, row = table(found.stdout)
    assert head == ["eps", "clusters", "noise", "largest", "label"]
    assert row[0] == "0.45"
    assert "min_samples 3" in found.stdout


def test_json_is_one_object(run: Path) -> None:
    found = pld("sweep", run, "--eps", "0.2,0.45", "--json", "--quiet")
    assert (found.exit_code, found.stderr) == (0, "")
    document = json.loads(found.stdout)
    assert (document["rules"], document["n"], document["split"]) == (120, 60, "validation")
    assert (document["within"], document["centred"], document["cost_usd"]) == ("label", False, 0)
    first, second = document["settings"]
    assert (first["eps"], second["eps"], first["min_samples"]) == (0.2, 0.45, 3)
    for one in document["settings"]:
        assert {"clusters", "noise", "largest", "majority_share", "missing_labels", "failed"} <= set(one)
        assert one["prompt_tokens"] > 0
        low, high = one["validation"]["ci95"]
        assert low <= one["validation"]["macro_f1"] <= high
    assert document["requests"]["failed"] == 0


def test_without_synthesis_no_model_is_opened_and_nothing_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_models", refuse)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    found = pld("sweep", run, "--eps", "0.2,0.45", "--no-synthesize", "--json")
    assert found.exit_code == 0, found.output
    assert all(one["validation"] is None for one in json.loads(found.stdout)["settings"])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("role", ["synthesizer", "student"])
def test_models_that_may_cost_are_asked_only_where_that_is_said(run: Path, tmp_path: Path, role: str) -> None:
    copy = changed(run, tmp_path, **{role: {"model": "openai:x@http://127.0.0.1:9/v1"}})
    found = pld("sweep", copy, "--eps", "0.2,0.45")
    assert found.exit_code == 0, found.output
    clusters = sum(int(row[1]) for row in table(found.stdout)[1:])
    assert f"about {clusters + 2} requests to the synthesizer and 120 to the student" in found.stdout
    asked = pld("sweep", copy, "--eps", "0.2", "--synthesize", "--max-cost", "1", "-q")
    assert asked.exit_code == 1
    assert asked.stdout == ""
    assert len(asked.stderr.splitlines()) == 1


def test_labels_that_no_cluster_has_are_named(run: Path) -> None:
    found = pld("sweep", run, "--eps", "0.05,0.8", "--min-samples", "6,100", "--no-synthesize")
    assert "eps 0.05, min_samples 6: no cluster has a rule of billing" in found.stdout
    assert "min_samples 100: no" not in found.stdout  # there is no cluster at all


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--eps", "0.2;0.3"], 2, "not a list of numbers"),
        (["--eps", "0.2", "--min-samples", "2.5"], 2, "not a list of numbers"),
        (["--eps", "3"], 2, "pld: eps is a cosine distance between 0 and 2, both excluded, not 3"),
        (["--eps", "nan"], 2, "pld: eps is a cosine distance between 0 and 2"),
        (["--eps", "0.3", "--min-samples", "0"], 2, "pld: min_samples must be at least 1, not 0"),
        ([], 2, "--eps"),
    ],
)
def test_mistakes_are_told(run: Path, arguments: list[str], code: int, message: str) -> None:
    found = pld("sweep", run, *arguments, "-q")
    assert (found.exit_code, found.stdout) == (code, "")
    assert message in found.stderr


def test_a_run_that_cannot_be_swept_gets_one_line(run: Path, tmp_path: Path) -> None:
    missing = pld("sweep", tmp_path / "none", "--eps", "0.3")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == f"pld: {tmp_path / 'none'}: no such run directory\n"
    copy = changed(run, tmp_path)
    document = json.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_text(json.dumps({**document, "state": "running"}))
    unfinished = pld("sweep", copy, "--eps", "0.3")
    assert unfinished.exit_code == 1
    assert "is not compiled to its end; run `pld compile` again" in unfinished.stderr


def test_help_has_an_example() -> None:
    found = pld("sweep", "--help")
    assert found.exit_code == 0
    assert "Example: pld sweep " in found.stdout


def test_all_settings_are_handed_over_before_it_waits(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "fit"))
    made = fit_local(load_dataset(config).train, config.labels, config.run.seed, config.embedder.dimensions)
    fit = tmp_path / "local.json"
    fit.write_bytes(made.document)
    local = '[resolver]\nmodel = "local:"\n'
    files = '[synthesizer]\nmodel = "answer-files:files"\nmax_input_tokens = 400_000\n'
    path = write(tmp_path / "task", files + local)
    answer = Answerer(path.parent / "files", fit)
    while (found := pld("compile", path, "-q")).exit_code == 75:
        assert answer()
    assert found.exit_code == 0, found.output
    sweep = (
        "sweep",
        path.parent / "runs" / "tickets",
        "--eps",
        "0.2,0.45,0.6",
        "--synthesize",
        "--json",
        "-q",
    )
    waits = 0
    while (found := pld(*sweep)).exit_code == 75:
        waits += 1
        assert len(found.stderr.splitlines()) == 1
        if waits == 1:
            assert "eps 0.2, min_samples 3: waiting for answers" in found.stderr
            assert "eps 0.6, min_samples 3: waiting for answers" in found.stderr
            assert "eps 0.45" not in found.stderr  # the compilation asked that
        assert answer()
    assert found.exit_code == 0, found.output
    assert waits == 2  # the clusters of all settings, and their general rules
    assert all(one["validation"] for one in json.loads(found.stdout)["settings"])
