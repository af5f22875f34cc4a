"""What `pld bench student` asks with, and how it counts CPU; tests/vllm runs it against a server."""

from __future__ import annotations

import asyncio
import os
import time
from itertools import islice

from bench.student.cpu import session_cpu_s
from bench.student.made import PROMPT_TOKENS, ROW_TOKENS, made_prompt, made_rows, words_of_a_row


async def letters(text: str) -> int:
    """A tokenizer with a token for three letters."""
    return 40 + len(text) // 3


def test_the_prompt_and_the_rows_are_as_long_as_real_ones_to_any_tokenizer() -> None:
    prompt = asyncio.run(made_prompt(letters))
    assert abs(asyncio.run(letters(prompt.text)) - PROMPT_TOKENS) < 0.05 * PROMPT_TOKENS
    words = asyncio.run(words_of_a_row(letters))
    rows = list(islice(made_rows(3, words), 50))
    assert len(set(rows)) == 50
    assert set(rows).isdisjoint(islice(made_rows(4, words), 50))
    for row in rows:
        assert abs(asyncio.run(letters(row)) - ROW_TOKENS) < 0.3 * ROW_TOKENS


def test_the_time_of_all_processes_of_a_session_is_counted() -> None:
    before = session_cpu_s(os.getsid(0))
    began = time.process_time()
    while time.process_time() - began < 0.2:
        pass
    assert session_cpu_s(os.getsid(0)) - before >= 0.1
    assert session_cpu_s(-5) == 0.0
