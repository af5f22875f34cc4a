"""A prefix cache's worth in two lines."""

from __future__ import annotations

from dataclasses import replace

from adapters.cli.receipt import receipt_lines
from engine.ports import CacheReceipt

RECEIPT = CacheReceipt(
    requests=2000,
    servers=2,
    prefixes=1,
    prompt_tokens=9_630_000,
    cached_tokens=9_190_800,
    expected_tokens=9_190_800,
    shared_tokens=4630,
    block_tokens=16,
    requests_per_s=61.23,
    first_token_s=0.4321,
)


def test_two_lines() -> None:
    assert receipt_lines(RECEIPT) == [
        "prefix cache: 95.4% of the prompt tokens of this call's 2,000 requests; 9.19M tokens saved, 9.19M "
        "expected; 220 left to compute for each",
        "the student: 61.2 requests/s from 2 replicas; 0.43 s to the first token",
    ]


def test_what_nobody_tells_is_left_out() -> None:
    worth, pace = receipt_lines(replace(RECEIPT, expected_tokens=None, first_token_s=None, servers=1))
    assert worth.endswith("9.19M tokens saved; 220 left to compute for each")
    assert pace == "the student: 61.2 requests/s from 1 replica"
    worth, _ = receipt_lines(replace(RECEIPT, cached_tokens=None))
    assert worth == "prefix cache: nobody tells what came from it for this call's 2,000 requests"
    assert receipt_lines(None) == []


def test_one_request_is_no_plural() -> None:
    worth, _ = receipt_lines(replace(RECEIPT, requests=1))
    assert "of this call's 1 request;" in worth
