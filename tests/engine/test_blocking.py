"""The calls for code that is not asynchronous."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import adapters
from engine import classify_sync, compile_prompt_sync, evaluate_sync
from engine.errors import ConfigError
from tests.support import corpus


def test_the_whole_job_without_a_loop_and_inside_of_one(tmp_path: Path) -> None:
    corpus.write(tmp_path)
    result = compile_prompt_sync(tmp_path / "pld.toml", adapters.open_models)

    async def notebook() -> None:
        # a notebook's cell runs inside a loop
        found = evaluate_sync(result.run, adapters.open_student("local:"))
        assert found.compiled.n == 60
        assert "| compiled |" in found._repr_markdown_()
        assert "Verdict: **gain**" in found._repr_markdown_()

    asyncio.run(notebook())
    assert result.prompt.text in result._repr_markdown_()
    student = adapters.open_student("local:")
    done = classify_sync(result.prompt, student, tmp_path / "data.parquet", tmp_path / "out")
    assert done.classified == 240


def test_errors_come_out_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        compile_prompt_sync(tmp_path / "none.toml", adapters.open_models)
