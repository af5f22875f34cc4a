"""What a prefix cache was worth, in two lines."""

from __future__ import annotations

from adapters.cli.wording import short
from engine.ports import CacheReceipt


def receipt_lines(receipt: CacheReceipt | None) -> list[str]:
    """What stands below a job's figures; nothing where the model keeps no receipt. It speaks of one call."""
    if receipt is None:
        return []
    asked = f"this call's {receipt.requests:,} request{'s' if receipt.requests != 1 else ''}"
    if receipt.cached_tokens is None:
        worth = f"prefix cache: nobody tells what came from it for {asked}"
    else:
        left = (receipt.prompt_tokens - receipt.cached_tokens) / receipt.requests
        worth = f"prefix cache: {receipt.hit_rate or 0:.1%} of the prompt tokens of {asked}; "
        worth += f"{short(receipt.cached_tokens)} tokens saved"
        if receipt.expected_tokens is not None:
            worth += f", {short(receipt.expected_tokens)} expected"
        worth += f"; {short(left)} left to compute for each"
    replicas = f"{receipt.servers:,} replica{'s' if receipt.servers > 1 else ''}"
    pace = f"the student: {receipt.requests_per_s:,.1f} requests/s from {replicas}"
    if receipt.first_token_s is not None:
        pace += f"; {receipt.first_token_s:,.2f} s to the first token"
    return [worth, pace]
