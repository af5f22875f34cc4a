"""How many requests to have in flight at a real vLLM server is found out, from wherever it starts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adapters.addresses import parse_vllm
from adapters.vllm_servers import VllmServers
from bench.student.concurrency import Job, measure_concurrency
from bench.student.made import made_prompt, made_rows, words_of_a_row
from engine.types import Message
from tests.vllm.serving import MODEL, Server

pytestmark = pytest.mark.vllm


def test_it_is_found_from_one_and_from_very_many(server: Server) -> None:
    """A prompt of 4,600 tokens, rows of 200. How near it comes is for `pld bench student` to say."""

    async def run() -> list[dict[str, Any]]:
        address = parse_vllm(f"vllm:{MODEL}@{server.base}")
        asked = VllmServers(address, api_key=None)

        async def count(text: str) -> int:
            tokens = await asked.token_ids(server.base, [Message("user", text)])
            assert tokens is not None
            return len(tokens)

        try:
            prompt = await made_prompt(count)
            words = await words_of_a_row(count)
        finally:
            await asked.aclose()
        return await measure_concurrency(
            Job(address, prompt, made_rows(7, words)),
            fixed=(8, 64),
            starts=(1, 64),
            repeats=1,
            window_s=5.0,
            reach_s=15.0,
        )

    found = asyncio.run(run())
    assert [row["name"] for row in found] == ["closed loop"] * 2 + ["pld classify"] * 2
    assert min(row["requests_per_s"] for row in found) > 0.0
    for row in found[2:]:
        assert row["ratio"] > 0.0
        assert 1 <= row["concurrency"] <= 64
