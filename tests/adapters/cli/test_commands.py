"""The commands as a user types them: figures, JSON, one clear line for an error, exit codes."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from adapters.cli.main import app
from tests.support import corpus

runner = CliRunner()


def pld(*arguments: str | Path) -> Result:
    return runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled run of the small corpus, made by the command."""
    made = tmp_path_factory.mktemp("cli")
    corpus.write(made)
    assert pld("compile", made / "pld.toml", "--ablation").exit_code == 0
    return made


def test_compile_prints_figures_and_where_things_lie(folder: Path) -> None:
    found = pld("compile", folder / "pld.toml", "--ablation")
    assert found.exit_code == 0
    for words in ("compiled prompt", "zero-shot", "majority class", "provisional verdict: gain"):
        assert words in found.stdout
    assert "keyword-rule baseline" in found.stdout
    assert "0 sent" in found.stdout
    assert str(folder / "runs" / "tickets" / "prompt.md") in found.stdout
    # progress goes to stderr, stage by stage
    for stage in ("data", "extraction", "embedding", "clustering", "synthesis", "resolution", "evaluation"):
        assert f"{stage}: " in found.stderr


def test_compile_json_is_one_object_with_the_keys_relied_on(folder: Path) -> None:
    found = pld("compile", folder / "pld.toml", "--ablation", "--json")
    document = json.loads(found.stdout)
    assert document["run"] == str(folder / "runs" / "tickets")
    assert document["verdict"] == "gain"
    assert document["prompt_tokens"] > 0
    assert document["instructions"] > 0
    assert 0 < document["validation"]["macro_f1"] <= 1
    assert document["cost_usd"] == 0
    assert document["requests"]["sent"] == 0
    assert document["requests"]["cached"] > 0
    assert document["requests"]["failed"] == 0
    assert document["seconds"] > 0


def test_evaluate_json_has_every_system(folder: Path) -> None:
    found = pld("evaluate", folder / "runs" / "tickets", "--json", "--quiet")
    assert found.exit_code == 0
    assert found.stderr == ""
    document = json.loads(found.stdout)
    assert document["split"] == "test"
    assert document["n"] == 60
    assert document["malformed_rate"] == 0
    for system in ("compiled", "zero_shot", "majority", "tfidf_logreg", "clustered", "resolver_only"):
        low, high = document[system]["ci95"]
        assert 0 <= low <= document[system]["macro_f1"] <= high <= 1
        assert 0 <= document[system]["accuracy"] <= 1
    table = document["compiled"]["confusion"]
    assert sum(sum(row.values()) for row in table.values()) == 60
    assert document["verdict"]["decision"] == "gain"


def test_evaluate_without_zero_shot_gives_no_verdict(folder: Path) -> None:
    found = pld("evaluate", folder / "runs" / "tickets", "--no-zero-shot", "--split", "validation")
    assert found.exit_code == 0
    assert "verdict: none without the zero-shot prompt" in found.stdout
    assert "by label" in found.stdout


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
def test_classify_reads_each_format(folder: Path, tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame(corpus.rows()).select("id", "text")
    source = tmp_path / f"rows.{suffix}"
    getattr(frame, f"write_{suffix}")(source)
    run = folder / "runs" / "tickets"
    found = pld("classify", run, source, "-o", tmp_path / "out", "--id", "id", "--json")
    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    assert (document["rows"], document["classified"], document["failed"]) == (240, 240, 0)
    assert {"duplicates", "rows_per_s", "peak_rss_mb"} <= set(document)
    parts = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert parts["id"].to_list() == frame["id"].to_list()
    assert parts["row"].to_list() == list(range(240))
    gold = [row["label"] for row in corpus.rows()]
    assert sum(a == b for a, b in zip(gold, parts["label"], strict=True)) > 200


def test_confidence_is_calibrated_where_the_run_says_how(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "runs" / "tickets", run)
    pl.DataFrame(corpus.rows()).write_parquet(tmp_path / "rows.parquet")
    document = json.loads((run / "calibration.json").read_bytes())
    assert document["temperature"] is None, "60 rows do not show that it is too sure"
    expected = {
        "none": "confidence is not calibrated: on held-out rows",
        "some": "confidence from 0 to 1, calibrated at temperature 2.5: ",
        "gone": "confidence is not calibrated: the run has no calibration.json; compile again",
    }
    for name, words in expected.items():
        if name == "some":
            (run / "calibration.json").write_text(json.dumps(document | {"temperature": 2.5, "reason": ""}))
        elif name == "gone":
            (run / "calibration.json").unlink()
        found = pld("classify", run, tmp_path / "rows.parquet", "-o", tmp_path / name)
        assert found.exit_code == 0, found.stderr
        assert words in found.stdout + found.stderr
        assert found.stderr.count("confidence is not calibrated") == (name != "some")
    evaluated = pld("evaluate", folder / "runs" / "tickets")
    assert "confidence: expected calibration error 0." in evaluated.stdout
    assert "; not calibrated: on held-out rows" in evaluated.stdout


def test_classify_says_where_reasons_stand_and_when_nothing_was_left(folder: Path, tmp_path: Path) -> None:
    pl.DataFrame({"text": ["a message", ""]}).write_parquet(tmp_path / "rows.parquet")
    command = ("classify", folder / "runs" / "tickets", tmp_path / "rows.parquet", "-o", tmp_path / "out")
    first, second = pld(*command), pld(*command)
    for found in (first, second):
        assert f"why rows failed: {tmp_path / 'out' / 'failures-*.parquet'} (" in found.stdout
    assert "rows/s; peak memory" in first.stdout
    assert "nothing was left to ask; peak memory" in second.stdout


def test_classify_keeps_columns_and_sets_unsure_rows_aside(folder: Path, tmp_path: Path) -> None:
    frame = pl.DataFrame(corpus.rows()).with_row_index("number")
    frame.write_parquet(tmp_path / "rows.parquet")
    arguments = ("classify", folder / "runs" / "tickets", tmp_path / "rows.parquet", "-o", tmp_path / "out")
    arguments += ("--keep", "number", "--keep", "label=gold", "--review-below", "0.9")
    found = pld(*arguments)
    assert found.exit_code == 0, found.stderr
    assert "to review" in found.stdout
    assert "confidence from 0 to 1, as the student tells it: " in found.stdout
    document = json.loads(pld(*arguments, "--json").stdout)
    parts = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    review = pl.read_parquet(tmp_path / "out" / "review-*.parquet")
    assert document["review"] == review.height > 0
    assert (review["confidence"] < 0.9).all()
    assert sum(document["confidence_histogram"]) == document["rows"] == 240
    assert sum(document["label_counts"].values()) == 240
    together = pl.concat([parts, review]).sort("row")
    assert together["number"].equals(frame["number"])
    assert together["gold"].to_list() == frame["label"].to_list()


def test_classify_warns_when_the_labels_are_mixed_otherwise(folder: Path, tmp_path: Path) -> None:
    """Validation has all labels; here is one of them alone, a thousand times in other words."""
    rows = corpus.rows()
    same = [row["text"] for row in rows if row["label"] == rows[0]["label"]]
    texts = [f"{same[number % len(same)]} {number}" for number in range(1_000)]
    mixed = [f"{rows[number % len(rows)]['text']} {number}" for number in range(1_000)]
    for name, some in (("one", texts), ("all", mixed)):
        pl.DataFrame({"text": some}).write_parquet(tmp_path / f"{name}.parquet")
    run = folder / "runs" / "tickets"
    found = pld("classify", run, tmp_path / "one.parquet", "-o", tmp_path / "one", "--quiet")
    assert found.exit_code == 0
    assert "warning: label mix:" in found.stderr
    assert "on validation" in found.stderr
    fine = pld("classify", run, tmp_path / "all.parquet", "-o", tmp_path / "all", "--quiet")
    assert fine.stderr == ""


@pytest.mark.parametrize("command", ["init", "compile", "evaluate", "classify"])
def test_help_has_an_example(command: str) -> None:
    found = pld(command, "--help")
    assert found.exit_code == 0
    assert f"Example: pld {command} " in found.stdout


def test_bench_registers_itself() -> None:
    found = {entry.name: entry.load() for entry in metadata.entry_points(group="pld.commands")}
    assert "Example: " in runner.invoke(found["bench"], ["quality", "--help"]).stdout


def test_help_of_compile_says_what_faithful_leaves_out() -> None:
    text = " ".join(pld("compile", "--help").stdout.replace("│", " ").split())
    for words in (
        "eps 0.4 and min_samples 6",
        "noise is discarded",
        "the last prompt is kept",
        "asking again",
    ):
        assert words in text


def test_version() -> None:
    assert pld("--version").stdout.startswith("pld 0.")
