"""Ctrl-C: once drains, saves and prints how to go on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from adapters.cli.main import app
from tests.conftest import ROOT
from tests.engine.distillation.test_pipeline import artifacts
from tests.support import corpus

pytestmark = pytest.mark.slow

PLD = [sys.executable, "-c", "from adapters.cli.main import main; main()"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PLD, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt_at(process: subprocess.Popen[str], words: str) -> tuple[int, str]:
    """Send SIGINT when `words` stand on stderr; the exit code and all of stderr."""
    assert process.stderr is not None
    told = ""
    while words not in told:
        line = process.stderr.readline()
        assert line, f"ended before {words!r}: {told}"
        told += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    return process.returncode, told + rest


def test_compile_interrupted_goes_on_as_told(tmp_path: Path) -> None:
    corpus.write(tmp_path / "whole", corpus.rows(1200))
    corpus.write(tmp_path / "cut", corpus.rows(1200))
    runner = CliRunner()
    assert runner.invoke(app, ["compile", str(tmp_path / "whole/pld.toml")]).exit_code == 0
    config = str(tmp_path / "cut/pld.toml")
    code, told = interrupt_at(start("compile", config), "resolution …")
    assert code == 130
    last = told.splitlines()[-1]
    assert "everything finished is saved" in last
    assert last.endswith(f"Go on with: pld compile {config}")
    assert "Traceback" not in told
    assert runner.invoke(app, ["compile", config]).exit_code == 0
    assert artifacts(tmp_path / "cut/runs/tickets") == artifacts(tmp_path / "whole/runs/tickets")


def test_classify_interrupted_goes_on_as_told(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    runner = CliRunner()
    assert runner.invoke(app, ["compile", str(tmp_path / "pld.toml")]).exit_code == 0
    texts = [f"{row['text']} {number}" for number in range(600) for row in corpus.rows(100)]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "rows.parquet")
    arguments = ["classify", tmp_path / "runs/tickets", tmp_path / "rows.parquet", "-o", tmp_path / "out"]
    arguments += ["--part-rows", "5000"]
    code, told = interrupt_at(start(*arguments), "classify …")
    assert code == 130
    assert "Go on with: pld classify" in told
    assert runner.invoke(app, [str(one) for one in arguments]).exit_code == 0
    parts = pl.read_parquet(tmp_path / "out/part-*.parquet")
    assert sorted(parts["row"]) == list(range(len(texts)))
