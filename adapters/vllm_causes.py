"""Why a prefix cache did less than it could have: what is seen from a client, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adapters.vllm_servers import ServerFacts
from engine.ports import CacheReceipt

SHORT_OF = 0.9
"""Below this share of what was expected, something is wrong."""
_ENOUGH = 30  # requests for each replica: the first few of a layer with a window may miss without harm
_MANY_PREFIXES = 10
_FEW_REQUESTS = 10
_FULL = 0.99


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known beside the receipt's figures."""

    receipt: CacheReceipt
    facts: Mapping[str, ServerFacts]
    """Of the servers that have answered, by their base URLs."""
    rendered_otherwise: bool
    """Whether a server makes another prompt of the first request's messages now than before it was sent."""
    preemptions: int
    """Requests that had to give up their place meanwhile, whoever sent them."""
    fullest: float
    """The highest use of a KV cache that was seen, from 0 to 1."""
    untold: int
    """Answers that did not tell their cached tokens."""
    metered: bool
    """Whether the cached tokens were read from the servers' own counters instead."""


def warnings_of(found: Findings) -> tuple[str, ...]:
    """A line for each thing that is wrong; of the causes of a shortfall only the first that explains it."""
    return (*_untold(found), *_causes(found))


def _untold(found: Findings) -> Iterator[str]:
    if not found.untold:
        return
    told = "the servers do not tell with their answers which tokens came from the cache"
    if found.untold < found.receipt.requests:
        told = f"{found.untold:,} answers do not tell which of their tokens came from the cache"
    if found.metered:
        source = "the figures are those of the servers' own counters"
    else:
        source = "how many it was is unknown, as others use the servers too, or their counters cannot be read"
    yield f"{told}: {source}; start vLLM with --enable-prompt-tokens-details"


def _causes(found: Findings) -> Iterator[str]:
    receipt = found.receipt
    off = sorted(base for base, facts in found.facts.items() if facts.caching is False)
    shared, block = receipt.shared_tokens, receipt.block_tokens
    if off:
        yield (
            f"the prefix cache of {', '.join(off)} is off, so every request computes the whole prompt: start "
            "vLLM with --enable-prefix-caching; where it is on and this stands, the kind of model has none"
        )
    elif shared is not None and block is not None and shared < block:
        yield (
            f"nothing can come from the cache: it keeps whole blocks of {block:,} tokens, and the requests "
            f"share {shared:,}; a smaller --block-size helps where vLLM takes one for this model"
        )
    elif receipt.prefixes >= _MANY_PREFIXES and receipt.requests < _FEW_REQUESTS * receipt.prefixes:
        yield (
            f"the {receipt.requests:,} requests begin in {receipt.prefixes:,} different ways, so that little "
            "can come from the cache: what changes from row to row has to come last, behind all that does not"
        )
    elif _falls_short(receipt):
        yield f"much less came from the cache than could have: {_shortfall(found)}"


def _falls_short(receipt: CacheReceipt) -> bool:
    return (
        receipt.expected_tokens is not None
        and receipt.cached_tokens is not None
        and receipt.requests >= _ENOUGH * receipt.servers
        and receipt.cached_tokens < SHORT_OF * receipt.expected_tokens
    )


def _shortfall(found: Findings) -> str:
    if found.rendered_otherwise:
        return (
            "a server makes another prompt of the same messages now than at the start; look for a date, a "
            "time or a random number in its chat template (--chat-template)"
        )
    if found.preemptions or found.fullest >= _FULL:
        return (
            f"the KV cache is too small, so that prefixes are thrown out ({found.preemptions:,} requests had "
            f"to give up their place, at most {found.fullest:.0%} was in use); give vLLM more memory "
            "(--gpu-memory-utilization), or fewer requests at once (--max-num-seqs)"
        )
    retained = all(facts.retains is not False for facts in found.facts.values())
    if any(facts.window for facts in found.facts.values()):
        advice = (
            "vLLM retains all that it can already"
            if retained
            else "start vLLM with --prefix-cache-retention-interval None, as `pld serve` does"
        )
        return f"the model has layers that keep a window or a state instead of the whole prompt; {advice}"
    layers = (
        ""
        if retained
        else (
            "; or the model has layers with a sliding window, and vLLM runs without "
            "--prefix-cache-retention-interval None"
        )
    )
    return (
        "no cause is to be seen from here; a cache_salt that changes between requests would do it, or a "
        "proxy that adds something ahead of them or spreads them over more servers than the address "
        f"names{layers}"
    )
