"""A student behind a real vLLM server: compiled for, evaluated, and asked in bulk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from adapters.cli.main import app
from tests.support import corpus
from tests.vllm.serving import Server

pytestmark = pytest.mark.vllm


def pld(*arguments: str | Path) -> dict[str, Any]:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json", "--quiet"])
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_prompt_is_compiled_for_it_and_labels_every_row(server: Server, tmp_path: Path) -> None:
    config = corpus.write(tmp_path, more=f'[student]\nmodel = "{server.vllm_address}"\n')
    config.write_text(config.read_text().replace("max_rounds = 3", "max_rounds = 1"))
    run = tmp_path / "runs" / "tickets"

    compiled = pld("compile", config)
    assert compiled["requests"]["failed"] == 0
    assert compiled["instructions"] > 0

    evaluated = pld("evaluate", run)
    assert (evaluated["n"], evaluated["failed"], evaluated["malformed_rate"]) == (60, 0, 0.0)

    texts = [f"{row['text']} {copy}" for row in corpus.rows() for copy in range(2)]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "rows.parquet")
    hits = server.metric("vllm:prefix_cache_hits_total")
    queries = server.metric("vllm:prefix_cache_queries_total")
    classified = pld("classify", run, tmp_path / "rows.parquet", "-o", tmp_path / "out")
    assert (classified["rows"], classified["classified"], classified["failed"]) == (480, 480, 0)
    assert not list((tmp_path / "out").glob("failures-*"))
    parts = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert parts["row"].to_list() == list(range(480))
    assert set(parts["label"]) <= set(corpus.WORDS)
    # a model of random weights may begin an answer with the likeliest token, and yet not the likeliest label
    assert parts["confidence"].is_between(0.0, 1.0, closed="right").all()
    assert (parts["margin"] <= parts["confidence"]).all()
    asked = server.metric("vllm:prefix_cache_queries_total") - queries
    found = server.metric("vllm:prefix_cache_hits_total") - hits
    assert found / asked > 0.5, "the prompt is read once"
