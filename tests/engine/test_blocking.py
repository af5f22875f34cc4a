"""The calls for code that is not asynchronous."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import pytest

import adapters
from engine import classify_sync, compile_prompt_sync, evaluate_sync
from engine.blocking import blocking
from engine.errors import ConfigError
from engine.tuning import new_event_loop
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


def test_the_work_runs_on_the_quickest_loop_with_the_collector_of_a_long_job() -> None:
    async def look() -> tuple[str, int, str]:
        """What the work finds."""
        loop = type(asyncio.get_running_loop()).__module__
        return loop, gc.get_threshold()[0], threading.current_thread().name

    expected = new_event_loop()
    expected.close()
    before = gc.get_threshold()
    look_sync = blocking(look)
    assert look_sync() == (type(expected).__module__, 20_000, threading.main_thread().name)

    async def notebook() -> tuple[str, int, str]:
        return look_sync()

    loop, threshold, thread = asyncio.run(notebook())
    assert (loop, threshold) == (type(expected).__module__, 20_000)
    assert thread.startswith("pld")
    assert gc.get_threshold() == before
    assert (look_sync.__name__, look_sync.__doc__) == ("look_sync", "What the work finds.")
