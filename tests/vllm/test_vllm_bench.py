"""`pld bench student`, small: with the cache on the prompt is read once, with it off every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.serving.installation import find_vllm
from bench.student import Setting, measure_student
from tests.vllm.serving import MAX_BATCHED_TOKENS, Environment

pytestmark = pytest.mark.vllm


def test_every_way_to_ask_is_measured(
    environment: Environment, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.variables.items():
        monkeypatch.setenv(name, value)
    setting = Setting(
        model=str(tiny_model),
        vllm=find_vllm(environment.path),
        prompt=None,
        rows=40,
        repeats=1,
        price_usd=2.0,
        parts=("ways",),
        flags=("--dtype", "bfloat16", "--enforce-eager", "--max-num-batched-tokens", str(MAX_BATCHED_TOKENS)),
    )
    rows = {row["name"]: row for row in measure_student(setting)["ways"]}
    assert set(rows) == {
        "zero-shot prompt",
        "compiled prompt",
        "zero-shot, chain of thought",
        "compiled prompt, caching off",
    }
    assert rows["compiled prompt"]["hit_rate"] > 0.8
    assert rows["compiled prompt, caching off"]["hit_rate"] == 0.0
    cpu = {name: row["server_cpu_ms"] for name, row in rows.items()}
    assert cpu["compiled prompt, caching off"] > 2.0 * cpu["compiled prompt"] > 0.0
    assert all(row["usd_per_million"] > 0.0 for row in rows.values())
